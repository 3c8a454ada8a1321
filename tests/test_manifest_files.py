"""The manifest directory: what is written is read back, fairseq reads it too, and every malformed line is named."""

import math
import re
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from corpus import make_corpus
from fairseq.data import Dictionary
from fairseq.data.audio.hubert_dataset import load_audio
from hypothesis import given, settings
from hypothesis import strategies as st

from emohubert.core.errors import InputError
from emohubert.core.files import read_json
from emohubert.corpus import manifest
from emohubert.corpus.manifest import Utterance, by_speaker, read_dictionary, read_split, share_people, write_corpus, write_splits

TEXT = st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
UTTERANCES = st.lists(
    st.builds(
        Utterance,
        path=TEXT.map(lambda name: f"speech/{name}.wav"),
        n_samples=st.integers(0, 10**9),
        speaker=TEXT,
        emotion=TEXT,
        dimensions=st.fixed_dictionaries({"arousal": st.floats(0, 1), "valence": st.floats(-3, 3) | st.just(math.nan)}),
        meta=st.fixed_dictionaries({"sex": st.text("fm", max_size=1), "sentence": TEXT}),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture
def directory(tmp_path):
    """Three utterances of two speakers with every sidecar."""
    utterances = [
        Utterance("a/one.wav", 16_000, "ann", "happy", {"arousal": 0.5, "valence": 0.25}, {"sex": "f"}),
        Utterance("a/two.wav", 32_000, "bob", "sad", {"arousal": 1, "valence": math.nan}, {"sex": "m"}),
        Utterance("three.flac", 400, "ann", "-", {"arousal": 0, "valence": 1}, {"sex": "f"}),
    ]
    write_splits(tmp_path / "m", tmp_path, {"train": utterances})
    return tmp_path / "m"


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(UTTERANCES)
def test_what_is_written_is_read(tmp_path_factory, utterances):
    folder = tmp_path_factory.getbasetemp() / "round-trip"
    write_splits(folder, "/somewhere", {"train": utterances})
    split = read_split(folder, "train")
    assert len(split) == len(utterances)
    assert str(split.root) == "/somewhere"
    assert split.paths == [u.path for u in utterances]
    assert split.n_samples.tolist() == [u.n_samples for u in utterances]
    assert split.speakers == [u.speaker for u in utterances]
    assert split.ids == [u.id for u in utterances]
    assert split.meta["sex"] == [u.meta["sex"] for u in utterances]
    assert split.meta["sentence"] == [u.meta["sentence"] for u in utterances]
    for name in ("arousal", "valence"):
        np.testing.assert_allclose(split.dimensions[name], [u.dimensions[name] for u in utterances], rtol=1e-5)
    if any(u.emotion != "-" for u in utterances):
        assert split.emotions == [u.emotion for u in utterances]
        assert read_dictionary(folder / "dict.emo.txt") == sorted({u.emotion for u in utterances} - {"-"})
    if any(u.speaker != "<unk>" for u in utterances):
        assert read_dictionary(folder / "dict.spk.txt") == sorted({u.speaker for u in utterances} - {"<unk>"})


def test_the_files_by_hand(directory, tmp_path):
    content = {p.name: p.read_text() for p in directory.iterdir()}
    assert content == {
        "train.tsv": f"{tmp_path}\na/one.wav\t16000\na/two.wav\t32000\nthree.flac\t400\n",
        "train.spk": "ann\nbob\nann\n",
        "train.emo": "happy\nsad\n-\n",
        "train.dim": "arousal\tvalence\n0.5\t0.25\n1\tnan\n0\t1\n",
        "train.meta.tsv": "id\tsex\na/one\tf\na/two\tm\nthree\tf\n",
        "dict.emo.txt": "happy 1\nsad 1\n",
        "dict.spk.txt": "ann 2\nbob 1\n",
    }
    split = read_split(directory, "train")
    assert split.audio(2) == tmp_path / "three.flac"
    assert np.isnan(split.dimensions["valence"][1])
    assert [split.where(1, s).rpartition("/")[2] for s in ("tsv", "spk", "emo", "dim", "meta.tsv")] == [
        "train.tsv:3", "train.spk:2", "train.emo:2", "train.dim:3", "train.meta.tsv:3",
    ]  # fmt: skip


def test_votes_by_hand(tmp_path):
    votes = ({"happy": 2, "bored": 1}, {"happy": 0.5, "sad": 1.5}, {"bored": 3})
    train = [Utterance(f"{i}.wav", 1000, "x", e, votes=v) for i, (e, v) in enumerate(zip(("happy", "sad", "-"), votes, strict=True))]
    write_splits(tmp_path, "/r", {"train": train, "test": [Utterance("b.wav", 1000, "x", "sad")]})
    path = tmp_path / "train.votes"
    assert path.read_text() == "happy\tsad\n2\t0\n0.5\t1.5\n0\t0\n", "what is no class of the dictionary has no column"
    split = read_split(tmp_path, "train")
    np.testing.assert_array_equal(split.shares(["sad", "calm", "happy"]), [[0, 0, 1], [0.75, 0, 0.25], [0, 0, 0]])
    assert read_split(tmp_path, "test").votes is None
    for wrong in ("-1", "nan", "inf", "many", ""):
        path.write_text(f"happy\tsad\n2\t0\n1\t{wrong}\n0\t0\n")
        assert f"train.votes:3: sad is “{wrong}”, not a number of votes" in error_of(read_split, tmp_path, "train")
    path.write_text("happy\n1\n")
    assert "train.votes: 1 lines for the 3 utterances" in error_of(read_split, tmp_path, "train")


def test_fairseq_reads_the_list_and_the_dictionaries(directory, tmp_path):
    root, names, kept, total, sizes = load_audio(directory / "train.tsv", None, None)
    assert (root, names, kept, total, sizes) == (
        str(tmp_path),
        ["a/one.wav", "a/two.wav", "three.flac"],
        [0, 1, 2],
        3,
        [16_000, 32_000, 400],
    )
    dictionary = Dictionary.load(str(directory / "dict.spk.txt"))
    assert dictionary.symbols[dictionary.nspecial :] == read_dictionary(directory / "dict.spk.txt")


def test_a_list_made_for_fairseq_alone(directory):
    for name in ("spk", "emo", "dim", "meta.tsv"):
        (directory / f"train.{name}").unlink()
    split = read_split(directory, "train")
    assert (split.speakers, split.emotions, split.dimensions, split.meta) == (None, None, None, None)
    assert split.ids == ["a/one", "a/two", "three"]


def test_another_speaker_sidecar(directory):
    (directory / "train.room").write_text("r1\nr2\nr1\n")
    assert read_split(directory, "train", speakers="room").speakers == ["r1", "r2", "r1"]
    assert read_split(directory, "train", speakers=None).speakers is None
    (directory / "train.spk").write_text("ann\n")
    read_split(directory, "train", speakers=None)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", ["\r\n", ""])
def test_files_that_windows_has_edited(directory, mark, last):
    before = read_split(directory, "train")
    for path in directory.iterdir():
        text = path.read_text().removesuffix("\n").replace("\n", "\r\n")
        path.write_bytes((mark + text + last).encode())
    after = read_split(directory, "train")
    assert str(after.root) == str(before.root)
    assert (after.paths, after.speakers, after.emotions, after.meta) == (before.paths, before.speakers, before.emotions, before.meta)
    np.testing.assert_array_equal(after.dimensions["arousal"], before.dimensions["arousal"])
    assert read_dictionary(directory / "dict.emo.txt") == ["happy", "sad"]


def test_writing_again_leaves_no_sidecar_of_another_kind(tmp_path):
    full = [Utterance("a.wav", 1000, "x", "happy", {"arousal": 1})]
    bare = [Utterance("a.wav", 1000, "x")]
    write_splits(tmp_path, "/r", {"train": full})
    write_splits(tmp_path, "/r", {"train": bare})
    split = read_split(tmp_path, "train")
    assert (split.emotions, split.dimensions) == (None, None)


@pytest.mark.parametrize("change", [
    {"path": "a\tb.wav"},
    {"path": "a\nb.wav"},
    {"path": "M\udcfcller.wav"},
    {"path": ""},
    {"speaker": "ann\tb"},
    {"speaker": ""},
    {"speaker": " "},
    {"emotion": "happy\r"},
    {"emotion": ""},
])  # fmt: skip
def test_what_a_line_cannot_hold_is_refused(tmp_path, change):
    utterance = replace(Utterance("dir/a.wav", 1000, "ann", "happy"), **change)
    with pytest.raises(InputError, match="rename it") as caught:
        write_splits(tmp_path / "m", "/r", {"train": [utterance]})
    assert f"/r/{utterance.path}" in str(caught.value)
    for root in ("/r\nx", "/r\tx", "/r\rx", "/r\udcfc"):
        with pytest.raises(InputError, match="the name of the folder .* rename it"):
            write_splits(tmp_path / "m", root, {"train": [Utterance("a.wav", 1000, "x")]})
    assert not (tmp_path / "m").exists()


def test_what_cannot_be_written_is_found_before_anything_is(tmp_path):
    good, bad = Utterance("a.wav", 1000, "x"), Utterance("b.wav", 1000, "x\ty")
    for splits in ({"train": [good], "valid": [bad]}, {"train": [good], "valid": []}):
        error_of(write_splits, tmp_path / "m", "/r", splits)
        assert not (tmp_path / "m").exists()


def test_metadata_with_tabs_and_line_breaks_stays_in_its_column(tmp_path):
    write_splits(tmp_path, "/r", {"train": [Utterance("a  b.wav", 1000, "ann", meta={"note": "one\ttwo\r\nthree", "age": 31})]})
    assert read_split(tmp_path, "train").meta == {"id": ["a  b"], "note": ["one two three"], "age": ["31"]}


def test_an_empty_split_is_refused(tmp_path):
    assert f"{tmp_path / 'm' / 'valid.tsv'}: the split would be empty" in error_of(
        write_splits, tmp_path / "m", "/r", {"train": [Utterance("a.wav", 1000, "x")], "valid": []}
    )


# ------------------------------------------------------------------------------------------------------ malformed input


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("train.tsv", None, "train.tsv: no such file"),
    ("train.tsv", "", "train.tsv: lists no audio"),
    ("train.tsv", "/root\n", "train.tsv: lists no audio"),
    ("train.tsv", "a.wav\t16000\nb.wav\t16000\n", "train.tsv:1: “a.wav\t16000” is not a folder"),
    ("train.tsv", "\na.wav\t16000\n", "train.tsv:1: “” is not a folder"),
    ("train.tsv", "/r\na.wav\t10\nb.wav 20\nc.wav\t3\n", "train.tsv:3: “b.wav 20” is not path<TAB>n_samples"),
    ("train.tsv", "/r\na.wav\t10\nb.wav\t-20\nc.wav\t3\n", "train.tsv:3: "),
    ("train.tsv", "/r\na.wav\t10\nb.wav\t2e4\nc.wav\t3\n", "train.tsv:3: "),
    ("train.tsv", "/r\na.wav\t10\nb.wav\t20.0\nc.wav\t3\n", "train.tsv:3: "),
    ("train.tsv", "/r\na.wav\t10\nb.wav\t\nc.wav\t3\n", "train.tsv:3: "),
    ("train.tsv", "/r\na.wav\t10\n\t20\nc.wav\t3\n", "train.tsv:3: "),
    ("train.tsv", "/r\na.wav\t10\n\nc.wav\t3\n", "train.tsv:3: "),
    ("train.tsv", "/r\na.wav\t10\nb.wav\t20\tann\nc.wav\t3\n", "train.tsv:3: "),
    ("train.tsv", "/r\na.wav\t10\nb\tc.wav\t20\nc.wav\t3\n", "train.tsv:3: "),
    ("train.tsv", f"/r\na.wav\t10\nb.wav\t{10**30}\nc.wav\t3\n", "train.tsv:3: "),
    ("train.tsv", b"/r\na.wav\t10\nM\xfcller.wav\t20\n", "train.tsv: not a UTF-8 text file"),
    ("train.tsv", "/r\na.wav\t10\n".encode("utf-16"), "train.tsv: not a UTF-8 text file"),
    ("train.spk", "ann\nbob\n", "train.spk: 2 lines for the 3 utterances"),
    ("train.spk", "ann\nbob\nann\nann\n", "train.spk: 4 lines for the 3 utterances"),
    ("train.spk", "", "train.spk: 0 lines for the 3 utterances"),
    ("train.spk", "ann\n\nann\n", "train.spk:2: empty line"),
    ("train.emo", "happy\nsad\n \n", "train.emo:3: empty line"),
    ("train.emo", "happy\n", "train.emo: 1 lines for the 3 utterances"),
    ("train.dim", "", "train.dim: empty"),
    ("train.dim", "arousal\n1\n2\n", "train.dim: 2 lines for the 3 utterances"),
    ("train.dim", "arousal\n1\nhigh\n3\n", "train.dim:3: arousal is “high”"),
    ("train.dim", "arousal\n1\n0,5\n3\n", "train.dim:3: arousal is “0,5”"),
    ("train.dim", "arousal\tvalence\n1\t2\n1\t\n3\t4\n", "train.dim:3: valence is “”"),
    ("train.dim", "arousal\n1\n2\ninf\n", "train.dim:4: arousal is “inf”"),
    ("train.dim", "arousal\tvalence\n1\t2\n1\n3\t4\n", "train.dim:3: 1 columns where the header has 2"),
    ("train.dim", "arousal\tarousal\n1\t2\n1\t2\n3\t4\n", "train.dim:1: a column is named twice"),
    ("train.meta.tsv", "id\tsex\na\tf\nb\tm\textra\nc\tf\n", "train.meta.tsv:3: 3 columns where the header has 2"),
    ("train.meta.tsv", "id\na\n", "train.meta.tsv: 1 lines for the 3 utterances"),
])  # fmt: skip
def test_malformed_files_are_named(directory, name, content, expected):
    path = directory / name
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"{directory}/{expected}" in error_of(read_split, directory, "train")


