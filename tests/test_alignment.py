"""Label files against fairseq's own alignment of labels and frames; every way in which a label file can be wrong."""

import multiprocessing
import pickle
import re
import resource
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from corpus import LABELS, make_corpus, make_labels
from fairseq.data import Dictionary
from fairseq.models.hubert.hubert import HubertModel
from hypothesis import given, settings
from hypothesis import strategies as st

from emohubert.core.errors import InputError
from emohubert.corpus.audio import n_frames
from emohubert.corpus.frame_labels import NO_LABEL, read_frame_labels, state_hop
from emohubert.corpus.manifest import read_dictionary, read_split

SYMBOLS = [str(i) for i in range(10)]
HOPS = (320, 160)


def write(path, rows):
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
    return path


def random_rows(n_samples, hop=320, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, classes, n_frames(int(n), hop)) for n in n_samples]


def error_of(*arguments):
    with pytest.raises(InputError) as caught:
        read_frame_labels(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stock_targets(line, frames, hop):
    """What fairseq's HubertModel makes of one utterance's labels: its targets, for the frames that it keeps."""
    model = SimpleNamespace(feat2tar_ratio=(16_000 / hop) * 320 / 16_000)
    features, (targets,) = HubertModel.forward_targets(model, torch.zeros(1, 3, frames), [torch.as_tensor(line)[None]])
    assert features.shape[2] == targets.shape[1]
    return targets[0].numpy()


# -------------------------------------------------------------------------------------------------- against fairseq


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(400, 20_000), min_size=1, max_size=6), st.sampled_from(HOPS), st.integers(0, 1000))
def test_targets_are_those_of_fairseq(tmp_path_factory, lengths, hop, seed):
    """At a hop of 160, fairseq drops a last frame whose label exists; here it keeps its label. Everything else is equal."""
    lengths = [*lengths, 20_000]
    rows = random_rows(lengths, hop, seed=seed)
    labels = read_frame_labels(write(tmp_path_factory.getbasetemp() / "x.km", rows), SYMBOLS, lengths)
    assert labels.hop == hop
    for i, (n, row) in enumerate(zip(lengths, rows, strict=True)):
        frames = n_frames(n)
        targets = labels.targets(i, 0, frames)
        stock = stock_targets(row, frames, hop)
        assert targets.dtype == np.int64
        assert targets.shape == (frames,)
        np.testing.assert_array_equal(targets[: len(stock)], stock)
        assert len(stock) in ((frames,) if hop == 320 else (frames, frames - 1))
        np.testing.assert_array_equal(targets, row[:: 320 // hop][:frames])


@settings(max_examples=50, deadline=None)
@given(st.integers(2000, 50_000), st.sampled_from(HOPS), st.data())
def test_a_crop_takes_its_part_of_the_labels(tmp_path_factory, n, hop, data):
    labels = read_frame_labels(write(tmp_path_factory.getbasetemp() / "x.km", random_rows([n], hop)), SYMBOLS, [n])
    whole = labels.targets(0, 0, n_frames(n))
    first = data.draw(st.integers(0, n_frames(n) - 1))
    frames = data.draw(st.integers(0, n_frames(n) - first))
    np.testing.assert_array_equal(labels.targets(0, first, frames), whole[first : first + frames])


def test_ids_are_those_of_fairseqs_dictionary_without_its_special_symbols(tmp_path):
    symbols = ["7", "3", "0", "12"]
    (tmp_path / "dict.km.txt").write_text("".join(f"{s} 1\n" for s in symbols))
    line = "12 0 0 3 7"
    (tmp_path / "x.km").write_text(line + "\n")
    stock = Dictionary.load(str(tmp_path / "dict.km.txt"))
    expected = stock.encode_line(line, append_eos=False, add_if_not_exist=False) - stock.nspecial
    labels = read_frame_labels(tmp_path / "x.km", read_dictionary(tmp_path / "dict.km.txt"), [400 + 4 * 320])
    assert labels.targets(0, 0, 5).tolist() == expected.tolist() == [3, 2, 2, 1, 0]


def test_the_corpus_of_the_tests(tmp_path):
    folder = make_corpus(tmp_path)
    for hop in HOPS:
        label_dir = make_labels(folder, tmp_path / f"labels{hop}", hop=hop)
        split = read_split(folder, "train")
        labels = read_frame_labels(label_dir / "train.km", read_dictionary(label_dir / "dict.km.txt"), split.n_samples)
        assert labels.hop == hop
        assert len(labels) == 24
        assert len(labels.labels) == n_frames(split.n_samples, hop).sum() == labels.offsets[-1]
        assert labels.labels.dtype == np.int16
        assert set(labels.labels.tolist()) == set(range(LABELS))


# ------------------------------------------------------------------------------------------------------ what is accepted


@pytest.mark.parametrize("text", [
    b"1 2 3\n4 5\n",
    b"1 2 3\n4 5",
    b"1 2 3\r\n4 5\r\n",
    b"  1\t2   3 \n\t4 5 \n",
    b"1\x0b2\x0c3\n4 5\n",
    b"1 2 3\r\n 4\r5",
])  # fmt: skip
def test_spacing(tmp_path, text):
    (tmp_path / "x.km").write_bytes(text)
    for symbols in (SYMBOLS, [*SYMBOLS, "not a number"]):
        labels = read_frame_labels(tmp_path / "x.km", symbols, [1040, 720])
        assert labels.labels.tolist() == [1, 2, 3, 4, 5]
        assert labels.offsets.tolist() == [0, 3, 5]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.text(" \t\r\v\f", min_size=1, max_size=3), st.integers(0, 9)), max_size=9), min_size=1, max_size=5),
)
def test_parsing_equals_splitting(tmp_path_factory, rows):
    lines = ["".join(f"{space}{label}" for space, label in row) for row in rows]
    data = "\n".join(lines).encode() + b"\n"
    path = tmp_path_factory.getbasetemp() / "x.km"
    path.write_bytes(data)
    symbols, n_samples = SYMBOLS, [400 + 320 * (len(line.split()) - 1) if line.split() else 0 for line in lines]
    for known in (symbols, [*symbols, "x"]):
        labels = read_frame_labels(path, known, n_samples)
        assert labels.labels.tolist() == [int(token) for token in data.split()]
        assert [labels.line(i).tolist() for i in range(len(lines))] == [[int(token) for token in line.split()] for line in lines]


