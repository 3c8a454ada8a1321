"""manifests/crema_d.py: the official 7 442 names, every vote, and both kinds of splits."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import DATA
from scripts import load, run
from test_iemocap import silent_wav

from emohubert.corpus.build import protocol_splits
from emohubert.corpus.manifest import Utterance, read_corpus, read_split, splits_of

TABLES = DATA / "crema_d_metadata"
EMOTIONS = {"ANG": "angry", "DIS": "disgusted", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
LETTERS = {"A": "angry", "D": "disgusted", "F": "fearful", "H": "happy", "N": "neutral", "S": "sad"}


def read_csv(name):
    with (TABLES / name).open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """AudioWAV with the official names; the files are silent and of different lengths."""
    if not TABLES.is_dir():
        pytest.skip("the tables of CREMA-D are not here (set EMOHUBERT_DATA)")
    folder = tmp_path_factory.mktemp("crema")
    for i, name in enumerate((TABLES / "AudioWAV.txt").read_text().split()):
        silent_wav(folder / "AudioWAV" / name, 16000 + i)
    for name in ("SentenceFilenames.csv", "VideoDemographics.csv", "summaryTable.csv"):
        (folder / name).write_bytes((TABLES / name).read_bytes())
    (folder / "processedResults").mkdir()
    (folder / "processedResults/tabulatedVotes.csv").write_bytes((TABLES / "tabulatedVotes.csv").read_bytes())
    silent_wav(folder / "AudioMP3/1001_IEO_NEU_XX.wav", 16000)  # the release has other formats as well
    (folder / "AudioWAV/._1001_IEO_NEU_XX.wav").write_bytes(b"\0\5\26\7")
    return folder


@pytest.fixture(scope="module")
def independent(release, tmp_path_factory):
    out = tmp_path_factory.mktemp("independent")
    assert run("manifests/crema_d.py", release, out) == 0
    return out


def everything(directory):
    """Clip → one row of everything that the manifests say of it."""
    rows = {}
    for name in splits_of(directory):
        split = read_split(directory, name)
        for i, path in enumerate(split.paths):
            clip = Path(path).stem
            assert clip not in rows
            rows[clip] = {
                "split": name,
                "speaker": split.speakers[i],
                "emotion": split.emotions[i],
                "n": int(split.n_samples[i]),
                **{n: float(v[i]) for n, v in split.dimensions.items()},
                **{f"votes {c}": v[i] for c, v in split.votes.items()},
                **{f"meta {c}": v[i] for c, v in split.meta.items()},
            }
    return rows


@pytest.mark.slow
def test_all_official_names_and_classes(independent):
    names = [n[:-4] for n in (TABLES / "AudioWAV.txt").read_text().split()]
    rows = everything(independent)
    assert sorted(rows) == sorted(names) and len(rows) == 7442
    assert len({r["speaker"] for r in rows.values()}) == 91
    assert Counter(r["emotion"] for r in rows.values()) == Counter(EMOTIONS[n.split("_")[2]] for n in names)
    assert Counter(r["emotion"] for r in rows.values()) == {"neutral": 1087} | dict.fromkeys(set(EMOTIONS.values()) - {"neutral"}, 1271)
    for i, clip in enumerate(names):
        assert rows[clip]["n"] == 16000 + i and rows[clip]["speaker"] == clip[:4] and rows[clip]["meta sentence"] == clip.split("_")[1]
    assert Counter(r["meta intensity"] for r in rows.values()) == {"unspecified": 6077, "low": 455, "medium": 455, "high": 455}
    assert read_corpus(independent)["left_out"] == {"hidden files, such as ._*": ["AudioWAV/._1001_IEO_NEU_XX.wav"]}


def test_votes_are_joined_without_loss(independent):
    rows = everything(independent)
    voice = {r["fileName"]: r for r in read_csv("tabulatedVotes.csv") if r[""].startswith("1")}
    assert len(voice) == 7442
    levels = dict(zip("ADFHNS", ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad"), strict=True))
    for clip, vote in voice.items():
        row = rows[clip]
        assert row["meta responses"] == vote["numResponses"]
        for letter, name in LETTERS.items():
            assert row[f"meta votes_{name}"] == vote[letter] == f"{row[f'votes {name}']:g}"
            assert row[f"soft_{name}"] == pytest.approx(int(vote[letter]) / int(vote["numResponses"]), abs=1e-6)
            level = float(vote[f"mean{levels[letter]}Resp"])
            assert row[f"meta level_{name}"] == ("" if level == -1 else f"{level:.6g}")
            assert (level == -1) == (vote[letter] == "0")
        assert row["intensity"] == pytest.approx(float(vote["meanEmoResp"]) / 100, abs=1e-6)
        # the level is the mean over everyone's votes, whatever they heard
        total = sum(int(vote[k]) * float(vote[f"mean{n}Resp"]) for k, n in levels.items() if vote[k] != "0")
        assert 100 * row["intensity"] == pytest.approx(total / int(vote["numResponses"]), abs=1e-3)
    for summary in read_csv("summaryTable.csv"):  # another official table of the same votes
        assert rows[summary["FileName"]]["meta crowd"] == ":".join(LETTERS[k] for k in summary["VoiceVote"].split(":"))
    assert read_corpus(independent)["label_scales"]["intensity"] == {"min": 0, "max": 1, "original_min": 0, "original_max": 100}


def test_demographics(independent):
    rows = everything(independent)
    for person in read_csv("VideoDemographics.csv"):
        mine = [r for r in rows.values() if r["speaker"] == person["ActorID"]]
        for row in mine:
            assert [row[f"meta {c}"] for c in ("age", "sex", "race", "ethnicity")] == [
                person["Age"], person["Sex"].lower(), person["Race"], person["Ethnicity"],
            ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_speaker_independent_split_keeps_sex_and_race_in_proportion(independent, seed):
    rows = everything(independent)
    if seed:
        utterances = [Utterance(c, 1, r["speaker"], meta={"group": (r["meta sex"], r["meta race"])}) for c, r in rows.items()]
        splits = protocol_splits(utterances, "speaker-independent", seed, group_of=lambda u: u.meta["group"])[""]
        who = {name: {u.speaker for u in split} for name, split in splits.items()}
    else:
        who = {name: {r["speaker"] for r in rows.values() if r["split"] == name} for name in ("train", "valid", "test")}
    assert [len(s) for s in who.values()] == [55, 18, 18] and len(set.union(*who.values())) == 91
    group = {p["ActorID"]: (p["Sex"], p["Race"]) for p in read_csv("VideoDemographics.csv")}
    for name, share in (("valid", 18 / 91), ("test", 18 / 91), ("train", 55 / 91)):
        for key, total in Counter(group.values()).items():
            assert abs(sum(group[s] == key for s in who[name]) - share * total) < 2, (name, key)


@pytest.mark.slow
def test_random_split_shares_its_speakers_and_the_crowd_names_the_classes(release, tmp_path):
    assert run("manifests/crema_d.py", release, tmp_path, "--protocol", "random", "--labels", "crowd") == 0
    rows = everything(tmp_path)
    counts = Counter(r["split"] for r in rows.values())
    assert [counts[n] for n in ("train", "valid", "test")] == [4466, 1488, 1488]
    assert len({r["speaker"] for r in rows.values() if r["split"] == "test"}) == 91
    shares = Counter(r["meta intended"] for r in rows.values() if r["split"] == "test")
    assert all(abs(n - 1488 * (1087 if e == "neutral" else 1271) / 7442) < 60 for e, n in shares.items())  # by chance: 4 sigma
    heard = Counter(r["VoiceVote"] for r in read_csv("summaryTable.csv"))
    expected = {name: heard[letter] for letter, name in LETTERS.items()}
    expected["-"] = sum(n for votes, n in heard.items() if ":" in votes)
    assert Counter(r["emotion"] for r in rows.values()) == expected
    assert rows["1001_IEO_ANG_MD"]["emotion"] == "-" and rows["1001_IEO_ANG_MD"]["meta crowd"] == "angry:disgusted"


def test_random_split_depends_on_the_seed_alone():
    utterances = [Utterance(f"{i}.wav", 1, "a") for i in range(50)]
    split = load("manifests/crema_d.py").random_split
    assert split(utterances, 1) == split(utterances, 1) != split(utterances, 2)
    assert [len(s) for s in split(utterances, 3)[""].values()] == [30, 10, 10]


@pytest.mark.slow
def test_five_folds(release, tmp_path):
    assert run("manifests/crema_d.py", release, tmp_path, "--protocol", "folds") == 0
    tested = Counter()
    for k in range(1, 6):
        splits = {name: read_split(tmp_path / f"fold{k}", name) for name in ("train", "valid", "test")}
        who = [set(s.speakers) for s in splits.values()]
        assert sum(map(len, who)) == len(set.union(*who)) == 91 and len(who[2]) in (18, 19)
        tested.update(splits["test"].ids)
    assert len(tested) == 7442 and set(tested.values()) == {1}


@pytest.fixture
def small(release, tmp_path):
    """Three clips of five actors, with the whole tables."""
    folder = tmp_path / "release"
    folder.mkdir()
    for name in ("SentenceFilenames.csv", "VideoDemographics.csv", "processedResults/tabulatedVotes.csv"):
        (folder / name.rpartition("/")[2]).write_bytes((release / name).read_bytes())
    (folder / "AudioWAV").mkdir()
    rng = np.random.default_rng(0)
    for actor in range(1001, 1006):
        for clip in ("IEO_ANG_HI", "ITS_SAD_XX", "IEO_NEU_XX"):
            soundfile.write(folder / f"AudioWAV/{actor}_{clip}.wav", rng.uniform(-0.5, 0.5, 48000), 48000)
    return folder


def test_subset_resampled_with_missing_and_strange_files(small, tmp_path):
    (small / "AudioWAV/1001_ITS_SAD_XX.wav").unlink()
    soundfile.write(small / "AudioWAV/noise.wav", np.ones(4000) / 2, 16000)
    soundfile.write(small / "AudioWAV/1092_ITS_SAD_XX.wav", np.ones(4000) / 2, 16000)
    assert run("manifests/crema_d.py", small, tmp_path / "m", "--resample", tmp_path / "16k") == 0
    rows = everything(tmp_path / "m")
    assert len(rows) == 14 and {r["n"] for r in rows.values()} == {16000}
    left_out = read_corpus(tmp_path / "m")["left_out"]
    assert left_out["not named like CREMA-D"] == ["AudioWAV/noise.wav"]
    assert left_out["not in SentenceFilenames.csv"] == ["AudioWAV/1092_ITS_SAD_XX.wav"]
    missing = left_out["in SentenceFilenames.csv, but no audio"]
    assert len(missing) == 7442 - 14 and "1001_ITS_SAD_XX" in missing
    assert run("tools/check_manifest.py", tmp_path / "m") == 0


def change(file, before, after):
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


FAULTS = {
    "no votes": (lambda d: (d / "tabulatedVotes.csv").unlink(), "holds no tabulatedVotes.csv"),
    "other votes": (lambda d: (d / "tabulatedVotes.csv").write_text("a,b\n1,2\n"), "tabulatedVotes.csv:1: has no column “fileName”"),
    "clip without votes": (lambda d: change(d / "tabulatedVotes.csv", '"1003_ITS_SAD_XX"', '"x"'), "has no row of 1003_ITS_SAD_XX"),
    "unknown actor": (lambda d: change(d / "VideoDemographics.csv", "1003,", "3003,"), "VideoDemographics.csv: has no row of 1003"),
    "not a number": (lambda d: change(d / "tabulatedVotes.csv", '"100001",0', '"100001",many'), "tabulatedVotes.csv:2: A is “many”"),
    "broken line": (lambda d: change(d / "VideoDemographics.csv", '1004,42,"Female",', "1004,42,"), "VideoDemographics.csv:5: 4 columns"),
    "no stimulus number": (lambda d: change(d / "tabulatedVotes.csv", '"100001",', '"one",'), "“one” is not a stimulus number"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_damaged_tables_are_one_line(what, small, tmp_path, capsys):
    damage, message = FAULTS[what]
    damage(small)
    assert run("manifests/crema_d.py", small, tmp_path / "m") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error and ";" in error


@pytest.mark.slow
def test_tables_may_lie_elsewhere(small, tmp_path, capsys):
    (tmp_path / "tables").mkdir()
    for file in small.glob("*.csv"):
        file.rename(tmp_path / "tables" / file.name)
    assert run("manifests/crema_d.py", small, tmp_path / "m") == 2
    assert "--metadata" in capsys.readouterr().err.splitlines()[-1]
    assert run("manifests/crema_d.py", small, tmp_path / "m", "--metadata", tmp_path / "tables") == 0
    assert run("manifests/crema_d.py", small / "AudioWAV", tmp_path / "n", "--metadata", tmp_path / "tables") == 0
