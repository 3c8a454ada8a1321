"""Augmentation: a function of seed, epoch and utterance; exact lengths; in training only; the same after a kill."""

import numpy as np
import pytest
import soundfile
import torch
from corpus import make_corpus
from fairseq.tasks.fairseq_task import FairseqTask
from finetuning import make_pretrained_corpus
from omegaconf import OmegaConf
from training import train

from emohubert.core.errors import InputError
from emohubert.corpus import audio
from emohubert.corpus.manifest import read_split
from emohubert.data import degradations
from emohubert.data.augmentation import Augmentation
from emohubert.data.masking import Masking
from emohubert.data.speed_perturbation import at_speeds
from emohubert.data.utterance_labelled import UtteranceLabelledSpeech
from emohubert.models.from_pretrained import load_encoder
from emohubert.models.speaker_normalisation import AverageSpeaker
from emohubert.pretrained.safe_files import load_state
from emohubert.provenance import records
from emohubert.tasks.emotion_finetuning import EmotionFinetuningConfig
from emohubert.tasks.trained import load_trained

EVERYTHING = {"speed": [0.9, 1.0, 1.1], "noise": 0.6, "reverb": 0.4}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sixty training utterances of 0.3 to 2 s, among them one of exactly one frame."""
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, train=60)
    soundfile.write(folder / "audio" / "train007.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 400), 16_000)
    path = folder / "manifest" / "train.tsv"
    lines = path.read_text().splitlines()
    lines[8] = "train007.wav\t400"
    path.write_text("\n".join(lines) + "\n")
    return folder


def dataset(corpus, split="train", augmentation=EVERYTHING, **options):
    utterances = read_split(corpus / "manifest", split)
    transform = None if augmentation is None else Augmentation(**augmentation)
    return UtteranceLabelledSpeech(utterances, np.arange(len(utterances)), transform=transform, **options)


def sources(data, epoch=1, **options):
    """Waveforms by utterance, as fairseq's iterator delivers them; and the largest batch, padding counted."""
    batches = FairseqTask(None).get_batch_iterator(data, max_tokens=64_000, seed=1, epoch=epoch, **options)
    found, largest = {}, 0
    for batch in batches.next_epoch_itr(shuffle=False):
        source, lengths = batch["net_input"]["source"], batch["net_input"]["lengths"]
        largest = max(largest, source.numel())
        found |= {int(i): row[:n] for i, row, n in zip(batch["id"], source, lengths, strict=True)}
    return found, largest


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------- seed, epoch, utterance alone


def test_neither_batches_nor_workers_nor_order_change_an_utterance(corpus):
    data = dataset(corpus, max_samples=12_000, normalise=True)
    for epoch in (1, 2):
        found, _ = sources(data, epoch)
        assert sorted(found) == list(range(60))
        assert same(found, sources(data, epoch, num_workers=2, data_buffer_size=3)[0])
        assert same(found, sources(data, epoch, max_sentences=1)[0])
        alone = dataset(corpus, max_samples=12_000, normalise=True)
        alone.set_epoch(epoch)
        assert all(torch.equal(alone[i]["source"], found[i]) for i in (41, 3, 59))


def test_epochs_and_seeds_differ_and_come_back(corpus):
    data, other = dataset(corpus), dataset(corpus, seed=2)
    first, second, again = (sources(data, epoch)[0] for epoch in (1, 2, 1))
    assert same(first, again)
    for changed in (second, sources(other, 1)[0]):
        assert sum(len(first[i]) != len(changed[i]) or not torch.equal(first[i], changed[i]) for i in first) > 45


def test_outside_of_training_every_epoch_is_alike(corpus):
    data = dataset(corpus, "valid", training=False)
    first, _ = sources(data, 1)
    assert same(first, sources(data, 5)[0])


# ---------------------------------------------------------------------------------------------------- lengths and budgets