def test_symbols_need_not_be_numbers(tmp_path):
    (tmp_path / "x.km").write_text("aa ü -1\n▁b aa\n")
    labels = read_frame_labels(tmp_path / "x.km", ["▁b", "-1", "aa", "ü"], [1040, 720])
    assert labels.labels.tolist() == [2, 3, 1, 0, 2]


def test_dictionaries_with_gaps_and_huge_numbers(tmp_path):
    (tmp_path / "x.km").write_text(f"5 1000000 5\n{10**15} {10**40}\n")
    for symbols in (["1000000", "5", str(10**15), str(10**40)],):
        assert read_frame_labels(tmp_path / "x.km", symbols, [1040, 720]).labels.tolist() == [1, 0, 1, 2, 3]
    (tmp_path / "x.km").write_text("5 1000000 5\n5 5\n")
    assert read_frame_labels(tmp_path / "x.km", ["1000000", "5"], [1040, 720]).labels.tolist() == [1, 0, 1, 1, 1]


def test_more_labels_than_16_bits_hold(tmp_path):
    classes = 40_000
    labels = read_frame_labels(write(tmp_path / "x.km", [[0, 39_999, 32_768]]), [str(i) for i in range(classes)], [1040])
    assert labels.targets(0, 0, 3).tolist() == [0, 39_999, 32_768]


def test_utterances_under_a_frame_have_empty_lines(tmp_path):
    labels = read_frame_labels(write(tmp_path / "x.km", [[], [1, 2], [], [3]]), SYMBOLS, [399, 720, 0, 400])
    assert [labels.targets(i, 0, k).tolist() for i, k in enumerate((0, 2, 0, 1))] == [[], [1, 2], [], [3]]
    assert read_frame_labels(write(tmp_path / "x.km", [[], []]), SYMBOLS, [399, 0]).labels.shape == (0,)


def test_tools_that_pad_the_last_window_give_up_to_two_labels_more(tmp_path):
    n = 400 + 9 * 320
    for extra in (1, 2):
        labels = read_frame_labels(write(tmp_path / "x.km", [[1] * (10 + extra)]), SYMBOLS, [n])
        assert labels.targets(0, 0, 10).tolist() == [1] * 10


