"""Columns are lists of str to whoever reads them, and a long manifest takes little time and memory."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import run

from emohubert.core.errors import InputError
from emohubert.corpus.manifest import Strings, read_column, read_split

LINES = st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=5), max_size=30)


# ------------------------------------------------------------------------------------------------------------- columns


@settings(max_examples=150, deadline=None)
@given(lines=LINES, other=LINES, data=st.data())
def test_a_column_is_a_list(lines, other, data):
    column = Strings(lines)
    assert list(column) == lines and len(column) == len(lines) and bool(column) == bool(lines)
    assert column == lines and lines == column
    assert (column == other) == (lines == other) and (column == Strings(other)) == (lines == other)
    assert column != tuple(lines) and column is not None
    start, stop, step = (data.draw(st.none() | st.integers(-40, 40)) for _ in range(3))
    assert column[start : stop : step or None] == lines[start : stop : step or None]
    for i in range(-len(lines) - 2, len(lines) + 2):
        if -len(lines) <= i < len(lines):
            assert column[i] == column[np.int64(i)] == lines[i]
        else:
            with pytest.raises(IndexError):
                column[i]
    for value in {*lines, "never there"}:
        assert column.count(value) == lines.count(value) and (value in column) == (value in lines)
        if value in lines:
            assert column.index(value) == lines.index(value)
            first = lines.index(value)
            assert (value in lines[first + 1 :]) == (column.count(value) > 1)
        else:
            with pytest.raises(ValueError):
                column.index(value)
    assert np.array(column, dtype=object).tolist() == lines
    assert pickle.loads(pickle.dumps(column)) == lines  # noqa: S301 - our own


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("aü\n\r\t \u2028\x0b\ufeff"), max_size=40))
def test_lines_end_as_in_any_text_file(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(text.encode())
    plain = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert read_column(path) == (plain.removesuffix("\n").split("\n") if plain else [])


# ---------------------------------------------------------------------------------------------------------------- size


def test_sidecars_that_are_not_wanted_are_not_read(tmp_path):
    (tmp_path / "a.tsv").write_text("/r\nx.wav\t400\ny.wav\t500\n")
    (tmp_path / "a.spk").write_text("s\nt\n")
    (tmp_path / "a.emo").write_text("one line\n")
    split = read_split(tmp_path, "a", sidecars=["speakers"])
    assert split.speakers == ["s", "t"] and split.emotions is None
    with pytest.raises(InputError, match=r"a\.emo: 1 lines for the 2 utterances"):
        read_split(tmp_path, "a", sidecars=["speakers", "emotions"])


@pytest.mark.slow
def test_a_hundred_thousand_lines(tmp_path, capsys):
    """Little more than what any set-up takes, and a worker has no copy of them. (Lists of str: 200 MB.)"""
    assert run("tools/bench_manifest.py", "--lines", 100_000, "--dir", tmp_path, "--steps", "pretraining", "finetuning", "worker") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[2:]}
    for step in ("pretraining", "finetuning"):
        seconds, growth, highest = (float(rows[step][i]) for i in (0, 4, 6))
        assert seconds < 10 and 1 < growth <= highest + 1 and highest < 120
    assert float(rows["worker"][-2]) < 20
