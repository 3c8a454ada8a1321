"""Audio in tar shards: Python's tarfile finds the same files in them, and everything hears the same."""

import os
import re
import shutil
import tarfile
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
import torch
from corpus import make_corpus
from finetuning import checkpoint, finetune, make_pretrained_corpus
from hypothesis import given
from hypothesis import strategies as st
from scripts import run

from emohubert.core import files
from emohubert.core.errors import InputError
from emohubert.corpus import audio, check
from emohubert.corpus.manifest import Utterance, read_corpus, read_split, write_corpus, write_splits
from emohubert.corpus.shards import member_name, pack
from emohubert.data.speech import SpeechDataset
from emohubert.pretrained.safe_files import load_state

FORMATS = [  # name, rate, channels, seconds, subtype
    ("speech/a.wav", 16_000, 1, 1.3, "PCM_16"),
    ("speech/b.flac", 16_000, 1, 0.9, "PCM_16"),
    ("speech/b c/ü.v1.WAV", 44_100, 2, 0.7, "PCM_24"),
    ("speech/b c/ü.v2.flac", 22_050, 2, 1.1, "PCM_16"),
    ("100%/float.wav", 8_000, 1, 2.0, "FLOAT"),
    (f"{'deep/' * 40}{'long' * 30}.flac", 48_000, 1, 0.5, "PCM_16"),
    ("x.ogg", 16_000, 1, 1.0, "VORBIS"),
]


def write_audio(path, rate, channels, seconds, subtype, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.9, 0.9, (int(rate * seconds), channels))
    soundfile.write(path, samples, rate, subtype=subtype)
    return -(-len(samples) * 16_000 // rate)


@pytest.fixture
def plain(tmp_path):
    """A corpus of all formats with a fold; returns its manifest directory."""
    root = tmp_path / "audio"
    utterances = [
        Utterance(name, write_audio(root / name, *how, seed=i), f"s{i % 3}", "happy", {"arousal": i}, {"session": f"{i % 2}"})
        for i, (name, *how) in enumerate(FORMATS)
    ]
    folds = {f"fold{k}": {"train": utterances[:-k], "test": utterances[-k:]} for k in (1, 2)}
    write_corpus(tmp_path / "plain", "formats", root, folds, everything=utterances)
    return tmp_path / "plain"


def original_path(name):
    """The path that a member's name was made from."""
    stem, _, ending = name.rpartition(".")
    return os.fsdecode(unquote(stem, errors="surrogateescape").encode("utf-8", "surrogateescape")) + (f".{ending}" if ending else "")


def error_of(function, *arguments, **options):
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def content(folder, pattern="**/*"):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob(pattern) if p.is_file()}