def test_stock_features_lose_a_frame_every_hundred_seconds(tmp_path):
    """What is missing at the end has no target; it is neither an error nor somebody else's label."""
    n = 16_000 * 250
    line = [1] * (n_frames(n) - 2)
    labels = read_frame_labels(write(tmp_path / "x.km", [line, [2]]), SYMBOLS, [n, 400])
    assert labels.targets(0, n_frames(n) - 4, 4).tolist() == [1, 1, NO_LABEL, NO_LABEL]
    assert "x.km:1: " in error_of(write(tmp_path / "x.km", [line[:-1], [2]]), SYMBOLS, [n, 400])


# ------------------------------------------------------------------------------------------------------ what is refused

LENGTHS = [1040, 720, 1040]  # 3, 2 and 3 frames


@pytest.mark.parametrize(("text", "expected"), [
    ("1 2 3\n4 5\n", "x.km: 2 lines for 3 utterances"),
    ("1 2 3\n4 5\n6 7 8\n\n", "x.km: 4 lines for 3 utterances"),
    ("", "x.km: 0 lines for 3 utterances"),
    ("1 2 3\n4 5\n6 7\n", "x.km:3: 2 labels, but the audio (1040 samples) has 3 frames"),
    ("1 2 3\n\n6 7 8\n", "x.km:2: 0 labels, but the audio (720 samples) has 2 frames"),
    ("1 2 3\n4 5 6 7 8\n6 7 8\n", "x.km:2: 5 labels"),
    ("1 2 3\n4 10\n6 7 8\n", "x.km:2: the label “10” is not among the 10 of the dictionary (1 such"),
    ("1 2 3\n4 5\n-1 -1 8\n", "x.km:3: the label “-1” is not among the 10 of the dictionary (2 such"),
    ("1 2 3\n4 5\n6 7 x\n", "x.km:3: the label “x”"),
    ("1.0 2 3\n4 5\n6 7 8\n", "x.km:1: the label “1.0”"),
    ("1 2 3\n4 1_0\n6 7 8\n", "x.km:2: the label “1_0”"),
    ("1 2 3\n4 +5\n6 7 8\n", "x.km:2: the label “+5”"),
    ("1,2,3\n4,5\n6,7,8\n", "x.km:1: the label “1,2,3”"),
    (f"1 2 3\n4 {10**30}\n6 7 8\n", f"x.km:2: the label “{10**30}”"),
    (f"1 2 3\n4 {2**63}\n6 7 8\n", f"x.km:2: the label “{2**63}”"),
    (b"1 2 3\n4 \xff\n6 7 8\n", "x.km:2: the label “\ufffd”"),
    (b"\x93NUMPY\x01\x00v\x00\n" * 3, "x.km:1: the label"),
])  # fmt: skip
def test_malformed_label_files(tmp_path, text, expected):
    path = tmp_path / "x.km"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert f"{tmp_path}/{expected}" in error_of(path, SYMBOLS, LENGTHS)


@pytest.mark.parametrize("symbols", [[], ["a", "b"], ["10", "11"], [f"L{i}" for i in range(10)], ["<unk>"]])
def test_a_dictionary_of_other_labels(tmp_path, symbols):
    """fairseq would train on <unk> everywhere, with a loss of zero."""
    path = write(tmp_path / "x.km", [[1, 2, 3], [4, 5], [6, 7, 8]])
    assert f"x.km:1: the label “1” is not among the {len(symbols)} of the dictionary (8 such labels in all)" in error_of(
        path, symbols, LENGTHS
    )


def test_files_that_are_not_there(tmp_path):
    assert "no such file; make it with" in error_of(tmp_path / "x.km", SYMBOLS, LENGTHS)
    assert "cannot be read" in error_of(tmp_path, SYMBOLS, LENGTHS)


@pytest.mark.parametrize("hop", HOPS)
def test_labels_of_another_manifest(tmp_path, hop):
    """Same number of lines, other audio: the first line that does not fit is named, and how many there are."""
    lengths = np.random.default_rng(0).integers(8000, 64_000, 50)
    rows = random_rows(lengths, hop)
    order = [1, 0, *range(2, 50)]
    while abs(lengths[0] - lengths[1]) < 3 * 320:
        lengths[1] += 320
    message = error_of(write(tmp_path / "x.km", [rows[i] for i in order]), SYMBOLS, lengths)
    assert re.search(rf"x\.km:1: .* at a hop of {hop}; 2 of 50 lines do not fit", message)


def test_a_label_rate_that_is_neither(tmp_path):
    lengths = [16_000, 32_000]
    for hop in (80, 240, 640):
        assert "x.km:1: " in error_of(write(tmp_path / "x.km", random_rows(lengths, hop)), SYMBOLS, lengths)