def test_problems_of_sidecars_can_be_collected(directory):
    (directory / "train.spk").write_text("ann\n")
    (directory / "train.dim").write_text("arousal\n1\nx\n3\n")
    problems = []
    split = read_split(directory, "train", problems=problems)
    assert [re.search(r"train\.\w+", str(p)).group() for p in problems] == ["train.spk", "train.dim"]
    assert split.emotions == ["happy", "sad", "-"]


def test_folders_that_are_not_manifests(directory, tmp_path):
    assert "no such manifest directory" in error_of(read_split, tmp_path / "x", "train")
    assert "valid.tsv: no such file" in error_of(read_split, directory, "valid")
    assert "no such manifest directory" in error_of(manifest.manifest_directories, tmp_path / "x")
    assert "holds no {split}.tsv" in error_of(manifest.manifest_directories, tmp_path / "m" / "..")


# -------------------------------------------------------------------------------------------------------- dictionaries


def test_dictionaries(tmp_path):
    path = tmp_path / "dict.x.txt"
    path.write_text("ünï çode 3\nb 2\na 1\nnever 0\n")
    assert read_dictionary(path) == ["ünï çode", "b", "a", "never"] and manifest.read_counts(path)["ünï çode"] == 3


@pytest.mark.parametrize(("content", "expected"), [
    (None, "dict.km.txt: no such file"),
    ("", "dict.km.txt: the dictionary is empty"),
    ("0 1\n1\n", "dict.km.txt:2: “1” is not `symbol count`"),
    ("0 1\n1 many\n", "dict.km.txt:2: "),
    ("0 1\n 3\n", "dict.km.txt:2: "),
    ("0 1\n\n", "dict.km.txt:2: "),
    ("0 1\n1 1\n0 5\n", "dict.km.txt:3: the symbol “0” is listed twice"),
    (b"\xff\xff 1\n", "dict.km.txt: not a UTF-8"),
])  # fmt: skip
def test_malformed_dictionaries(tmp_path, content, expected):
    path = tmp_path / "dict.km.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"{tmp_path}/{expected}" in error_of(read_dictionary, path)