@pytest.mark.parametrize("limit", [None, 12_000])
def test_sizes_are_exact_and_the_budget_holds(corpus, limit):
    data = dataset(corpus, augmentation={"speed": [0.5, 0.9, 1.0, 1.1, 2.0]}, max_samples=limit)
    seen = set()
    for epoch in (1, 2, 3):
        found, largest = sources(data, epoch)
        assert largest <= 64_000
        for index, wave in found.items():
            n = min(int(data.split.n_samples[index]), limit or 10**9)
            assert len(wave) == data.size(index) == data.num_tokens(index) == data.num_tokens_vec(np.array([index]))[0]
            possible = {degradations.speed_length(n, f) for f in (0.5, 0.9, 1, 1.1, 2)}
            assert len(wave) in possible and len(wave) >= 400
            seen.add(round(len(wave) / n, 1))
    assert seen == {0.5, 0.9, 1.0, 1.1, 2.0}


def test_masks_follow_the_new_length(corpus):
    data = dataset(corpus, masking=Masking(0.5, 4))
    for index in range(60):
        item = data[index]
        assert item["mask"].shape == (audio.n_frames(len(item["source"])),)
    batch = data.collater([data[i] for i in range(20)])
    assert batch["net_input"]["mask_indices"].shape == (20, audio.n_frames(batch["net_input"]["source"].shape[1]))


def test_an_utterance_of_one_frame_keeps_its_speed(corpus):
    data = dataset(corpus, augmentation={"speed": [1.1, 2]})
    found, _ = sources(data)
    assert len(found[7]) == 400
    np.testing.assert_array_equal(found[7], soundfile.read(corpus / "audio" / "train007.wav", dtype="float32")[0])


def test_speeds_are_equally_likely():
    augmentation = Augmentation(speed=[0.9, 1.0, 1.1])
    lengths = [augmentation.length(9900, np.random.default_rng([1, i])) for i in range(3000)]
    counts = [lengths.count(n) for n in (11_000, 9900, 9000)]
    assert sum(counts) == 3000 and max(abs(c - 1000) for c in counts) < 4 * np.sqrt(3000 * 2 / 9)


# ------------------------------------------------------------------------------------------------------- what is done


def test_order_by_hand(corpus, tmp_path):
    """Crop, speed, reverberation, noise, normalisation: nothing but the wet speech and a tone is left, 10 dB apart."""
    for name in ("rooms", "noise"):
        (tmp_path / name).mkdir()
    response = degradations.impulse_response(0.3, 0, np.random.default_rng(3))
    soundfile.write(tmp_path / "rooms" / "room.wav", response / np.abs(response).max(), 16_000, subtype="FLOAT")
    time = np.arange(16_000) / 16_000
    soundfile.write(tmp_path / "noise" / "tone.wav", 0.1 * np.sin(2 * np.pi * 3000 * time), 16_000, subtype="FLOAT")
    options = {"reverb_files": tmp_path / "rooms", "noise_files": tmp_path / "noise", "noise_snr": [10, 10]}
    data = dataset(corpus, augmentation={"speed": [0.8], "reverb": 1.0, "noise": 1.0, **options}, max_samples=9600, normalise=True)
    index = int(np.argmax(data.split.n_samples))
    start, stop = data.crop(index)
    assert stop - start == 9600 and data.size(index) == 12_000
    slow = degradations.change_speed(audio.read(data.split.audio(index), start, stop), 0.8)
    wet = degradations.reverberate(slow, audio.read(tmp_path / "rooms" / "room.wav")).astype(np.float64)
    phase = 2 * np.pi * 3000 * time[:12_000]
    found = data[index]["source"].numpy()
    parts = np.column_stack([wet, np.sin(phase), np.cos(phase), np.ones(12_000)])
    weights, *_ = np.linalg.lstsq(parts, found, rcond=None)
    np.testing.assert_allclose(parts @ weights, found, atol=1e-4)
    speech, tone = degradations.power(weights[0] * wet), degradations.power(parts[:, 1:3] @ weights[1:3])
    assert 10 * np.log10(speech / tone) == pytest.approx(10, abs=0.02)
    assert found.mean() == pytest.approx(0, abs=1e-5) and found.std() == pytest.approx(1, abs=1e-3)