# ------------------------------------------------------------------------------------------------------- the stated hop


@pytest.mark.parametrize("hop", HOPS)
def test_a_stated_hop_decides_where_counts_fit_both(tmp_path, hop):
    """One frame at a hop of 320, two at 160; both hops allow two labels."""
    state_hop(tmp_path, hop)
    assert read_frame_labels(write(tmp_path / "x.km", [[1, 2]]), SYMBOLS, [560]).hop == hop


@pytest.mark.parametrize("hop", HOPS)
def test_labels_that_contradict_the_stated_hop(tmp_path, hop):
    lengths = [16_000, 32_000]
    path = write(tmp_path / "x.km", random_rows(lengths, hop))
    assert read_frame_labels(path, SYMBOLS, lengths).hop == hop
    state_hop(tmp_path, 480 - hop)
    message = error_of(path, SYMBOLS, lengths)
    assert re.search(rf"x\.km:1: .* at a hop of {480 - hop}, which frames\.km\.json states; 2 of 2 lines do not fit", message)
    state_hop(tmp_path, hop)
    assert read_frame_labels(path, SYMBOLS, lengths).hop == hop


@pytest.mark.parametrize("content", ['{"sample_rate": 16000, "hop": 640}', '{"sample_rate": 8000, "hop": 160}', "[]", "{", '{"hop": 320}'])
def test_a_hop_that_is_not_one(tmp_path, content):
    (tmp_path / "frames.km.json").write_text(content)
    assert "frames.km.json: " in error_of(write(tmp_path / "x.km", [[1, 2]]), SYMBOLS, [720])


# ------------------------------------------------------------------------------------------------------------ size


@pytest.mark.slow
def test_a_hundred_thousand_lines(tmp_path):
    """15 million labels: a second or two, and next to no memory, since they stay in the file."""
    line = " ".join(map(str, np.random.default_rng(0).integers(0, 500, 150))) + "\n"
    (tmp_path / "x.km").write_text(line * 100_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    labels = read_frame_labels(tmp_path / "x.km", [str(i) for i in range(500)], np.full(100_000, 400 + 149 * 320))
    assert time.process_time() - start < 5
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 32e6
    np.testing.assert_array_equal(labels.targets(99_999, 0, 150), np.array(line.split(), dtype=int))
    assert labels.labels.nbytes == 2 * 15_000_000


# ----------------------------------------------------------------------------------------------- labels stay in their file


def sent(labels):
    """What another process gets."""
    return pickle.loads(pickle.dumps(labels))  # noqa: S301 - our own


def test_lines_are_those_of_the_flat_labels(tmp_path):
    lengths = np.random.default_rng(1).integers(0, 6000, 60)
    path = write(tmp_path / "x.km", random_rows(lengths, classes=300))
    path.write_bytes(path.read_bytes().replace(b" 7 ", b"  7\t")[:-1])
    for symbols in ([str(i) for i in range(300)], ["1000", *[str(i) for i in range(300)]]):
        labels = read_frame_labels(path, symbols, lengths)
        expected = [[symbols.index(str(int(token))) for token in line.split()] for line in path.read_text().split("\n")]
        assert [labels.line(i).tolist() for i in range(60)] == expected
        assert np.split(labels.labels, labels.offsets[1:-1])[13].tolist() == expected[13]


def test_labels_that_are_made_again_while_they_are_in_use(tmp_path):
    path = write(tmp_path / "x.km", [[1, 2], [3, 4]])
    labels = read_frame_labels(path, SYMBOLS, [720, 720])
    time.sleep(0.05)
    write(path, [[5, 6], [7, 8]])
    for same in (labels, sent(labels)):
        with pytest.raises(InputError, match=r"x\.km: was changed while it was in use; start again"):
            same.targets(1, 0, 2)
    path.unlink()
    with pytest.raises(InputError, match=r"x\.km: no such file; restore it"):
        labels.line(0)


def test_another_process_reads_the_same_labels(tmp_path):
    """As data-loader workers do that are started afresh, and those that are forked."""
    labels = read_frame_labels(write(tmp_path / "x.km", [[1, 2], [3, 4]]), SYMBOLS, [720, 720])
    assert sent(labels).targets(1, 0, 2).tolist() == [3, 4]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(labels.targets, (1, 0, 2)).tolist() == [3, 4]