# ------------------------------------------------------------------------------------------------------- whole corpora


def test_a_corpus_and_its_facts(tmp_path):
    folder = make_corpus(tmp_path)
    corpus = manifest.read_corpus(folder)
    splits = {name: read_split(folder, name) for name in manifest.splits_of(folder)}
    assert list(splits) == ["train", "valid", "test"]
    assert corpus["counts"] == {".": {"train": 24, "valid": 8, "test": 8}}
    assert (corpus["corpus"], corpus["utterances"], corpus["speakers"]) == ("noise", 40, 4)
    assert corpus["hours"] == pytest.approx(sum(s.n_samples.sum() for s in splits.values()) / 16_000 / 3600, abs=1e-4)
    assert corpus["classes"] == Counter(e for s in splits.values() for e in s.emotions)
    assert manifest.manifest_directories(folder) == [folder]
    for split in splits.values():
        for i in range(len(split)):
            assert split.audio(i).is_file()


def test_folds(tmp_path):
    utterances = [Utterance(f"{i}.wav", 1000 + i, f"s{i}", "happy") for i in range(4)]
    folds = {f"fold{k}": {"train": utterances[:3], "test": utterances[3:]} for k in range(1, 12)}
    write_corpus(tmp_path, "c", "/r", folds, everything=utterances, left_out={"damaged": ["b\udcfc.wav", "a.wav"]})
    assert [d.name for d in manifest.manifest_directories(tmp_path)] == [tmp_path.name, *(f"fold{k}" for k in range(1, 12))]
    assert manifest.splits_of(tmp_path) == ["all"]
    assert manifest.read_corpus(tmp_path / "fold3") == read_json(tmp_path / "corpus.json")
    assert manifest.read_corpus(tmp_path)["left_out"] == {"damaged": ["a.wav", "b\\udcfc.wav"]}
    assert manifest.read_corpus(tmp_path / "fold3" / "deeper") == {}
    assert read_dictionary(tmp_path / "fold1" / "dict.spk.txt") == ["s0", "s1", "s2"]
    assert read_dictionary(tmp_path / "dict.spk.txt") == ["s0", "s1", "s2", "s3"]