def test_probabilities_and_ranges_are_kept():
    wave = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    noisy = Augmentation(noise=0.3, noise_snr=(5, 15))
    measured = []
    for seed in range(1000):
        added = noisy(wave, np.random.default_rng(seed)).astype(np.float64) - wave
        if added.any():
            measured.append(10 * np.log10(degradations.power(wave) / degradations.power(added)))
    assert abs(len(measured) - 300) < 4 * np.sqrt(1000 * 0.3 * 0.7)
    assert 5 - 0.01 <= min(measured) < 5.5 and 14.5 < max(measured) <= 15 + 0.01
    wet = Augmentation(reverb=1.0)
    assert all(
        degradations.power(wet(wave, np.random.default_rng(s))) == pytest.approx(degradations.power(wave), rel=1e-4) for s in range(5)
    )
    assert Augmentation(noise=0.5, speed=[]).keeps_length and not Augmentation(speed=[0.9]).keeps_length


def test_nothing_by_default():
    assert not Augmentation() and not Augmentation(speed=[1.0])
    assert all(Augmentation(**{key: value}) for key, value in EVERYTHING.items())


# ----------------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"speed": [0.9, 3]}, r"task\.augment_speed=\[0.9, 3\]: a speed factor of 3; give numbers from 0.5 to 2"),
        ({"noise": 1.5}, r"task\.augment_noise=1.5: not a probability; give a number from 0 to 1"),
        ({"reverb": float("nan")}, "task.augment_reverb=nan: not a probability"),
        ({"noise_snr": [30, 0]}, r"task\.augment_noise_snr=\[30, 0\]: not a range; give \[lowest,highest\]"),
        ({"noise_snr": [10]}, r"task\.augment_noise_snr=\[10\]: not a range"),
        ({"reverb_t60": [0, 1]}, "task.augment_reverb_t60"),
        ({"noise": 0.5, "noise_files": "/nowhere"}, "task.augment_noise_files: /nowhere: no such folder"),
        ({"reverb_files": "/nowhere"}, "task.augment_reverb_files=/nowhere is never used, since task.augment_reverb is 0"),
    ],
)
def test_bad_values_are_one_line(options, expected):
    with pytest.raises(InputError, match=expected) as caught:
        Augmentation(**options)
    assert "\n" not in str(caught.value)


def test_the_config_lists_every_option_with_its_default():
    from training import ROOT

    written = OmegaConf.load(ROOT / "config" / "_finetuning.yaml").task
    known = OmegaConf.structured(EmotionFinetuningConfig)
    keys = {key for key in known if key.startswith("augment_")}
    assert len(keys) == 7 and {k: written[k] for k in keys} == {k: known[k] for k in keys}


# ------------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    return make_pretrained_corpus(folder, updates=1, seconds=(0.3, 0.8), train=16, valid=4, test=2)


def finetune(folder, name, *overrides):
    options = [f"task.data={folder}/manifest", f"model.init_from={folder}/hubert/checkpoint_last.pt"]
    options += [f"checkpoint.save_dir={folder}/{name}", "model.mask_channel_length=4", "dataset.max_tokens=20000"]
    return train("ser_classification_tiny", *options, *overrides)


AUGMENTED = ["task.augment_speed=[0.9,1.0,1.1]", "task.augment_noise=0.7", "task.augment_noise_snr=[5,20]", "task.augment_reverb=0.5"]


@pytest.mark.slow
def test_training_with_everything_resumes_to_the_same_weights(pretrained):
    """In the middle of an epoch; and the checkpoint needs none of it to predict."""
    for name, stops in {"whole": [9], "stopped": [5, 9]}.items():
        for updates in stops:
            steps = ["checkpoint.save_interval_updates=5", f"optimization.max_update={updates}", "optimization.max_epoch=0"]
            finished = finetune(pretrained, name, *AUGMENTED, *steps)
            assert finished.returncode == 0, finished.stdout[-3000:]
    whole, stopped = (load_state(pretrained / name / "checkpoint_last.pt") for name in ("whole", "stopped"))
    assert whole["optimizer_history"][-1]["num_updates"] == stopped["optimizer_history"][-1]["num_updates"] == 9
    assert all(torch.equal(whole["model"][key], stopped["model"][key]) for key in whole["model"])
    task, _ = load_trained(pretrained / "whole" / "checkpoint_last.pt")
    split = read_split(pretrained / "manifest", "test")
    data = task.make_dataset(split, training=False)
    assert data.transform is None
    np.testing.assert_array_equal(data.waveform(0, 0, int(split.n_samples[0])), audio.read(split.audio(0)))
    assert task.make_dataset(split, training=True).transform