# ------------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("shard_bytes", [1, 200_000, 10**9])
def test_tarfile_finds_the_original_files_where_the_manifest_says(plain, tmp_path, shard_bytes):
    recordings, shards, written = pack(plain, tmp_path / "packed", shard_bytes)
    assert recordings == len(FORMATS) and written == shards == {1: len(FORMATS), 10**9: 1}.get(shard_bytes, shards)
    members = {}
    for path in sorted((tmp_path / "packed" / "shards").glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                assert (member.uid, member.gid, member.uname, member.mode, member.isreg()) == (0, 0, "", 0o644, True)
                members[f"shards/{path.name}:{member.offset_data}:{member.size}"] = member.name, tar.extractfile(member).read()
    split, packed = read_split(plain, "all"), read_split(tmp_path / "packed", "all")
    assert len(members) == len(FORMATS) and list(packed.paths) == list(members)  # in the order of the list
    for old, new in zip(split.paths, packed.paths, strict=True):
        name, data = members[new]
        assert data == (split.root / old).read_bytes()
        assert original_path(name) == old
    keys = [re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", name).groups() for name, _ in members.values()]  # as WebDataset splits them
    assert [ending for _, ending in keys] == [name.rpartition(".")[2] for name, *_ in FORMATS]
    assert all("." not in key for key, _ in keys) and len(set(keys)) == len(FORMATS)
    if shard_bytes == 200_000:
        sizes = [p.stat().st_size for p in (tmp_path / "packed" / "shards").glob("*.tar")]
        assert 1 < len(sizes) < len(FORMATS) and max(sizes) < 200_000 + max(len(data) for _, data in members.values())


@given(st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1).filter(lambda n: n not in (".", "..")))
def test_names_can_be_turned_back(name):
    for path in (name, f"a.b/{name}", f"{name}.wav"):
        found = member_name(path)
        assert original_path(found) == path
        assert found.isascii() and found.count(".") == 1 and re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", found)


def test_names_that_are_not_utf8_can_be_turned_back():
    assert original_path(member_name("M\udcfcller.wav")) == "M\udcfcller.wav"


def test_the_manifest_stays_the_same_but_for_the_paths(plain, tmp_path):
    pack(plain, tmp_path / "packed")
    assert run("tools/check_manifest.py", tmp_path / "packed" / "fold2", "--allow", "speaker", "--allow", "session") == 0
    old, new = content(plain), content(tmp_path / "packed")
    lists = [name for name in old if name.endswith(".tsv") and not name.endswith(".meta.tsv")]
    assert len(lists) == 5
    for name, data in old.items():
        if name in lists:
            rows = [[line.split("\t")[1] for line in text.decode().splitlines()[1:]] for text in (data, new[name])]
            assert rows[0] == rows[1] and new[name].decode().splitlines()[0] == str(tmp_path / "packed")
        elif name != "corpus.json":
            assert new[name] == data
    assert {name for name in new if not name.startswith("shards/")} == set(old)
    before, after = read_corpus(plain), read_corpus(tmp_path / "packed")
    assert {k: v for k, v in after.items() if k not in ("root", "packed_from")} == {k: v for k, v in before.items() if k != "root"}
    for folder, name in (("", "all"), ("fold2", "train"), ("fold1", "test")):
        one, other = read_split(plain / folder, name), read_split(tmp_path / "packed" / folder, name)
        assert one.ids == other.ids and one.speakers == other.speakers and one.meta == other.meta


def test_ids_stay_where_there_was_no_table(plain, tmp_path):
    (plain / "all.meta.tsv").unlink()
    expected = read_split(plain, "all").ids
    (plain / "fold1" / "train.meta.tsv").write_text("session\n" + "x\n" * (len(FORMATS) - 1))
    pack(plain, tmp_path / "packed")
    assert read_split(tmp_path / "packed", "all").ids == expected
    assert read_split(tmp_path / "packed" / "fold1", "train").meta == {"id": expected[:-1], "session": ["x"] * (len(FORMATS) - 1)}
    (tmp_path / "packed" / "all.meta.tsv").unlink()
    bare = read_split(tmp_path / "packed", "all")
    assert bare.ids == bare.paths and len(set(bare.ids)) == len(FORMATS)


def test_unlabelled_manifests_of_packed_audio_keep_the_ids(plain, tmp_path):
    pack(plain, tmp_path / "packed")
    assert run("tools/unlabelled.py", tmp_path / "packed" / "fold2", tmp_path / "heard", "--train", "train", "test") == 0
    heard = read_split(tmp_path / "heard", "train")
    assert sorted(heard.ids) == sorted(read_split(plain, "all").ids)
    assert audio.read(heard.audio(0)).shape == (heard.n_samples[0],)


# ------------------------------------------------------------------------------------------------------- what is heard


def test_packed_audio_is_heard_bit_for_bit(plain, tmp_path):
    pack(plain, tmp_path / "packed", 200_000)
    old, new = read_split(plain, "all"), read_split(tmp_path / "packed", "all")
    rng = np.random.default_rng(0)
    for i, n in enumerate(old.n_samples.tolist()):
        one, other = old.audio(i), new.audio(i)
        assert audio.probe(one) == audio.probe(other)
        whole = audio.read(one)
        assert np.array_equal(audio.read(other, n_samples=n), whole)
        for start, stop in np.sort(rng.integers(0, n + 1, (5, 2))).tolist():
            part = audio.read(other, start, stop)
            assert np.array_equal(part, audio.read(one, start, stop)) and part.shape == (stop - start,)
        assert audio.content_of(one) == audio.content_of(other)
        samples, rate = soundfile.read(one, dtype="float32", always_2d=True)
        with audio.opened(other) as f:
            assert np.array_equal(f.read(dtype="float32", always_2d=True), samples) and f.samplerate == rate


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_only_the_bytes_that_are_needed_are_read(tmp_path, monkeypatch, ending):
    n = write_audio(tmp_path / "audio" / f"long.{ending}", 16_000, 1, 300, "PCM_16")
    write_splits(tmp_path / "m", tmp_path / "audio", {"train": [Utterance(f"long.{ending}", n, "s")]})
    pack(tmp_path / "m", tmp_path / "packed")
    split, read, readinto = read_split(tmp_path / "packed", "train"), [], audio._Part.readinto
    size = audio.locate(split.audio(0)).size

    def counted(*arguments):
        read.append(readinto(*arguments))
        return read[-1]

    monkeypatch.setattr(audio._Part, "readinto", counted)
    samples = audio.read(split.audio(0), 2_000_000, 2_016_000, n)
    assert len(samples) == 16_000 and 32_000 / 2 < sum(read) < min(size / 5, 1_000_000)


def test_features_and_what_datasets_give_are_the_same(plain, tmp_path):
    pack(plain, tmp_path / "packed")
    for folder in ("plain", "packed"):
        assert run("tools/dump_features.py", tmp_path / folder, "all", tmp_path / "features" / folder, "--mfcc") == 0
    one, other = (content(tmp_path / "features" / folder, "**/*.npy") for folder in ("plain", "packed"))
    assert one and one == other
    datasets = [SpeechDataset(read_split(tmp_path / folder, "all"), max_samples=8_000) for folder in ("plain", "packed")]
    for dataset in datasets:
        dataset.check_audio()
        dataset.set_epoch(3)
    for i in range(len(FORMATS)):
        assert datasets[0].crop(i) == datasets[1].crop(i)
        assert torch.equal(*(d.waveform(i, *d.crop(i)) for d in datasets))


@pytest.mark.slow
def test_training_is_the_same(tmp_path):
    """Pretraining and fine-tuning from packed audio, with workers, end with the same weights, bit for bit."""
    corpus = make_pretrained_corpus(tmp_path / "c", seconds=(0.3, 0.8), train=12, valid=4, test=4)
    pack(corpus / "manifest", tmp_path / "packed", 100_000)
    trained = []
    for folder in (corpus / "manifest", tmp_path / "packed"):
        run_folder = tmp_path / f"run-{folder.name}"
        options = (f"task.data={folder}", f"checkpoint.save_dir={run_folder}", "optimization.max_epoch=2", "dataset.num_workers=1")
        done = finetune(corpus, "classification", *options)
        assert done.returncode == 0, done.stdout[-3000:]
        trained.append(load_state(run_folder / "checkpoint_last.pt")["model"])
    started = load_state(checkpoint(corpus))["model"]
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(trained[0][k], trained[1][k]) for k in trained[0])
    assert any(not torch.equal(v, trained[0][f"backbone.{k}"]) for k, v in started.items() if f"backbone.{k}" in trained[0])


