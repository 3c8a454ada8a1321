"""Columns are lists of str to whoever reads them, files are read as Python reads text, and a long manifest takes little of both."""

import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import run

from emohubert.core.errors import InputError
from emohubert.corpus import string_columns
from emohubert.corpus.manifest import read_split
from emohubert.corpus.string_columns import KeptFile, Strings, Table, compact

LINES = st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=5), max_size=30)


def in_blocks(lines, size=4):
    encoded = [line.encode() for line in lines]
    return [encoded[i : i + size] for i in range(0, len(lines), size)]


# ------------------------------------------------------------------------------------------------------------- columns


@settings(max_examples=150, deadline=None)
@given(lines=LINES, other=LINES, data=st.data())
def test_a_column_is_a_list(lines, other, data):
    column = Strings(in_blocks(lines))
    assert list(column) == lines and len(column) == len(lines) and bool(column) == bool(lines)
    assert column == lines and lines == column
    assert (column == other) == (lines == other) and (column == Strings(in_blocks(other))) == (lines == other)
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


def test_what_repeats_is_shared_and_what_does_not_is_joined():
    few, many = [f"s{i % 2000}" for i in range(100_000)], [f"u{i}" for i in range(100_000)]
    shared, joined = (compact(lambda lines=lines: in_blocks(lines, 1000)) for lines in (few, many))
    assert type(shared) is list and shared == few and len({id(line) for line in shared}) == 2000
    assert type(joined) is Strings and joined == many
    late = few[:50_000] + many
    assert compact(lambda: in_blocks(late, 1000)) == late


# --------------------------------------------------------------------------------------------------------------- files


@pytest.fixture(params=[1 << 20, -1], ids=["in memory", "kept open"])
def keep(request, monkeypatch):
    """Both ways in which a file is kept."""
    monkeypatch.setattr(string_columns, "_SMALL", request.param)
    return request.param


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("aü\n\r\t \u2028\x0b\ufeff"), max_size=40), block=st.integers(1, 9), small=st.booleans())
def test_lines_are_those_that_python_reads(tmp_path_factory, text, block, small):
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(text.encode())
    expected = path.read_text(encoding="utf-8-sig").split("\n")
    expected = expected[:-1] if expected[-1] == "" else expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(string_columns, "_SMALL", 1 << 20 if small else -1)
        patch.setattr(KeptFile.blocks, "__defaults__", (block,))
        found = [line.decode() for lines in KeptFile(path).lines() for line in lines]
    assert found == expected


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=30) | st.lists(st.sampled_from([b"a", b"\n", b"\xc3", b"\xbc", b"\xe2\x80", b"\xef\xbb\xbf"])).map(b"".join))
def test_bytes_that_are_not_text_are_found_where_python_finds_them(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.txt"
    path.write_bytes(data)
    try:
        path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        with pytest.raises(UnicodeDecodeError) as caught:
            list(KeptFile(path).lines())
        if b"\n" not in data:
            assert (caught.value.start, caught.value.reason) == (error.start, error.reason)
        assert caught.value.start == error.start
    else:
        list(KeptFile(path).lines())


def test_a_kept_file_stays_as_it_was(tmp_path, keep):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n")
    file = KeptFile(path)
    (tmp_path / "b.txt").write_bytes(b"eins\nzwei\n")
    (tmp_path / "b.txt").replace(path)
    assert file.read(4, 7) == b"two" and list(file.lines()) == [[b"one", b"two"]]
    path.unlink()
    assert file.read(0, 100) == b"one\ntwo\n"


def test_a_large_file_that_is_written_to_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(string_columns, "_SMALL", -1)
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n")
    file = KeptFile(path)
    time.sleep(0.05)
    with path.open("ab") as f:
        f.write(b"three\n")
    with pytest.raises(InputError, match=r"a\.txt: was changed while it was in use; start again"):
        file.read(0, 3)


def test_a_column_of_a_table_is_read_when_it_is_asked_for(tmp_path, keep):
    path = tmp_path / "t.tsv"
    path.write_text("id\tsex\tnote\n" + "".join(f"u{i}\t{'fm'[i % 2]}\t\n" for i in range(40_000)))
    table = Table(path)
    assert list(table) == ["id", "sex", "note"] and table.rows == 40_000 and "sex" in table and "age" not in table and not table._columns
    path.unlink()
    assert table["id"] == [f"u{i}" for i in range(40_000)] and type(table["id"]) is Strings
    assert table["sex"] == ["f", "m"] * 20_000 and len({id(line) for line in table["sex"]}) == 2
    assert table.get("note") == [""] * 40_000 and table.get("age") is None
    assert table["id"] is table["id"]
    with pytest.raises(KeyError):
        table["age"]
    assert table == {"id": [f"u{i}" for i in range(40_000)], "sex": ["f", "m"] * 20_000, "note": [""] * 40_000}


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
        assert seconds < 10 and 1 < growth <= highest + 1 and highest < 60
    assert float(rows["worker"][-2]) < 20
