"""Datasets: batches hold what single utterances give, epochs change what they should, and nothing depends on who loads."""

import gc
import logging
import multiprocessing
import pickle
import time

import numpy as np
import pytest
import soundfile
import torch
from corpus import SPEAKERS, make_corpus, make_labels
from fairseq.data.iterators import EpochBatchIterator
from fairseq.tasks.fairseq_task import FairseqTask

import emohubert.tasks  # noqa: F401 (patches fairseq)
from emohubert.core.errors import InputError
from emohubert.corpus import audio
from emohubert.corpus.frame_labels import NO_LABEL, read_frame_labels
from emohubert.corpus.manifest import read_dictionary, read_split
from emohubert.data import speech
from emohubert.data.frame_labelled import FrameLabelledSpeech
from emohubert.data.masking import Masking, rng_for, span_mask
from emohubert.data.speech import SpeechDataset, pad_frames

MASKING = Masking(0.8, 10, channel_probability=0.3, channel_length=8, width=64)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Eighty training utterances of 0.3 to 2 s (manifest folder), with labels at both hops."""
    folder = tmp_path_factory.mktemp("corpus")
    manifest = make_corpus(folder, train=80)
    make_labels(manifest, folder / "labels320")
    make_labels(manifest, folder / "labels160", hop=160, seed=1)
    return folder


def dataset(corpus, split="train", speakers=True, masking=MASKING, **options):
    utterances = read_split(corpus / "manifest", split)
    labels = [
        read_frame_labels(corpus / name / f"{split}.km", read_dictionary(corpus / name / "dict.km.txt"), utterances.n_samples)
        for name in ("labels320", "labels160")
    ]
    rows = np.array([1 + SPEAKERS.index(s) for s in utterances.speakers]) if speakers else None
    options.setdefault("training", split == "train")
    return FrameLabelledSpeech(utterances, labels, masking, rows, **options)


def equal(a, b):
    """Whether two items or batches hold the same."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return np.array_equal(a, b)


def task():
    """Any fairseq task: batches are made by the base class."""
    return FairseqTask(None)


# --------------------------------------------------------------------------------------------------------- single items


def test_an_item_by_hand(corpus):
    data = dataset(corpus, masking=Masking(0.8, 10))
    for index in range(0, 80, 9):
        item = data[index]
        samples, _ = soundfile.read(data.split.audio(index), dtype="float32")
        frames = audio.n_frames(len(samples))
        rows = [(corpus / f"labels{hop}" / "train.km").read_text().splitlines()[index].split() for hop in (320, 160)]
        assert sorted(item) == ["id", "mask", "source", "speaker", "targets"]
        assert item["id"] == index
        np.testing.assert_array_equal(item["source"].numpy(), samples)
        assert item["targets"][0].tolist() == [int(x) for x in rows[0]]
        assert item["targets"][1].tolist() == [int(x) for x in rows[1][::2]][:frames]
        assert item["mask"].shape == (frames,)
        np.testing.assert_array_equal(item["mask"], span_mask(frames, 0.8, 10, rng_for(1, 1, index, "mask")))
        assert SPEAKERS[item["speaker"] - 1] == data.split.speakers[index]


def test_normalisation_follows_the_crop(corpus):
    data = dataset(corpus, max_samples=8000, normalise=True)
    plain = dataset(corpus, max_samples=8000)
    for index in range(10):
        expected = plain[index]["source"]
        expected = torch.nn.functional.layer_norm(expected, expected.shape)
        torch.testing.assert_close(data[index]["source"], expected, atol=1e-5, rtol=0)


def test_channels_are_masked_in_training_only(corpus):
    item = dataset(corpus)[0]
    assert item["channels"].shape == (64,)
    assert "channels" not in dataset(corpus, training=False)[0]
    assert "channels" not in dataset(corpus, masking=Masking(0.8, 10))[0]
    shares = [dataset(corpus)[i]["channels"].mean() for i in range(80)]
    assert 0.15 < np.mean(shares) < 0.3  # 0.3 less the overlap