# ---------------------------------------------------------------------------------------------------------- made again


def test_the_same_files_give_the_same_bytes(plain, tmp_path):
    pack(plain, tmp_path / "one", 200_000, jobs=1)
    shutil.copytree(tmp_path / "audio", tmp_path / "moved")  # another root
    for path in plain.glob("**/*.tsv"):
        path.write_text(path.read_text().replace(str(tmp_path / "audio"), str(tmp_path / "moved")))
    pack(plain, tmp_path / "two", 200_000, jobs=3)
    one, other = (content(tmp_path / name / "shards", "*.tar") for name in ("one", "two"))
    assert len(one) > 1 and one == other


def test_a_second_run_makes_what_is_missing_or_changed(plain, tmp_path):
    out = tmp_path / "packed"
    _, shards, _ = pack(plain, out, 200_000)
    whole = content(out)
    times = {p: p.stat().st_mtime_ns for p in out.glob("shards/*.tar")}
    assert pack(plain, out, 200_000)[1:] == (shards, 0)
    assert {p: p.stat().st_mtime_ns for p in times} == times and content(out) == whole
    (out / "shards" / "000001.tar").unlink()
    os.truncate(out / "shards" / "000002.tar", 4000)
    assert pack(plain, out, 200_000)[1:] == (shards, 2)
    assert content(out) == whole
    name, *how = FORMATS[0]
    write_audio(tmp_path / "audio" / name, *how, seed=99)
    assert pack(plain, out, 200_000)[1:] == (shards, 1)
    assert audio.read(read_split(out, "all").audio(0)).tolist() == audio.read(tmp_path / "audio" / name).tolist()
    assert pack(plain, out, 200_000, overwrite=True)[1:] == (shards, shards)
    assert pack(plain, out, 10**9)[1:] == (1, 1)  # larger ones: those that nothing lists any more are removed
    assert sorted(p.name for p in (out / "shards").iterdir()) == ["000000.tar"]