@pytest.mark.slow
def test_a_bad_option_ends_training_in_one_line(pretrained):
    finished = finetune(pretrained, "bad", "task.augment_noise=2")
    errors = [line for line in finished.stdout.splitlines() if line.startswith("error: ")]
    assert finished.returncode == 2 and errors == ["error: task.augment_noise=2.0: not a probability; give a number from 0 to 1"]


@pytest.mark.slow
def test_frozen_features_are_not_cached_under_augmentation(pretrained):
    finished = finetune(pretrained, "frozen", *AUGMENTED, "model.freeze=all", "optimization.max_update=2")
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert "task.augment_… changes waveforms from epoch to epoch: features are not cached" in finished.stdout


def test_copies_at_other_speeds(corpus):
    """What change_speed makes of the whole file, by other speakers; lines and records are those of the file."""
    split = read_split(corpus / "manifest", "train")
    copies = at_speeds(split, [0.8, 1.25])
    n, at = len(split), 2 * len(split) + 3
    whole = degradations.change_speed(audio.read(split.audio(3)), 1.25)
    assert len(copies) == 3 * n and copies.n_samples[at] == len(whole) == -(-copies.n_samples[3] * 4 // 5)
    assert np.array_equal(copies.read(at), whole) and np.array_equal(copies.read(at, 320, 700), whole[320:700])
    assert np.array_equal(copies.read(3), audio.read(split.audio(3))) and copies.audio(at) == split.audio(3)
    assert copies.speakers[at] == f"{split.speakers[3]}@1.25" and copies.speakers[3] == split.speakers[3]
    assert copies.emotions[at] == split.emotions[3] and copies.where(at) == split.where(3)
    ((own, indices),) = copies.of_directories([3, at, 4])
    assert own is split and indices.tolist() == [3, 4]
    for factors in ([1.0, 0.9], [0.9, 0.9], [3.0]):
        with pytest.raises(InputError, match="task.speed_perturbation"):
            at_speeds(split, factors)


@pytest.mark.slow
def test_a_training_with_copies_at_other_speeds(tmp_path):
    """Cached features are those of the changed waveform, each copy's speaker is normalised alone, and the record has each file once."""
    corpus = make_pretrained_corpus(tmp_path)
    options = ["task.speed_perturbation=[0.8]", "model.freeze=all", "model.pooling=mean", "model.speaker_normalisation=true"]
    finetune(corpus, "copies", "optimization.max_epoch=2", *options)
    split = read_split(corpus / "manifest", "train")
    (record,) = (corpus / "copies").glob("train-*.seen")
    assert sorted(records.read(record).utterances.paths) == sorted(split.paths)
    task, model = load_trained(corpus / "copies" / "checkpoint_last.pt")
    known = sorted(set(split.speakers))
    assert task.voices == sorted([*known, *(f"{name}@0.8" for name in known)])
    vectors = {}
    for factor in (1, 0.8):
        for i in range(len(split)):
            x = torch.from_numpy(degradations.change_speed(audio.read(split.audio(i)), factor))[None]
            features, (frames,) = load_encoder(corpus / "hubert" / "checkpoint_last.pt").features(x, [x.size(1)], [2])
            vectors.setdefault(split.speakers[i] + "@0.8" * (factor != 1), []).append(features[2][0, :frames].numpy().mean(0))
    for row, name in enumerate(task.voices, 1):
        mean, _ = AverageSpeaker.of(list(map(np.array, vectors.values()))).statistics(np.array(vectors[name]))
        np.testing.assert_allclose(model.normalisation.table[0, row], mean, atol=1e-3)