# -------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("options", [{}, {"max_samples": 8000}, {"speakers": False}, {"training": False}, {"normalise": True}])
def test_a_batch_holds_its_single_items(corpus, options):
    data = dataset(corpus, **options)
    order = [5, 71, 0, 33, 5]
    items = [data[i] for i in order]
    batch = data.collater(items)
    source, lengths = batch["net_input"]["source"], batch["net_input"]["lengths"]
    assert batch["id"].tolist() == order
    assert batch["nsentences"] == 5
    assert batch["ntokens"] == sum(lengths) == sum(data.size(i) for i in order)
    assert source.shape == (5, max(lengths))
    frames = audio.n_frames(max(lengths))
    assert [t.shape for t in batch["target_list"]] == [(5, frames)] * 2
    assert batch["net_input"]["mask_indices"].shape == (5, frames)
    for row, item in enumerate(items):
        n, t = len(item["source"]), len(item["mask"])
        assert lengths[row] == n
        assert torch.equal(source[row, :n], item["source"])
        assert not source[row, n:].any()
        for targets, expected in zip(batch["target_list"], item["targets"], strict=True):
            assert targets[row, :t].tolist() == expected.tolist()
            assert (targets[row, t:] == NO_LABEL).all()
        mask = batch["net_input"]["mask_indices"][row]
        assert mask[:t].tolist() == item["mask"].tolist()
        assert not mask[t:].any()
        if "channels" in item:
            assert batch["net_input"]["mask_channel_indices"][row].tolist() == item["channels"].tolist()
    assert ("speaker" in batch["net_input"]) == options.get("speakers", True)
    assert "speaker" not in batch["net_input"] or batch["net_input"]["speaker"].tolist() == [item["speaker"] for item in items]
    assert equal(items[0], items[4])
    assert equal(data.collater([data[71]])["target_list"][0][0], batch["target_list"][0][1, : len(items[1]["mask"])])


def test_an_empty_batch(corpus):
    assert dataset(corpus).collater([]) == {}


def test_pad_frames():
    assert pad_frames([np.array([1, 2]), np.array([3])], 3, -100).tolist() == [[1, 2, -100], [3, -100, -100]]


def test_batches_are_under_the_budget_and_hold_everything_once(corpus):
    data = dataset(corpus, max_samples=20_000)
    batches = data.batch_by_size(data.ordered_indices(), max_tokens=64_000, max_sentences=None, required_batch_size_multiple=8)
    assert sorted(i for b in batches for i in b) == list(range(80))
    assert all(max(data.num_tokens(i) for i in b) * len(b) <= 64_000 for b in batches)
    np.testing.assert_array_equal(data.num_tokens_vec(np.arange(80)), [data.size(i) for i in range(80)])


def test_batches_change_with_epoch_and_seed_in_training_only(corpus):
    def batches(data, epoch):
        data.set_epoch(epoch)
        return [b.tolist() for b in data.batch_by_size(data.ordered_indices(), max_tokens=64_000)]

    training, other, validation = dataset(corpus), dataset(corpus, seed=2), dataset(corpus, training=False)
    assert batches(training, 1) == batches(training, 1)
    assert batches(training, 1) != batches(training, 2)
    assert batches(training, 1) != batches(other, 1)
    assert batches(validation, 1) == batches(validation, 2)
    flat = [i for b in batches(validation, 1) for i in b]
    assert flat == sorted(flat, key=lambda i: -validation.size(i))


# --------------------------------------------------------------------------------------------------------------- epochs


def test_epochs_change_crops_masks_and_channels_in_training(corpus):
    data = dataset(corpus, max_samples=6000)
    cropped = int(np.argmax(data.split.n_samples))
    items = []
    for epoch in (1, 2, 1):
        data.set_epoch(epoch)
        items.append(data[cropped])
    assert equal(items[0], items[2])
    for key in ("source", "mask", "channels", "targets"):
        assert not equal(items[0][key], items[1][key])


def test_epochs_change_nothing_in_validation(corpus):
    data = dataset(corpus, "valid", max_samples=6000)
    first = [data[i] for i in range(len(data))]
    data.set_epoch(7)
    assert equal(first, [data[i] for i in range(len(data))])


def test_seeds_change_masks_and_crops(corpus):
    a, b = (dataset(corpus, max_samples=6000, seed=s) for s in (1, 2))
    longest = int(np.argmax(a.split.n_samples))
    assert not equal(a[longest]["mask"], b[longest]["mask"])
    assert not equal(a[longest]["source"], b[longest]["source"])


