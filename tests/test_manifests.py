"""The corpus scripts emodb, ravdess, synthetic and table, and the protocols they share."""

import csv
import json
import os
from collections import Counter

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import run

from emohubert.core.errors import InputError
from emohubert.corpus import build, protocols
from emohubert.corpus.audio import read
from emohubert.corpus.manifest import Utterance, read_corpus, read_dictionary, read_split, splits_of

CLASSES = ("angry", "happy", "neutral", "sad")


def failure(capsys):
    """The last line a failed program wrote."""
    return capsys.readouterr().err.splitlines()[-1]


def contents(folder):
    """Path → bytes of every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def noise(path, n=4000, rate=16_000, channels=1, seed=0, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(seed).uniform(-0.5, 0.5, (n, channels))
    soundfile.write(path, wave, rate, **how)


# --- protocols ------------------------------------------------------------------------------------------------------

speakers_and_sexes = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.sampled_from(["f", "m"]), min_size=3, max_size=24)


@st.composite
def collections(draw, min_utterances=1):
    people = draw(speakers_and_sexes)
    utterances = []
    for speaker, sex in people.items():
        for i in range(draw(st.integers(min_utterances, 9))):
            emotion = draw(st.sampled_from(CLASSES))
            utterances.append(Utterance(f"{speaker}/{i}.wav", 4000, speaker, emotion, meta={"sex": sex}))
    return utterances


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(utterances=collections(), k=st.integers(3, 6), seed=st.integers(0, 99))
def test_folds_test_every_utterance_once_and_never_share_a_speaker(utterances, k, seed):
    sexes = {u.speaker: u.meta["sex"] for u in utterances}
    if k > len(sexes):
        with pytest.raises(InputError, match="folds of"):
            protocols.balanced_folds(sexes, k, seed)
        return
    divided = protocols.balanced_folds(sexes, k, seed)
    for sex in "fm":  # sizes, and the number of each sex, differ by one at most
        per_fold = [sum(sexes[s] == sex for s in fold) for fold in divided]
        assert max(per_fold) - min(per_fold) <= 1
    assert max(map(len, divided)) - min(map(len, divided)) <= 1
    folds = protocols.speaker_folds(utterances, divided)
    assert list(folds) == [f"fold{i + 1}" for i in range(k)]
    assert Counter(u.path for f in folds.values() for u in f["test"]) == Counter(u.path for u in utterances)
    assert Counter(u.path for f in folds.values() for u in f["valid"]) == Counter(u.path for u in utterances)
    for fold in folds.values():
        who = [{u.speaker for u in fold[split]} for split in ("train", "valid", "test")]
        assert not (who[0] & who[1] or who[0] & who[2] or who[1] & who[2])
        assert sorted(u.path for split in fold.values() for u in split) == sorted(u.path for u in utterances)


@settings(max_examples=80, deadline=None)
@given(utterances=collections(), seed=st.integers(0, 99))
def test_speaker_independent_split(utterances, seed):
    splits = protocols.protocol_splits(utterances, "speaker-independent", seed)[""]
    who = {name: {u.speaker for u in split} for name, split in splits.items()}
    total = len({u.speaker for u in utterances})
    assert sum(map(len, who.values())) == total == len(set.union(*who.values()))
    assert len(who["valid"]) == len(who["test"]) == max(1, round(total / 5))
    assert sum(map(len, splits.values())) == len(utterances)
    sexes = {u.speaker: u.meta["sex"] for u in utterances}
    for part in ("valid", "test"):  # each sex in proportion
        women = sum(s == "f" for s in sexes.values()) * len(who[part]) / total
        assert abs(sum(sexes[s] == "f" for s in who[part]) - women) <= 1.01


@settings(max_examples=80, deadline=None)
@given(utterances=st.one_of(collections(), collections(min_utterances=2)), seed=st.integers(0, 99))
def test_seen_split_is_60_20_20_in_every_stratum(utterances, seed):
    splits = protocols.protocol_splits(utterances, "seen", seed)[""]
    assert Counter(u.path for split in splits.values() for u in split) == Counter(u.path for u in utterances)
    assert {u.speaker for u in utterances} == {u.speaker for u in splits["train"]}  # training knows every speaker
    for groups_of, most in ((lambda u: (u.speaker, u.emotion), 2), (lambda u: u.speaker, 2.5), (lambda u: u.emotion, 4)):
        n = Counter(map(groups_of, utterances))
        if min(Counter(u.speaker for u in utterances).values()) == 1:
            continue  # speakers with one utterance are all trained on, whatever the proportions
        for name, share in (("train", 0.6), ("valid", 0.2), ("test", 0.2)):
            got = Counter(map(groups_of, splits[name]))
            assert all(abs(got[g] - share * n[g]) <= most for g in n)


def test_seen_split_does_not_confuse_its_rhythm_with_the_classes():
    five = [Utterance(f"{s}{i}.wav", 4000, f"{s:02}", CLASSES[i % 4]) for s in range(40) for i in range(5)]
    for seed in range(5):
        for part in protocols.stratified_split(five, seed).values():
            share = Counter(u.emotion for u in part)
            for name, expected in (("angry", 0.4), ("happy", 0.2), ("neutral", 0.2), ("sad", 0.2)):
                assert abs(share[name] / len(part) - expected) < 0.06


@settings(max_examples=40, deadline=None)
@given(utterances=collections(min_utterances=5), seed=st.integers(0, 99))
def test_both_keeps_the_test_speakers_unseen(utterances, seed):
    splits = protocols.protocol_splits(utterances, "both", seed)[""]
    unseen = {u.speaker for u in splits["test"]}
    for name in ("train", "valid", "test_seen"):
        assert not unseen & {u.speaker for u in splits[name]}
    assert {u.speaker for u in splits["test_seen"]} <= {u.speaker for u in splits["train"]}
    assert Counter(u.path for split in splits.values() for u in split) == Counter(u.path for u in utterances)


@settings(max_examples=20, deadline=None)
@given(utterances=collections(min_utterances=5))
def test_each_speaker_is_left_out_once(utterances):
    folds = protocols.protocol_splits(utterances, "leave-one-speaker-out", 1)
    assert [{u.speaker for u in f["test"]} for f in folds.values()] == [{s} for s in sorted({u.speaker for u in utterances})]
    for fold in folds.values():
        assert set(fold) == {"train", "test"} and sorted(u.path for s in fold.values() for u in s) == sorted(u.path for u in utterances)


def test_protocols_need_enough_speakers():
    with pytest.raises(InputError, match="to leave one out, two are needed"):
        protocols.protocol_splits([Utterance("a.wav", 4000, "a")], "leave-one-speaker-out", 1)
    two = [Utterance(f"{s}{i}.wav", 4000, s) for s in "ab" for i in range(5)]
    with pytest.raises(InputError, match="2 speakers cannot be divided into 3 parts"):
        protocols.protocol_splits(two, "speaker-independent", 1)
    with pytest.raises(InputError, match="folds have utterances, three are needed"):
        protocols.speaker_folds(two, [["a"], ["b"], ["c"]])
    with pytest.raises(InputError, match="speaker b is in no fold"):
        protocols.speaker_folds(two, [["a"]])
    with pytest.raises(InputError, match="speaker a is in several folds"):
        protocols.speaker_folds(two, [["a", "b"], ["a"]])


# --- finding, measuring, resampling ---------------------------------------------------------------------------------


def test_messy_folders(tmp_path):
    for name in ("b/one.wav", "a/two.FLAC", "c/three.wav"):
        noise(tmp_path / name, format="WAV" if name.endswith("wav") else "FLAC")
    for junk in ("b/._one.wav", "__MACOSX/b/one.wav", ".cache/x.wav", "notes.txt"):
        (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / junk).write_bytes(b"junk")
    left_out = build.LeftOut()
    assert build.find_audio(tmp_path, left_out) == ["a/two.FLAC", "b/one.wav", "c/three.wav"]
    assert sorted(left_out["hidden files, such as ._*"]) == [".cache/x.wav", "__MACOSX/b/one.wav", "b/._one.wav"]
    with pytest.raises(InputError, match="no such folder"):
        build.find_audio(tmp_path / "nowhere", left_out)


def test_measuring_names_what_is_damaged_or_too_short(tmp_path):
    noise(tmp_path / "good.wav", 12_000, 48_000)
    noise(tmp_path / "short.wav", 399)
    (tmp_path / "bad.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:5000])
    entries = [Utterance(f"{n}.wav", 0, "a") for n in ("good", "short", "bad", "missing")]
    with pytest.raises(InputError, match=r"bad\.wav: truncated WAV.*2 files are damaged or missing.*--skip-damaged"):
        build.measure(tmp_path, entries, build.LeftOut())
    left_out = build.LeftOut()
    assert [(u.path, u.n_samples) for u in build.measure(tmp_path, entries, left_out, skip_damaged=True)] == [("good.wav", 4000)]
    assert left_out == {"shorter than one frame (400 samples)": ["short.wav"], "damaged or unreadable": ["bad.wav", "missing.wav"]}


def test_resampling_once_equals_resampling_while_reading(tmp_path):
    noise(tmp_path / "in/s/a.wav", 30_001, 44_100, channels=2)
    noise(tmp_path / "in/b.flac", 16_000)
    entries = [Utterance("s/a.wav", 0, "a"), Utterance("b.flac", 0, "b")]
    done = build.resample(tmp_path / "in", tmp_path / "out", entries, build.LeftOut())
    assert [(u.path, u.n_samples) for u in done] == [("s/a.flac", -(-30_001 * 160 // 441)), ("b.flac", 16_000)]
    for before, after in zip(entries, done, strict=True):
        info = soundfile.info(tmp_path / "out" / after.path)
        assert (info.samplerate, info.channels, info.frames) == (16_000, 1, after.n_samples)
        difference = read(tmp_path / "out" / after.path) - read(tmp_path / "in" / before.path)
        assert np.abs(difference).max() <= 2**-15  # one step of 16 bits
    assert build.measure(tmp_path / "out", done, build.LeftOut()) == done


def test_resampling_again_touches_only_what_changed(tmp_path):
    for name in "ab":
        noise(tmp_path / f"in/{name}.wav", 12_000, 48_000)
    entries = [Utterance(f"{name}.wav", 0, name) for name in "ab"]
    build.resample(tmp_path / "in", tmp_path / "out", entries, build.LeftOut())
    first = {name: (tmp_path / f"out/{name}.flac").stat() for name in "ab"}
    noise(tmp_path / "in/b.wav", 12_300, 48_000, seed=5)
    os.utime(tmp_path / "in/b.wav", (1, 1))
    done = build.resample(tmp_path / "in", tmp_path / "out", entries, build.LeftOut())
    second = {name: (tmp_path / f"out/{name}.flac").stat() for name in "ab"}
    assert second["a"].st_ctime_ns == first["a"].st_ctime_ns and second["b"].st_mtime_ns != first["b"].st_mtime_ns
    assert [u.n_samples for u in done] == [4000, 4100]


def test_a_damaged_copy_is_made_again(tmp_path):
    noise(tmp_path / "in/a.wav", 12_000, 48_000)
    entries = [Utterance("a.wav", 0, "a")]
    build.resample(tmp_path / "in", tmp_path / "out", entries, build.LeftOut())
    copy, whole = tmp_path / "out/a.flac", (tmp_path / "out/a.flac").read_bytes()
    for damaged in (b"", whole[:3000]):
        times = copy.stat()
        copy.write_bytes(damaged)
        os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert build.resample(tmp_path / "in", tmp_path / "out", entries, build.LeftOut())[0].n_samples == 4000
        assert copy.read_bytes() == whole


def test_resampling_refuses_name_clashes_and_the_corpus_itself(tmp_path):
    for name in ("a.wav", "a.flac"):
        noise(tmp_path / "in" / name)
    entries = [Utterance("a.wav", 0, "a"), Utterance("a.flac", 0, "a")]
    with pytest.raises(InputError, match=r"a\.wav and a\.flac would both become a\.flac"):
        build.resample(tmp_path / "in", tmp_path / "out", entries, build.LeftOut())
    with pytest.raises(InputError, match="lies in the corpus"):
        build.resample(tmp_path / "in", tmp_path / "in", entries[:1], build.LeftOut())


# --- EmoDB ----------------------------------------------------------------------------------------------------------


def test_emodb_folds_on_the_recordings(emodb, tmp_path, capsys):
    assert run("manifests/emodb.py", emodb, tmp_path / "m") == 0
    everything = read_split(tmp_path / "m", "all")
    labels = dict(line.split("\t") for line in (emodb / "labels.tsv").read_text().splitlines())
    assert dict(zip(everything.ids, everything.emotions, strict=True)) == {k: v.lower() for k, v in labels.items()}
    assert Counter(everything.emotions) == {"angry": 127, "happy": 71, "neutral": 79, "sad": 62}
    tested = []
    for k in range(1, 6):
        splits = {name: read_split(tmp_path / "m" / f"fold{k}", name) for name in ("train", "valid", "test")}
        assert [len(set(splits[n].speakers)) for n in splits] == [6, 2, 2]
        assert set(splits["test"].meta["sex"]) == set(splits["valid"].meta["sex"]) == {"male", "female"}
        assert read_dictionary(tmp_path / "m" / f"fold{k}" / "dict.spk.txt") == sorted(set(splits["train"].speakers))
        assert read_dictionary(tmp_path / "m" / f"fold{k}" / "dict.emo.txt") == list(CLASSES)
        tested += splits["test"].ids
    assert sorted(tested) == sorted(labels)
    sexes = dict(zip(everything.speakers, everything.meta["sex"], strict=True))
    assert {s for s, sex in sexes.items() if sex == "male"} == {"03", "10", "11", "12", "15"}
    assert run("tools/check_manifest.py", tmp_path / "m") == 0
    assert "no errors, no leaks" in capsys.readouterr().out


def emodb_release(folder):
    """A small release: all seven emotions, every speaker."""
    for speaker in ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16"):
        for i, letter in enumerate("WLEAFTN"):
            noise(folder / f"wav/{speaker}a0{i + 1}{letter}a.wav", seed=int(speaker) * 10 + i)
    return folder


def test_emodb_release_with_seven_classes_and_a_mess(tmp_path, capsys):
    release = emodb_release(tmp_path / "db")
    (release / "wav/._03a01Wa.wav").write_bytes(b"\0\5\26\7")
    noise(release / "wav/silence.wav")
    noise(release / "copy/03a01Wa.wav")
    assert run("manifests/emodb.py", release, tmp_path / "m") == 0
    assert Counter(read_split(tmp_path / "m", "all").emotions) == dict.fromkeys(
        ("angry", "bored", "disgusted", "fearful", "happy", "neutral", "sad"), 10
    )
    left_out = read_corpus(tmp_path / "m")["left_out"]
    assert left_out == {
        "hidden files, such as ._*": ["wav/._03a01Wa.wav"],
        "a second copy of the same name": ["wav/03a01Wa.wav"],
        "not named like EmoDB": ["wav/silence.wav"],
    }
    log = capsys.readouterr().err + "".join(left_out)
    assert "not named like EmoDB" in log


def test_emodb_subset_of_classes_and_flat_protocols(tmp_path, capsys):
    release = emodb_release(tmp_path / "db")
    arguments = (release, tmp_path / "m", "--classes", "sad", "happy")
    assert run("manifests/emodb.py", *arguments) == 0
    assert splits_of(tmp_path / "m") == ["all"] and read_dictionary(tmp_path / "m/fold3/dict.emo.txt") == ["happy", "sad"]
    assert len(read_corpus(tmp_path / "m")["left_out"]["another class"]) == 50
    assert run("manifests/emodb.py", *arguments, "--protocol", "both") == 0
    assert splits_of(tmp_path / "m") == ["train", "valid", "test", "test_seen"]
    assert not (tmp_path / "m/fold1").exists() and not (tmp_path / "m/all.tsv").exists()  # nothing of the folds is left
    assert read_corpus(tmp_path / "m")["options"]["protocol"] == "both"
    assert run("manifests/emodb.py", tmp_path, tmp_path / "m", "--classes", "sad", "angry") == 0  # any folder above will do
    for path in release.rglob("*Ta.wav"):
        path.unlink()
    assert run("manifests/emodb.py", *arguments) == 2
    assert failure(capsys).startswith(f"error: {release}: holds no utterance of the class sad")


def test_running_again_does_nothing_unless_something_changed(tmp_path):
    release = emodb_release(tmp_path / "db")
    arguments = ("manifests/emodb.py", release, tmp_path / "m", "--protocol", "seen")
    assert run(*arguments) == 0
    first, before = contents(tmp_path / "m"), (tmp_path / "m/train.tsv").stat().st_mtime_ns
    assert run(*arguments) == 0
    assert (tmp_path / "m/train.tsv").stat().st_mtime_ns == before
    assert run(*arguments, "--overwrite") == 0
    assert (tmp_path / "m/train.tsv").stat().st_mtime_ns != before and contents(tmp_path / "m") == first
    (tmp_path / "m/valid.spk").unlink()
    assert run(*arguments) == 0 and contents(tmp_path / "m") == first  # what was lost is made again
    noise(release / "wav/03a01Wa.wav", 5000)
    assert run(*arguments) == 0
    lengths = {p: n for s in splits_of(tmp_path / "m") for p, n in _lengths(tmp_path / "m", s)}
    assert lengths["wav/03a01Wa.wav"] == 5000
    assert run(*arguments, "--seed", 2) == 0
    assert (tmp_path / "m/train.tsv").read_bytes() != first["train.tsv"]


def test_a_stamp_cannot_make_it_delete_other_files(tmp_path):
    release = emodb_release(tmp_path / "db")
    (tmp_path / "m").mkdir()
    (tmp_path / "precious").write_text("")
    files = ["../precious", str(tmp_path / "precious"), "mine.txt"]
    (tmp_path / "m/.stamp.json").write_text(json.dumps({"settings": {"files": files}}))
    assert run("manifests/emodb.py", release, tmp_path / "m") == 0
    assert (tmp_path / "precious").exists()


def test_resampled_files_that_were_lost_are_made_again(tmp_path):
    arguments = ("manifests/emodb.py", emodb_release(tmp_path / "db"), tmp_path / "m", "--resample", tmp_path / "16k")
    assert run(*arguments) == 0
    lost = tmp_path / "16k/wav/03a01Wa.flac"
    made = {p: p.stat().st_ctime_ns for p in lost.parent.iterdir()}
    lost.unlink()
    assert run(*arguments) == 0 and lost.is_file()
    assert {p for p in made if p.stat().st_ctime_ns != made[p]} == {lost}
    assert run(*arguments, "--overwrite") == 0
    assert all(p.stat().st_ctime_ns != made[p] for p in made)


def _lengths(directory, name):
    split = read_split(directory, name)
    return list(zip(split.paths, split.n_samples.tolist(), strict=True))


def test_bad_input_is_one_line(tmp_path, capsys):
    assert run("manifests/emodb.py", tmp_path / "nowhere", tmp_path / "m") == 2
    assert failure(capsys) == f"error: {tmp_path}/nowhere: no such folder; give the folder of the corpus"
    (tmp_path / "empty").mkdir()
    assert run("manifests/emodb.py", tmp_path / "empty", tmp_path / "m") == 2
    assert "holds no files named like 03a01Wa.wav" in failure(capsys)
    release = emodb_release(tmp_path / "db")
    cut = release / "wav/08a01Wa.wav"
    cut.write_bytes(cut.read_bytes()[:1000])
    assert run("manifests/emodb.py", release, tmp_path / "m") == 2
    assert failure(capsys).startswith(f"error: {cut}: truncated WAV") and not (tmp_path / "m/corpus.json").exists()
    assert run("manifests/emodb.py", release, tmp_path / "m", "--skip-damaged") == 0
    assert read_corpus(tmp_path / "m")["left_out"] == {"damaged or unreadable": ["wav/08a01Wa.wav"]}
    (tmp_path / "file").write_text("")
    assert run("manifests/emodb.py", release, tmp_path / "file/m", "--skip-damaged") == 2
    assert "cannot create this folder, or write to it" in failure(capsys)


# --- RAVDESS --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ravdess_folds_on_the_recordings(ravdess, tmp_path):
    assert run("manifests/ravdess.py", ravdess, tmp_path / "m") == 0
    everything = read_split(tmp_path / "m", "all")
    assert len(everything) == 1440 and len(set(everything.speakers)) == 24
    assert Counter(everything.emotions) == {"neutral": 96} | dict.fromkeys(
        ("angry", "calm", "disgusted", "fearful", "happy", "sad", "surprised"), 192
    )
    assert Counter(everything.meta["intensity"]) == {"normal": 24 * 32, "strong": 24 * 28}
    tested = []
    for k in range(1, 7):
        splits = {name: read_split(tmp_path / "m" / f"fold{k}", name) for name in ("train", "valid", "test")}
        assert [len(set(splits[n].speakers)) for n in splits] == [16, 4, 4]
        for name in ("valid", "test"):
            sexes = dict(zip(splits[name].speakers, splits[name].meta["sex"], strict=True))
            assert Counter(sexes.values()) == {"male": 2, "female": 2}
            assert all((int(s) % 2 == 1) == (x == "male") for s, x in sexes.items())
        tested += splits["test"].ids
    assert sorted(tested) == sorted(everything.ids)
    assert run("tools/check_manifest.py", tmp_path / "m", "--headers-only") == 0


def test_ravdess_release_leaves_songs_and_videos_out(tmp_path):
    for actor in range(1, 25):
        for kind, emotion in (("03-01", "05"), ("03-01", "03"), ("03-02", "05"), ("01-01", "05")):
            name = f"Actor_{actor:02d}/{kind}-{emotion}-01-02-01-{actor:02d}.wav"
            noise(tmp_path / "db" / name, 12_000, 48_000, channels=2 if actor == 5 else 1, seed=actor)
    noise(tmp_path / "db/Actor_01/03-01-09-01-01-01-01.wav")
    assert run("manifests/ravdess.py", tmp_path / "db", tmp_path / "m", "--resample", tmp_path / "16k") == 0
    everything = read_split(tmp_path / "m", "all")
    assert len(everything) == 48 and set(everything.emotions) == {"angry", "happy"} and set(everything.n_samples) == {4000}
    assert everything.root == (tmp_path / "16k").resolve() and everything.paths[0] == "Actor_01/03-01-03-01-02-01-01.flac"
    assert everything.meta["sentence"] == ["dogs"] * 48
    left_out = read_corpus(tmp_path / "m")["left_out"]
    assert {reason: len(paths) for reason, paths in left_out.items()} == {"song": 24, "not audio-only": 24, "not named like RAVDESS": 1}
    assert run("tools/check_manifest.py", tmp_path / "m", "--allow", "audio") == 0


# --- synthetic ------------------------------------------------------------------------------------------------------


def synthetic(tmp_path, *more, out="m", audio="a"):
    arguments = ("--speakers", 8, "--utterances", 5, "--seconds", 0.4, 0.6, *more)
    return run("manifests/synthetic.py", tmp_path / audio, tmp_path / out, *arguments)


@pytest.mark.slow
def test_synthetic_is_reproducible_and_valid(tmp_path):
    assert synthetic(tmp_path) == 0
    assert synthetic(tmp_path, out="m2", audio="a2") == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "a2")
    assert synthetic(tmp_path, "--seed", 2, out="m3", audio="a3") == 0
    assert contents(tmp_path / "a")["s01/s01_angry_001.flac"] != contents(tmp_path / "a3")["s01/s01_angry_001.flac"]
    splits = {name: read_split(tmp_path / "m", name) for name in splits_of(tmp_path / "m")}
    assert {n: len(s) for n, s in splits.items()} == {"train": 20, "valid": 10, "test": 10}
    assert all(set(s.dimensions) == {"arousal", "valence", "dominance"} for s in splits.values())
    assert all(0.4 * 16000 <= n <= 0.6 * 16000 for s in splits.values() for n in s.n_samples)
    assert run("tools/check_manifest.py", tmp_path / "m") == 0


def test_synthetic_audio_is_made_once(tmp_path):
    assert synthetic(tmp_path) == 0
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.flac")}
    assert synthetic(tmp_path, "--protocol", "folds", "--folds", 3, out="m2") == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.flac")} == made
    assert sorted(p.name for p in (tmp_path / "m2").glob("fold*")) == ["fold1", "fold2", "fold3"]
    next(iter(made)).unlink()
    assert synthetic(tmp_path, out="m2") == 0 and all(p.is_file() for p in made)


def test_synthetic_label_shift_is_known_and_smooth(tmp_path):
    assert synthetic(tmp_path, "--protocol", "seen") == 0
    assert synthetic(tmp_path, "--protocol", "seen", "--label-shift", 0.2, out="shifted") == 0
    biases = {}
    for name in ("train", "valid", "test"):
        plain, shifted = read_split(tmp_path / "m", name), read_split(tmp_path / "shifted", name)
        assert plain.paths == shifted.paths and plain.emotions == shifted.emotions
        for d in plain.dimensions:
            assert shifted.meta[f"shown_{d}"] == [f"{x:.6g}" for x in plain.dimensions[d]]
            moved = shifted.dimensions[d] - plain.dimensions[d]
            inside = (shifted.dimensions[d] > 0) & (shifted.dimensions[d] < 1)
            for i in np.flatnonzero(inside):
                biases.setdefault((plain.speakers[i], d), []).append(moved[i])
    assert all(np.ptp(values) < 1e-5 and abs(values[0]) <= 0.2 for values in biases.values())  # one bias per speaker
    assert np.std([values[0] for values in biases.values()]) > 0.03


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--speakers", 7), "--speakers 7: give 8 or more"),
        (("--utterances", 3), "--utterances 3: give 4 or more"),
        (("--seconds", 2, 1), "--seconds 2.0 1.0: give MIN and MAX"),
        (("--label-shift", 2), "--label-shift 2.0: give a value from 0 to 1"),
        (("--protocol", "folds", "--folds", 2), "2 folds of 8 speakers: give from 3 to 8"),
        (("--protocol", "what"), "argument --protocol: invalid choice"),
    ],
)
def test_synthetic_refuses(option, message, tmp_path, capsys):
    assert synthetic(tmp_path, *option) == 2
    error = failure(capsys)
    assert error.startswith("error: ") and message in error and not (tmp_path / "m").exists()


# --- table ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path):
    for i in range(6):
        noise(tmp_path / f"audio/r{i}.wav", 4000 + i, seed=i)
    return tmp_path / "audio"


ROWS = [
    {"path": f"r{i}.wav", "speaker": f"p{i // 2}", "split": s, "emotion": "angry", "arousal": i, "age": 20 + i}
    for i, s in enumerate(["train", "train", "dev", "dev", "test", "test"])
]


def write_table(file, rows, delimiter=",", line_end="\n", encoding="utf-8", **renamed):
    with file.open("w", encoding=encoding, newline="") as f:
        names = [renamed.get(n, n) for n in rows[0]]
        writer = csv.writer(f, delimiter=delimiter, lineterminator=line_end)
        writer.writerows([names, *(r.values() for r in rows)])
    return file


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize(("line_end", "encoding"), [("\n", "utf-8"), ("\r\n", "utf-8-sig")])
def test_table_with_any_delimiter_line_end_and_byte_order_mark(delimiter, line_end, encoding, recordings, tmp_path):
    write_table(recordings / "list.csv", ROWS, delimiter, line_end, encoding)
    assert run("manifests/table.py", recordings, tmp_path / "m", "--scale", 0, 5) == 0
    assert splits_of(tmp_path / "m") == ["train", "valid", "test"]
    valid = read_split(tmp_path / "m", "valid")
    assert valid.paths == ["r2.wav", "r3.wav"] and valid.n_samples.tolist() == [4002, 4003] and valid.speakers == ["p1", "p1"]
    np.testing.assert_allclose(valid.dimensions["arousal"], [0.4, 0.6])
    assert valid.meta == {"id": ["r2", "r3"], "age": ["22", "23"]}
    assert read_corpus(tmp_path / "m")["label_scales"] == {"arousal": {"min": 0, "max": 1, "original_min": 0.0, "original_max": 5.0}}
    assert run("tools/check_manifest.py", tmp_path / "m") == 0


def test_table_elsewhere_with_other_names_absolute_paths_and_gaps(recordings, tmp_path):
    rows = [{**r, "path": f"{recordings.resolve()}/{r['path']}" if i % 2 else r["path"]} for i, r in enumerate(ROWS)]
    rows[0] |= {"emotion": "", "arousal": ""}
    write_table(tmp_path / "t.tsv", [*rows, rows[3]], "\t", path="file", speaker="who", arousal="energy")
    options = ("--table", tmp_path / "t.tsv", "--columns", "path=file", "speaker=who", "--dimensions", "energy")
    assert run("manifests/table.py", recordings, tmp_path / "m", *options) == 0
    train = read_split(tmp_path / "m", "train")
    assert train.emotions == ["-", "angry"] and np.isnan(train.dimensions["energy"][0]) and train.dimensions["energy"][1] == 1
    assert read_corpus(tmp_path / "m")["left_out"] == {"listed twice": ["r3.wav"]}


def test_table_with_votes(recordings, tmp_path):
    write_table(
        tmp_path / "t.csv",
        [r | {"votes_angry": 3, "votes_sad": 1 if i else "", "emotion": ["angry", "sad"][i % 2]} for i, r in enumerate(ROWS)],
    )
    arguments = ("manifests/table.py", recordings, tmp_path / "m", "--table", tmp_path / "t.csv")
    assert run(*arguments) == 0 and run("tools/check_manifest.py", tmp_path / "m") == 0
    train = read_split(tmp_path / "m", "train")
    assert {name: list(v) for name, v in train.votes.items()} == {"angry": [3, 3], "sad": [0, 1]} and list(train.meta) == ["id", "age"]
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace(",3,1", ",3,-1", 1))
    assert run(*arguments) == 2
    rows = [
        {"path": r["path"], "speaker": r["speaker"], "split": r["split"], "votes_angry": 1, "votes_sad": i % 3} for i, r in enumerate(ROWS)
    ]
    write_table(tmp_path / "t.csv", rows)
    assert run(*arguments) == 0 and [read_split(tmp_path / "m", s).emotions for s in ("train", "valid")] == [
        ["angry", "-"],
        ["sad", "angry"],
    ]


def test_table_may_be_named_itself_and_split_by_chance(recordings, tmp_path):
    rows = [{k: v for k, v in r.items() if k != "split"} for r in ROWS]
    table = write_table(recordings / "list.csv", rows)
    write_table(recordings / "other.csv", rows)
    assert run("manifests/table.py", table, tmp_path / "m", "--protocol", "speaker-independent") == 0
    assert [len(read_split(tmp_path / "m", s)) for s in ("train", "valid", "test")] == [2, 2, 2]


TABLE_FAULTS = {
    "no such column": (lambda rows: [{"file": 1} for _ in rows], (), "t.csv:1: has no column “path”"),
    "no labels": (lambda rows: [{k: r[k] for k in ("path", "speaker", "split")} for r in rows], (), "has neither a column “emotion” nor"),
    "not a number": (lambda rows: rows[:2] + [rows[2] | {"arousal": "high"}], (), "t.csv:4: arousal is “high”, not a number"),
    "off the scale": (lambda rows: rows, ("--scale", "0", "3"), "t.csv:6: arousal 4 is outside --scale 0 3"),
    "no speaker": (lambda rows: [rows[0] | {"speaker": " "}], (), "t.csv:2: no speaker"),
    "no split": (lambda rows: [rows[0] | {"split": ""}], (), "t.csv:2: “” is not the name of a split"),
    "strange split": (lambda rows: [rows[0] | {"split": "../x"}], (), "t.csv:2: “../x” is not the name of a split"),
    "missing file": (lambda rows: [*rows, rows[0] | {"path": "r9.wav"}], (), "r9.wav: no such audio file"),
    "outside": (lambda rows: [rows[0] | {"path": "/etc/r.wav"}], (), "t.csv:2: /etc/r.wav is not below"),
    "contradiction": (lambda rows: [*rows, rows[1] | {"split": "test"}], (), "t.csv:8: r1.wav is in line 3 already, with other values"),
    "bad mapping": (lambda rows: rows, ("--columns", "path"), "--columns path: write OURS=THEIRS"),
    "unknown mapping": (lambda rows: rows, ("--columns", "path=wav"), "t.csv:1: has no column “wav”"),
    "twice": (lambda rows: rows, ("--columns", "emotion=speaker"), "t.csv:1: the column “emotion” is there twice"),
    "bad scale": (lambda rows: rows, ("--scale", "3", "3"), "--scale 3 3: MIN must be below MAX"),
}


@pytest.mark.parametrize("what", TABLE_FAULTS)
def test_table_faults_name_the_line(what, recordings, tmp_path, capsys):
    change, options, message = TABLE_FAULTS[what]
    write_table(tmp_path / "t.csv", change(ROWS))
    assert run("manifests/table.py", recordings, tmp_path / "m", "--table", tmp_path / "t.csv", *options) == 2
    error = failure(capsys)
    assert error.startswith("error: ") and message in error and ";" in error or "write OURS" in error or "MIN" in error
    assert not (tmp_path / "m/corpus.json").exists()


def test_table_malformed_files(recordings, tmp_path, capsys):
    arguments = ("manifests/table.py", recordings, tmp_path / "m", "--table", tmp_path / "t.csv")
    for text, message in [
        (b"", "t.csv: lists nothing"),
        (b"path,speaker,split,emotion\n", "t.csv: lists nothing"),
        (b"path,speaker,split,emotion\nr0.wav,a,train\n", "t.csv:2: 3 columns where the header has 4"),
        (b'path,speaker,split,emotion\nr0.wav,a,"train,sad\n', "t.csv:2: "),
        (b"path,speaker,split,emotion\nr0.wav,\xff,train,sad\n", "not a UTF-8 text file"),
    ]:
        (tmp_path / "t.csv").write_bytes(text)
        assert run(*arguments) == 2 and message in failure(capsys)
    (tmp_path / "t.csv").unlink()
    assert run(*arguments) == 2 and "t.csv: no such file" in failure(capsys)
    assert run("manifests/table.py", recordings, tmp_path / "m") == 2 and "holds 0 CSV or TSV files" in failure(capsys)


def test_corpus_json_tells_what_was_made(recordings, tmp_path):
    write_table(recordings / "list.csv", ROWS)
    assert run("manifests/table.py", recordings, tmp_path / "m") == 0
    corpus = json.loads((tmp_path / "m/corpus.json").read_text())
    assert corpus["corpus"] == "table" and corpus["counts"] == {".": {"train": 2, "valid": 2, "test": 2}}
    assert corpus["utterances"] == 6 and corpus["speakers"] == 3 and len(corpus["source_sha256"]) == 64


def test_links_that_lead_back_are_not_followed(tmp_path):
    noise(tmp_path / "corpus/a/one.wav")
    noise(tmp_path / "corpus/b/two.wav")
    noise(tmp_path / "elsewhere/three.wav")
    links = (("a/back", ".."), ("b/up", "../.."), ("b/self", "."), ("a/b", "../b"), ("b/a", "../a"), ("c", "../elsewhere"), ("d", "c"))
    for link, target in (*links, ("nowhere", "gone"), ("round", "round")):
        (tmp_path / "corpus" / link).symlink_to(target)
    (tmp_path / "elsewhere/corpus").symlink_to(tmp_path / "corpus")
    assert build.find_audio(tmp_path / "corpus", left_out := build.LeftOut()) == ["a/one.wav", "b/two.wav", "c/three.wav"]
    again = ["a/b", "a/back", "b/a", "b/self", "b/up", "c/corpus", "d"]
    assert {reason: sorted(paths) for reason, paths in left_out.items()} == {"folders that links lead to once more": again}


def test_a_corpus_that_links_cross_is_listed_once(tmp_path, capsys):
    for i in range(40):
        noise(tmp_path / f"corpus/s{i}/x{i}.wav")
        for j in range(40):
            (tmp_path / f"corpus/s{i}/to{j}").symlink_to(f"../s{j}")
    (tmp_path / "linked").symlink_to("corpus")
    assert run("manifests/folder.py", tmp_path / "linked", tmp_path / "m") == 0
    assert read_corpus(tmp_path / "m")["utterances"] == 40
    assert "left out, folders that links lead to once more: 1600 (" in capsys.readouterr().err


def test_resampling_into_the_corpus_is_refused(tmp_path, capsys):
    noise(tmp_path / "corpus/a/one.wav")
    noise(tmp_path / "corpus/a/two.wav")
    (tmp_path / "link").symlink_to("corpus")
    before = contents(tmp_path)
    for audio, target in (
        ("corpus", "corpus/16k"),
        ("link", "corpus/a"),
        ("corpus", "link/deep/16k"),
        ("corpus/a", "corpus"),
        ("link", "link"),
    ):
        if (audio, target) == ("corpus/a", "corpus"):  # around the corpus, not in it
            assert run("manifests/folder.py", tmp_path / audio, tmp_path / "m", "--resample", tmp_path / target) == 0
            continue
        assert run("manifests/folder.py", tmp_path / audio, tmp_path / "n", "--resample", tmp_path / target) == 2
        assert "lies in the corpus, where the next search would find the copies" in failure(capsys)
    assert {name: before[name] for name in contents(tmp_path) if name in before} == before and not (tmp_path / "n").exists()


def test_resampling_writes_only_below_its_folder(tmp_path):
    noise(tmp_path / "one.wav")
    (tmp_path / "corpus").mkdir()
    for path in ("../one.wav", str(tmp_path / "one.wav")):
        with pytest.raises(InputError, match="outside of it"):
            build.resample(tmp_path / "corpus", tmp_path / "out/16k", [Utterance(path, 0, "a")], build.LeftOut())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [(), ("--resample", "16k")])
def test_empty_recordings_are_named_and_leave_nothing(options, tmp_path, capsys):
    options = [tmp_path / "16k" if o == "16k" else o for o in options]
    noise(tmp_path / "corpus/good.wav")
    noise(tmp_path / "corpus/more.wav")
    noise(tmp_path / "corpus/header.wav", 0)
    assert run("manifests/folder.py", tmp_path / "corpus", tmp_path / "m", *options) == 0
    assert "left out, shorter than one frame (400 samples): 1 (header.wav)" in capsys.readouterr().err
    assert run("manifests/folder.py", tmp_path / "corpus", tmp_path / "m", *options) == 0
    assert "already made" in failure(capsys)
    (tmp_path / "corpus/empty.wav").touch()
    assert run("manifests/folder.py", tmp_path / "corpus", tmp_path / "m", *options) == 2
    assert f"error: {tmp_path}/corpus/empty.wav: the file is empty" in failure(capsys)
    assert all(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file() and p.name != "empty.wav")
    assert not list(tmp_path.rglob("header.flac"))


def test_a_folder_with_two_formats_of_one_recording_lists_it_once(tmp_path):
    for name in ("a/one.wav", "a/one.flac", "b/one.wav", "b/two.wav"):
        noise(tmp_path / "corpus" / name)
    assert run("manifests/folder.py", tmp_path / "corpus", tmp_path / "m") == 0
    corpus = read_corpus(tmp_path / "m")
    assert corpus["utterances"] == 3 and corpus["left_out"] == {"a second copy of the same name": ["a/one.wav"]}