def test_the_source_list_has_a_fingerprint_of_its_own(tmp_path):
    def corpus_of(name, utterances):
        write_corpus(tmp_path / name, "c", "/r", {"": {"train": utterances}})
        return manifest.read_corpus(tmp_path / name)["source_sha256"]

    a, b = Utterance("a.wav", 1000, "x"), Utterance("b.wav", 1000, "x")
    assert corpus_of("1", [a, b]) == corpus_of("2", [b, a])
    assert len({corpus_of("1", [a, b]), corpus_of("3", [a]), corpus_of("4", [a, replace(b, n_samples=1001)])}) == 3


def test_writing_twice_gives_the_same_bytes(tmp_path):
    contents = []
    for _ in range(2):
        write_splits(tmp_path / "m", "/r", {"train": [Utterance(f"{i}.wav", 1000, f"s{i % 3}", "ab"[i % 2]) for i in range(20)]})
        contents.append({p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()})
    assert contents[0] == contents[1]


def test_a_hundred_thousand_lines(tmp_path):
    """Reading is a matter of a second, whatever else the machine does."""
    n = 100_000
    (tmp_path / "train.tsv").write_text("/r\n" + "".join(f"dir/utterance-{i}.wav\t{16_000 + i}\n" for i in range(n)))
    (tmp_path / "train.spk").write_text("".join(f"s{i % 999}\n" for i in range(n)))
    start = time.process_time()
    split = read_split(tmp_path, "train")
    assert time.process_time() - start < 5
    assert len(split) == n
    assert split.n_samples[-1] == 16_000 + n - 1


def test_people_of_two_corpora():
    assert share_people("emodb", "emodb") and share_people("emodb", None) and share_people("table", "emodb")
    assert not share_people("emodb", "ravdess")


def test_utterances_of_the_known_speakers():
    found = by_speaker(["b", "<unk>", "a", "b"])
    assert {name: rows.tolist() for name, rows in found.items()} == {"a": [2], "b": [0, 3]} and list(found) == ["a", "b"]
    assert not by_speaker([]) and not by_speaker(["<unk>"])