@pytest.mark.parametrize("size", [400, 6000, 6400, 16_000])
def test_crops_begin_on_frames_and_labels_follow(corpus, size):
    data, whole = dataset(corpus, max_samples=size), dataset(corpus)
    starts = set()
    for epoch in range(1, 4):
        data.set_epoch(epoch)
        for index in range(0, 80, 4):
            n = int(data.split.n_samples[index])
            start, stop = data.crop(index)
            assert start % 320 == 0
            assert stop - start == min(n, size) == data.size(index)
            assert 0 <= start <= stop <= n
            starts.add(start)
            item, full = data[index], whole[index]
            frames = audio.n_frames(stop - start)
            assert torch.equal(item["source"], full["source"][start:stop])
            assert item["mask"].shape == (frames,)
            for part, targets in zip(item["targets"], full["targets"], strict=True):
                np.testing.assert_array_equal(part, targets[start // 320 : start // 320 + frames])
    assert len(starts) > 5


def test_every_crop_is_as_likely_as_any_other(corpus):
    data = dataset(corpus, max_samples=6000)
    index = int(np.argmax(data.split.n_samples))
    places = (int(data.split.n_samples[index]) - 6000) // 320 + 1
    counts = np.zeros(places)
    for epoch in range(1, 3001):
        data.set_epoch(epoch)
        counts[data.crop(index)[0] // 320] += 1
    assert (counts > 0).all()
    assert ((counts - 3000 / places) ** 2 / (3000 / places)).sum() < places + 6 * np.sqrt(2 * places)  # chi-square


def test_a_limit_under_one_frame_still_gives_a_frame(corpus):
    assert dataset(corpus, max_samples=10)[0]["mask"].shape == (1,)


def test_nothing_is_cropped_without_a_limit(corpus):
    data = dataset(corpus, max_samples=None)
    assert [data.crop(i) for i in range(80)] == [(0, n) for n in data.split.n_samples]


# ------------------------------------------------------------------------------------------------------ speaker dropout


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_speaker_dropout(corpus, monkeypatch, rate):
    """The rate is kept, for every utterance alike; an utterance is dropped in one epoch and not in another."""
    data = dataset(corpus, speaker_dropout=rate, masking=Masking(0, 10))
    monkeypatch.setattr(data, "waveform", lambda index, start, stop: torch.zeros(stop - start))
    dropped = np.zeros((30, 80), dtype=bool)
    for epoch in range(30):
        data.set_epoch(epoch)
        speakers = np.array([data[i]["speaker"] for i in range(80)])
        dropped[epoch] = speakers == 0
        np.testing.assert_array_equal(speakers[~dropped[epoch]], data.speaker_rows[~dropped[epoch]])
    spread = np.sqrt(rate * (1 - rate))
    assert abs(dropped.mean() - rate) <= 4 * spread / np.sqrt(dropped.size)
    assert np.abs(dropped.mean(axis=0) - rate).max() <= 5 * spread / np.sqrt(30)
    assert np.abs(dropped.mean(axis=1) - rate).max() <= 5 * spread / np.sqrt(80)


def test_speakers_are_never_dropped_in_validation(corpus):
    data = dataset(corpus, "valid", speaker_dropout=1.0)
    assert [data[i]["speaker"] for i in range(8)] == data.speaker_rows.tolist()


def test_unknown_speakers_stay_unknown(corpus):
    data = dataset(corpus)
    data.speaker_rows = np.zeros(80, dtype=np.int64)
    assert data[3]["speaker"] == 0


# -------------------------------------------------------------------------------------------------- short utterances


def short_split(corpus, lengths):
    split = read_split(corpus / "manifest", "train")
    split.n_samples = split.n_samples.copy()
    split.n_samples[: len(lengths)] = lengths
    return split


@pytest.mark.parametrize("floor", [0, 100, 400])
def test_utterances_under_a_frame_are_left_out_and_counted(corpus, caplog, floor):
    with caplog.at_level(logging.WARNING):
        data = SpeechDataset(short_split(corpus, [399, 400, 0, 401]), min_samples=floor)
    assert data.ordered_indices().tolist() == [1, *range(3, 80)]
    assert sorted(i for b in data.batch_by_size(data.ordered_indices(), 64_000) for i in b) == [1, *range(3, 80)]
    assert caplog.messages == [f"{data.split.tsv}: 2 of 80 utterances are under 400 samples and left out: train000.wav, train002.wav"]


def test_many_short_utterances_are_counted_and_some_named(corpus, caplog):
    with caplog.at_level(logging.WARNING):
        SpeechDataset(short_split(corpus, [1] * 7))
    assert "7 of 80 utterances are under 400 samples and left out: train000.wav, " in caplog.text
    assert caplog.messages[0].endswith("train004.wav, …")


def test_nothing_left(corpus):
    with pytest.raises(InputError, match=r"train\.tsv: every utterance is shorter than 99999 samples; lower task.min_sample_size"):
        SpeechDataset(read_split(corpus / "manifest", "train"), min_samples=99_999)


def test_nothing_is_said_where_nothing_is_left_out(corpus, caplog):
    dataset(corpus)
    assert not caplog.records


# ------------------------------------------------------------------------------------------------------- checking audio


@pytest.fixture
def small(tmp_path):
    manifest = make_corpus(tmp_path, train=12, valid=1, test=1)
    return SpeechDataset(read_split(manifest, "train")), tmp_path / "audio"


def audio_error(data):
    with pytest.raises(InputError) as caught:
        data.check_audio()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_audio_passes(small):
    small[0].check_audio()


def test_missing_audio_is_named_with_its_line(small):
    data, folder = small
    (folder / "train007.wav").unlink()
    assert f"{data.split.tsv}:9: {folder / 'train007.wav'}: no such audio file" in audio_error(data)


def test_truncated_audio_is_named_with_its_line(small):
    data, folder = small
    path = folder / "train000.wav"
    path.write_bytes(path.read_bytes()[:5000])
    assert f"{data.split.tsv}:2: {path}: truncated WAV" in audio_error(data)
    with pytest.raises(InputError, match="truncated WAV"):
        data.waveform(0, 0, 400)


def test_audio_of_another_length_is_named_with_its_line(small):
    data, folder = small
    data.split.n_samples[11] += 1
    message = audio_error(data)
    assert f"{data.split.tsv}:13: {folder / 'train011.wav'} has " in message
    assert f"the manifest says {data.split.n_samples[11]}" in message
    with pytest.raises(InputError, match="the manifest says"):
        data.waveform(11, 0, 400)


def test_audio_that_is_left_out_is_not_looked_at(small):
    data, folder = small
    data.kept = np.arange(1, 12)
    (folder / "train000.wav").unlink()
    data.check_audio()


def test_a_large_corpus_is_sampled_and_says_so(small, monkeypatch, caplog):
    data, folder = small
    for i in range(8):
        (folder / f"train{i:03}.wav").unlink()
    monkeypatch.setattr(speech, "MOST_HEADERS", 6)
    with caplog.at_level(logging.INFO):
        audio_error(data)  # of 6 of 12, at least two are missing
    assert "checking the headers of 6 of 12 files" in caplog.text


# ------------------------------------------------------------------------------------------- workers, processes, resuming


def iterator(data, epoch=1, seed=1, **options):
    """fairseq's iterator, as its trainer makes it."""
    return task().get_batch_iterator(data, max_tokens=64_000, required_batch_size_multiple=8, seed=seed, epoch=epoch, **options)


def batches_of(data, epoch=1, **options):
    return list(iterator(data, epoch, **options).next_epoch_itr())


def test_fairseqs_iterator_is_made_anew_for_each_epoch(corpus):
    data = dataset(corpus, max_samples=12_000)
    t = task()
    assert not t.can_reuse_epoch_itr(data)
    first, second = batches_of(data, 1), batches_of(data, 2)
    for batches in (first, second):
        assert sorted(i for b in batches for i in b["id"].tolist()) == list(range(80))
    assert equal(first, batches_of(data, 1))
    assert not equal([b["id"] for b in first], [b["id"] for b in second])


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_load_the_same(corpus, context):
    data = dataset(corpus, max_samples=12_000, speaker_dropout=0.5)
    data.set_epoch(3)
    indices = [b.tolist() for b in data.batch_by_size(data.ordered_indices(), 100_000)][:6]
    alone = [data.collater([data[i] for i in batch]) for batch in indices]
    loader = torch.utils.data.DataLoader(
        data, batch_sampler=indices, collate_fn=data.collater, num_workers=2, multiprocessing_context=context
    )
    assert equal(list(loader), alone)


def test_fairseq_with_workers_and_a_buffer_gives_the_same(corpus):
    data = dataset(corpus, max_samples=12_000, speaker_dropout=0.5)
    for epoch in (1, 2):
        alone = batches_of(data, epoch)
        assert equal(batches_of(data, epoch, num_workers=2, data_buffer_size=4), alone)
        assert equal(batches_of(data, epoch, data_buffer_size=4), alone)


def test_workers_end_with_their_epoch(corpus):
    """At once, and without garbage collection (which takes five seconds for each worker)."""
    data = dataset(corpus, max_samples=12_000)
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        for epoch in (1, 2):
            batches = iterator(data, epoch, num_workers=2)
            for _ in batches.next_epoch_itr():
                pass
            assert len(set(multiprocessing.active_children()) - before) == 2
            start = time.monotonic()
            del batches
            assert not set(multiprocessing.active_children()) - before
            assert time.monotonic() - start < 4
    finally:
        gc.enable()


def test_workers_end_though_something_holds_on_to_their_iterator(corpus):
    """As the traceback does of an exception that OmegaConf raises and fairseq catches: it holds each validation's."""
    before = set(multiprocessing.active_children())
    batches = iterator(dataset(corpus, max_samples=12_000), 1, num_workers=2, data_buffer_size=4)
    assert sum(1 for _ in batches.next_epoch_itr()) > 2
    deadline = time.monotonic() + 4
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - before


def test_pickling(corpus):
    data = dataset(corpus, max_samples=12_000)
    data.set_epoch(4)
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert equal([copy[i] for i in range(5)], [data[i] for i in range(5)])


def test_the_order_of_loading_does_not_matter(corpus):
    data = dataset(corpus, max_samples=12_000, speaker_dropout=0.5)
    forward = [data[i] for i in range(80)]
    torch.manual_seed(123)
    np.random.seed(123)
    backward = [data[i] for i in reversed(range(80))]
    assert equal(forward, backward[::-1])


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_share_an_epoch(corpus, processes):
    """Every utterance on one process, heard there as it is heard on a single process."""
    data = dataset(corpus, max_samples=12_000)
    whole = {i: data[i] for i in range(80)}
    seen = []
    for rank in range(processes):
        for batch in batches_of(data, num_shards=processes, shard_id=rank):
            if not batch:
                continue  # fairseq evens the number of batches out
            seen += batch["id"].tolist()
            for row, index in enumerate(batch["id"].tolist()):
                n = len(whole[index]["source"])
                assert torch.equal(batch["net_input"]["source"][row, :n], whole[index]["source"])
                frames = len(whole[index]["mask"])
                assert batch["net_input"]["mask_indices"][row, :frames].tolist() == whole[index]["mask"].tolist()
    assert sorted(seen) == list(range(80))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("done", [0, 1, 4, -1])
def test_resuming_in_the_middle_of_an_epoch(corpus, done, workers):
    """A new process that is handed the iterator's state goes on with the very batches that were left, then the next epoch."""
    options = {"num_workers": workers}
    data = dataset(corpus, max_samples=12_000, speaker_dropout=0.5)
    expected = [batches_of(data, epoch) for epoch in (2, 3)]
    running = iterator(data, epoch=2, **options)
    stream = running.next_epoch_itr()
    done %= len(expected[0])
    for _ in range(done):
        next(stream)
    state = pickle.loads(pickle.dumps(running.state_dict()))  # noqa: S301
    assert (state["epoch"], state["iterations_in_epoch"]) == (2, done)

    fresh = dataset(corpus, max_samples=12_000, speaker_dropout=0.5)
    resumed = iterator(fresh, epoch=state["epoch"], **options)
    resumed.load_state_dict(state)
    rest = list(resumed.next_epoch_itr())
    assert equal(rest, expected[0][done:])
    state = resumed.state_dict()
    assert (state["epoch"], state["iterations_in_epoch"]) == (3, 0)
    assert equal(list(iterator(fresh, epoch=3, **options).next_epoch_itr()), expected[1])
    assert isinstance(resumed, EpochBatchIterator)
