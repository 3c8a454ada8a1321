"""Acoustic pieces: frame labels that follow SentencePiece over the runs of units."""

import numpy as np
import pytest
from corpus import make_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import run

from emohubert.core.errors import InputError
from emohubert.corpus.manifest import read_dictionary
from emohubert.pseudo_labels.acoustic_pieces import AcousticPieces, collapse

UNITS = 12


def lines(n=60, seed=0):
    """Utterances of words: fixed sequences of units, each unit held for some frames."""
    rng = np.random.default_rng(seed)
    words = [rng.permutation(UNITS)[: rng.integers(2, 6)] for _ in range(8)]
    made = []
    for _ in range(n):
        units = np.concatenate([words[i] for i in rng.integers(len(words), size=12)])
        made.append(np.repeat(units, rng.integers(1, 6, size=len(units))))
    return made


@pytest.fixture(scope="module")
def pieces():
    return AcousticPieces.fit(lines(), UNITS, 40)


def test_collapse():
    units, lengths = collapse([5, 5, 5, 9, 9, 5])
    assert units.tolist() == [5, 9, 5]
    assert lengths.tolist() == [3, 2, 1]
    assert [a.tolist() for a in collapse([])] == [[], []]


@settings(max_examples=100, deadline=None)
@given(labels=st.lists(st.integers(0, UNITS - 1), max_size=60))
def test_one_piece_per_frame_that_says_the_same_units(pieces, labels):
    """Expanding the pieces back into units gives the utterance; no frame is without a piece."""
    result = pieces.labels(labels)
    assert len(result) == len(labels)
    units, lengths = collapse(labels)
    ends = np.cumsum(lengths)
    run_pieces = [set(result[end - n : end]) for end, n in zip(ends, lengths, strict=True)]
    assert all(len(found) == 1 for found in run_pieces)  # frames of one run have one piece
    assert all(0 <= p < 40 for p in result)
    at = 0
    while at < len(units):
        piece = int(result[ends[at] - 1])
        text = pieces._processor.id_to_piece(piece + 1)
        assert [ord(c) - 0xF0000 for c in text] == units[at : at + len(text)].tolist()
        at += len(text)


def test_frequent_sequences_become_pieces(pieces):
    whole = [pieces.labels(line) for line in lines()]
    runs = np.mean([len(collapse(line)[0]) for line in lines()])
    assert np.mean([len(collapse(line)[0]) for line in whole]) < 0.5 * runs


def test_a_unit_that_was_never_seen_is_a_piece_of_its_own():
    pieces = AcousticPieces.fit([line for line in lines() if 3 not in line] + [np.array([1, 2])], UNITS, 20)
    assert len(set(pieces.labels(np.arange(UNITS)))) > 1
    assert len(pieces.labels([3, 3, 3])) == 3


def test_same_labels_same_model():
    assert AcousticPieces.fit(lines(), UNITS, 30).model == AcousticPieces.fit(lines(), UNITS, 30).model


def test_more_pieces_than_the_labels_have_are_an_error():
    with pytest.raises(InputError, match="ask for fewer"):
        AcousticPieces.fit(lines(10), UNITS, 100_000)


def test_a_damaged_model_is_an_error():
    with pytest.raises(InputError, match="not a SentencePiece model"):
        AcousticPieces(b"nonsense")


def test_make_labels_writes_pieces_beside_the_clusters(tmp_path):
    manifest = make_corpus(tmp_path / "c", seconds=(0.3, 1.0), train=12, valid=3, test=3)
    options = ("--mfcc", "--clusters", 6, "--pieces", 15, "--splits", "train", "valid")
    assert run("tools/make_labels.py", manifest, tmp_path / "l", *options) == 0
    folder = tmp_path / "l" / "mfcc" / "km6-pieces15"
    assert read_dictionary(folder / "dict.km.txt") == [str(i) for i in range(15)]
    model = AcousticPieces((folder / "pieces.model").read_bytes())
    for split in ("train", "valid"):
        units = [np.array(line.split(), int) for line in (tmp_path / "l" / "mfcc" / "km6" / f"{split}.km").read_text().splitlines()]
        found = [list(map(int, line.split())) for line in (folder / f"{split}.km").read_text().splitlines()]
        assert found == [model.labels(u).tolist() for u in units]
    before = {p: p.read_bytes() for p in folder.iterdir()}
    assert run("tools/make_labels.py", manifest, tmp_path / "l", *options, "--overwrite") == 0
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_too_few_pieces_stop_before_any_work(tmp_path, capsys):
    manifest = make_corpus(tmp_path / "c", train=2, valid=1, test=1)
    assert run("tools/make_labels.py", manifest, tmp_path / "l", "--mfcc", "--clusters", 6, "--pieces", 6) == 2
    assert "ask for more pieces than clusters" in capsys.readouterr().err.splitlines()[-1]