def test_the_program(plain, tmp_path, capsys):
    assert run("tools/pack_audio.py", plain, tmp_path / "packed", "--shard-mb", 1, "--jobs", 2) == 0
    assert f"{tmp_path}/packed: {len(FORMATS)} recordings in 1 shards, 1 of them written now" in capsys.readouterr().out
    assert run("tools/pack_audio.py", plain, plain) == 2
    assert run("tools/pack_audio.py", tmp_path / "packed", tmp_path / "again") == 2
    assert "is in a shard already; pack the original manifest" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- errors


def test_what_cannot_be_packed_is_named_and_does_not_stay(plain, tmp_path, monkeypatch):
    listed, out = plain / "all.tsv", tmp_path / "packed"
    text = listed.read_text()
    listed.write_text(text.replace("x.ogg\t16000", "x.ogg\t16001"))
    assert f"fold1/test.tsv:2: 16000 samples, but {listed}:8 says 16001" in error_of(pack, plain, out)
    listed.write_text(text)
    for path in plain.glob("**/*.tsv"):
        path.write_text(path.read_text().replace("a.wav\t20800", "a.wav\t20801"))
    message = error_of(pack, plain, out)
    assert f"{listed}:2: " in message and "20800 samples at 16 kHz (20800 at 16000 Hz), the manifest says 20801" in message
    assert not list(out.glob("shards/*")) and not list(out.glob("**/*.tsv"))
    for path in plain.glob("**/*.tsv"):
        path.write_text(path.read_text().replace("a.wav\t20801", "a.wav\t20800"))
    broken = tmp_path / "audio" / FORMATS[1][0]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    assert f"{listed}:3: {broken}: " in error_of(pack, plain, out)
    broken.unlink()
    assert f"{listed}:3: {broken}: no such audio file" in error_of(pack, plain, out)
    broken.write_bytes(whole)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    assert "GB are needed, 0.00 GB are free" in error_of(pack, plain, out)


def test_a_damaged_tar_is_named(plain, tmp_path):
    pack(plain, tmp_path / "packed")
    split, tar = read_split(tmp_path / "packed", "all"), tmp_path / "packed" / "shards" / "000000.tar"
    for i in range(len(FORMATS)):
        place = audio.locate(split.audio(i))
        half = f"{tar}:{place.start}:{place.size // 2}"
        if FORMATS[i][0] != "x.ogg":
            assert half in error_of(audio.read, half, n_samples=int(split.n_samples[i]))
    assert f"{tar}:0:512: cannot be read as audio" in error_of(audio.probe, f"{tar}:0:512")
    assert "the file is empty" in error_of(audio.probe, f"{tar}:512:0")
    os.truncate(tar, audio.locate(split.audio(6)).start + 100)
    assert f"{split.audio(6)}: the tar ends at byte {tar.stat().st_size}" in error_of(audio.read, split.audio(6))
    assert len(audio.read(split.audio(0))) == split.n_samples[0]
    tar.unlink()
    assert f"{tar}: no such audio file" in error_of(audio.read, split.audio(0))
    assert audio.locate("a.tar").size is audio.locate("a.tar:1").size is audio.locate("b.wav:1:2").size is None


# --------------------------------------------------------------------------------------------------------------- leaks


def test_a_leak_shows_across_plain_and_packed_audio(tmp_path, capsys):
    manifest = make_corpus(tmp_path / "c", train=6, valid=2, test=2)
    test = read_split(manifest, "test")
    listed = [Utterance(path, int(n), "other", "sad") for path, n in zip(test.paths, test.n_samples, strict=True)]
    write_splits(tmp_path / "second", test.root, {"train": listed})
    pack(tmp_path / "second", tmp_path / "packed")
    (tmp_path / "packed" / "train.spk").write_text("p\nq\n")
    (tmp_path / "packed" / "dict.spk.txt").write_text("p 1\nq 1\n")
    report = check.check([manifest, tmp_path / "packed"], allow=["speaker"])
    assert not report.errors
    assert [(leak.between, len(leak.shared)) for leak in report.leaks if leak.kind == "audio"] == [
        ({"first": f"{tmp_path}/packed/train.tsv", "second": f"{manifest}/test.tsv"}, 2)
    ]
