"""manifests/iemocap.py on a release tree with the official names, labels and lengths, as messy as real ones are."""

import random
import struct
from collections import Counter, defaultdict

import pytest
from conftest import DATA
from scripts import run

from emohubert.corpus.manifest import read_corpus, read_dictionary, read_split, splits_of

UTTERANCES = DATA / "iemocap_metadata" / "utterances.tsv"
OTHERS = ("fru", "sur", "fea", "dis", "oth", "xxx")


def silent_wav(path, samples):
    """A WAV file of the right length that takes no room: a header and a hole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = b"RIFF" + struct.pack("<I", 36 + 2 * samples) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    with path.open("wb") as f:
        f.write(header + b"data" + struct.pack("<I", 2 * samples))
        f.truncate(44 + 2 * samples)


def release(folder, rows, distractors=1, line_end="\n", seed=0):
    """Session1 … Session5 with the given (path, label, samples), more turns of other classes, and what lies around in releases."""
    rng = random.Random(seed)
    dialogues = defaultdict(list)
    for path, label, samples in rows:
        dialogues[path.rpartition("/")[0]].append((path.rpartition("/")[2][:-4], label, samples))
    for where, turns in dialogues.items():
        session, dialogue = where.split("/")[0], where.rpartition("/")[2]
        others = [(f"{dialogue}_{rng.choice('FM')}{900 + i}", rng.choice(OTHERS), 8000) for i in range(distractors)]
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for i, (turn, label, samples) in enumerate(sorted(turns + others)):
            silent_wav(folder / where / f"{turn}.wav", samples)
            values = ", ".join(f"{rng.randint(2, 10) / 2:.4f}" for _ in range(3))
            lines += [f"[{i}.0000 - {i + 1}.5000]\t{turn}\t{label}\t[{values}]", "C-E2:\tNeutral;\t()", "C-F1:\tAnger; Other;\t(curious)"]
            lines += ["A-E3:\tval 3; act 2; dom  2;\t()", "A-M1:\tval ; act ; dom  ;\t()", ""]
        evaluation = folder / session / "dialog" / "EmoEvaluation"
        (evaluation / "Categorical").mkdir(parents=True, exist_ok=True)
        (evaluation / f"{dialogue}.txt").write_bytes(line_end.join(lines).encode())
        (evaluation / "Categorical" / f"{dialogue}_e2_cat.txt").write_text(f"{dialogue}_F000 :Anger; ()\n")
        (evaluation / f"._{dialogue}.txt").write_bytes(b"\0\5\26\7")
        (folder / where / f"._{dialogue}_F000.wav").write_bytes(b"\0\5\26\7")
    return folder


def official():
    if not UTTERANCES.is_file():
        pytest.skip("the list of IEMOCAP's utterances is not here (set EMOHUBERT_DATA)")
    rows = [line.split("\t") for line in UTTERANCES.read_text().splitlines()[1:]]
    return [(path, label, int(samples)) for path, label, samples in rows]


def miniature():
    """Two dialogues of each session, every class, women and men."""
    rows = []
    for session in range(1, 6):
        for dialogue in (f"Ses0{session}F_impro01", f"Ses0{session}M_script01_1"):
            for sex in "FM":
                for i, label in enumerate(("neu", "ang", "sad", "hap", "exc")):
                    path = f"Session{session}/sentences/wav/{dialogue}/{dialogue}_{sex}{i:03}.wav"
                    rows.append((path, label, 8000 + 10 * len(rows)))
    return rows


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return release(tmp_path_factory.mktemp("iemocap"), miniature())


@pytest.fixture
def small_copy(tmp_path):
    return release(tmp_path / "release", miniature())


def check_folds(directory, names, everything):
    """Folds share no speaker between their splits; returns fold → {split → Split}."""
    folds = {}
    for name in names:
        splits = {s: read_split(directory / name, s) for s in splits_of(directory / name)}
        assert list(splits) == ["train", "valid", "test"]
        who = [set(s.speakers) for s in splits.values()]
        assert not (who[0] & who[1] or who[0] & who[2] or who[1] & who[2])
        assert not set(splits["test"].meta["session"]) & set(splits["train"].meta["session"])
        assert sorted(i for s in splits.values() for i in s.ids) == sorted(everything.ids)
        folds[name] = splits
    tested = Counter(i for splits in folds.values() for i in splits["test"].ids)
    assert tested == dict.fromkeys(everything.ids, 1)  # everything is tested once
    return folds


@pytest.mark.slow
def test_the_5531_standard_utterances(tmp_path):
    rows = official()
    release(tmp_path / "release", rows, distractors=3, line_end="\r\n")
    assert run("manifests/iemocap.py", tmp_path / "release", tmp_path / "m") == 0
    everything = read_split(tmp_path / "m", "all")
    merged = {"neu": "neutral", "ang": "angry", "sad": "sad", "hap": "happy", "exc": "happy"}
    assert {p: (e, n) for p, e, n in zip(everything.paths, everything.emotions, everything.n_samples.tolist(), strict=True)} == {
        path: (merged[label], samples) for path, label, samples in rows
    }
    assert len(everything) == 5531
    assert Counter(everything.emotions) == {"neutral": 1708, "angry": 1103, "sad": 1084, "happy": 1636}
    sessions = Counter(everything.meta["session"])
    assert [sessions[f"Ses0{s}"] for s in range(1, 6)] == [1085, 1023, 1151, 1031, 1241]
    assert Counter(everything.meta["label"])["exc"] == 1041
    assert set(everything.speakers) == {f"Ses0{s}{x}" for s in range(1, 6) for x in "FM"}
    left_out = {reason: len(items) for reason, items in read_corpus(tmp_path / "m")["left_out"].items()}
    dialogues = len({path.rpartition("/")[0] for path, _, _ in rows})
    assert sum(left_out.values()) == 3 * dialogues and all(reason.startswith("another class: ") for reason in left_out)
    folds = check_folds(tmp_path / "m", [f"fold{k}" for k in range(1, 6)], everything)
    assert [len(f["test"]) for f in folds.values()] == [1085, 1023, 1151, 1031, 1241]


def test_sessions_are_left_out_one_by_one(small, tmp_path):
    assert run("manifests/iemocap.py", small, tmp_path / "m", "--protocol", "session") == 0
    everything = read_split(tmp_path / "m", "all")
    folds = check_folds(tmp_path / "m", [f"fold{k}" for k in range(1, 6)], everything)
    assert [set(f["valid"].speakers) for f in folds.values()] == [{"Ses02F"}, {"Ses03M"}, {"Ses04F"}, {"Ses05M"}, {"Ses01F"}]
    for k, splits in enumerate(folds.values(), 1):
        assert set(splits["test"].speakers) == {f"Ses0{k}F", f"Ses0{k}M"} and len(set(splits["train"].speakers)) == 7
        assert read_dictionary(tmp_path / "m" / f"fold{k}" / "dict.spk.txt") == sorted(set(splits["train"].speakers))
    assert run("tools/check_manifest.py", tmp_path / "m", "--allow", "session:valid") == 0  # the partner of the validation speaker trains
    assert run("tools/check_manifest.py", tmp_path / "m") == 2


def test_one_speaker_validates_and_the_other_is_tested(small, tmp_path):
    assert run("manifests/iemocap.py", small, tmp_path / "m", "--protocol", "speaker") == 0
    folds = check_folds(tmp_path / "m", [f"fold{k}" for k in range(1, 11)], read_split(tmp_path / "m", "all"))
    for k, splits in enumerate(folds.values()):
        session, sex, other = f"Ses0{k % 5 + 1}", "FM"[k // 5], "MF"[k // 5]
        assert set(splits["test"].speakers) == {session + sex} and set(splits["valid"].speakers) == {session + other}
        assert len(set(splits["train"].speakers)) == 8
    assert run("tools/check_manifest.py", tmp_path / "m") == 0
    assert read_corpus(tmp_path / "m")["options"]["protocol"] == "speaker"


def test_labels_dimensions_and_columns(small_copy, tmp_path):
    file = small_copy / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    lines = file.read_text().splitlines()
    at = {name: next(i for i, line in enumerate(lines) if f"Ses01F_impro01_{name}\t" in line) for name in ("F000", "M001", "M002")}
    for name, values in (("F000", "1.5000, 5.0000, 3.0000"), ("M001", "0.5000, 2.0000, 2.0000"), ("M002", "2, 2")):
        lines[at[name]] = lines[at[name]].rpartition("[")[0] + f"[{values}]"
    file.write_text("\n".join(lines))
    assert run("manifests/iemocap.py", small_copy, tmp_path / "m") == 0
    everything = read_split(tmp_path / "m", "all")
    index = everything.paths.index("Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav")
    # the file gives valence, activation, dominance on 1–5
    assert {n: v[index] for n, v in everything.dimensions.items()} == {"arousal": 1.0, "valence": 0.125, "dominance": 0.5}
    assert list(everything.dimensions) == ["arousal", "valence", "dominance"]
    assert {c: v[index] for c, v in everything.meta.items()} == {
        "id": "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000",
        "sex": "female",
        "session": "Ses01",
        "dialogue": "Ses01F_impro01",
        "scenario": "improvised",
        "label": "neu",
    }
    assert (
        everything.meta["scenario"][everything.paths.index("Session2/sentences/wav/Ses02M_script01_1/Ses02M_script01_1_M000.wav")]
        == "scripted"
    )
    corpus = read_corpus(tmp_path / "m")
    assert corpus["label_scales"]["valence"] == {"min": 0, "max": 1, "original_min": 1, "original_max": 5}
    reason = "kept, but without dimensions, which are not on the scale 1–5"
    assert [p.rpartition("_")[2] for p in corpus["left_out"][reason]] == ["M001.wav", "M002.wav"]
    assert all(v != v for n in everything.dimensions for v in [everything.dimensions[n][index + 6]])  # M001: no value


def test_votes_are_those_of_the_evaluators(small_copy, tmp_path):
    file = small_copy / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    before, turn, after = file.read_text().partition("Ses01F_impro01_F001\t")
    ratings = "C-E1:\tAnger;\t()\nC-E2:\tAnger; Sadness;\t()\nC-E4:\tExcited; Happiness; \t(laughs)\nC-E3:\tOther;\t(curious)"
    file.write_text(before + turn + after.replace("C-E2:\tNeutral;\t()", ratings, 1))
    assert run("manifests/iemocap.py", small_copy, tmp_path / "m") == 0
    everything = read_split(tmp_path / "m", "all")
    row = everything.paths.index("Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F001.wav")
    assert {name: v[row] for name, v in everything.votes.items()} == {"angry": 1.5, "happy": 1, "neutral": 0, "sad": 0.5}
    assert everything.votes["neutral"].sum() == 99 and read_split(tmp_path / "m/fold1", "test").votes["angry"].sum() == 1.5


def test_messy_release(small_copy, tmp_path, capsys):
    file = small_copy / "Session3/dialog/EmoEvaluation/Ses03F_impro01.txt"
    lines = file.read_text().splitlines()
    first = next(line for line in lines if "Ses03F_impro01_F001" in line)
    file.write_bytes("\r\n".join([*lines, first, first, "[broken line", "caf\xe9"]).encode("latin-1"))
    (small_copy / "Session3/sentences/wav/Ses03F_impro01/Ses03F_impro01_M004.wav").unlink()
    assert run("manifests/iemocap.py", small_copy, tmp_path / "m") == 0
    left_out = read_corpus(tmp_path / "m")["left_out"]
    assert left_out["listed twice"] == ["Session3/sentences/wav/Ses03F_impro01/Ses03F_impro01_F001.wav"] * 2
    assert left_out["labelled, but no audio"] == ["Session3/sentences/wav/Ses03F_impro01/Ses03F_impro01_M004.wav"]
    number = len(lines) + 3
    assert left_out["lines of EmoEvaluation that cannot be read"] == [f"Session3/dialog/EmoEvaluation/Ses03F_impro01.txt:{number}"]
    assert len(read_split(tmp_path / "m", "all")) == 99
    assert "labelled, but no audio: 1 (Session3/sentences" in capsys.readouterr().err
    file.write_text("\n".join([*lines, first.replace("\tang\t", "\tsad\t")]))
    assert run("manifests/iemocap.py", small_copy, tmp_path / "m") == 2
    assert "Ses03F_impro01_F001.wav is listed twice with different labels" in capsys.readouterr().err


def test_every_turn_on_request(small, tmp_path):
    assert run("manifests/iemocap.py", small, tmp_path / "m", "--utterances", "all") == 0
    everything = read_split(tmp_path / "m", "all")
    assert len(everything) == 110
    codes = {"oth": "-", "xxx": "-", "fru": "frustrated", "sur": "surprised", "fea": "fearful", "dis": "disgusted", "exc": "happy"}
    assert all(codes.get(code, emotion) == emotion for code, emotion in zip(everything.meta["label"], everything.emotions, strict=True))
    assert "-" not in read_dictionary(tmp_path / "m" / "dict.emo.txt")


def test_wrong_folders(small_copy, tmp_path, capsys):
    assert run("manifests/iemocap.py", tmp_path, tmp_path / "m") == 2
    assert "holds no Session1 … Session5; give the folder IEMOCAP_full_release" in capsys.readouterr().err.splitlines()[-1]
    for file in (small_copy / "Session4/dialog/EmoEvaluation").glob("Ses*.txt"):
        file.unlink()
    assert run("manifests/iemocap.py", small_copy, tmp_path / "m") == 2
    assert "Session4/dialog/EmoEvaluation: holds no Ses*.txt" in capsys.readouterr().err.splitlines()[-1]
    for session in (3, 4, 5):
        (small_copy / f"Session{session}").rename(tmp_path / f"Session{session}")
    assert run("manifests/iemocap.py", small_copy, tmp_path / "m") == 2
    assert "2 sessions; cross-validation needs three or more" in capsys.readouterr().err.splitlines()[-1]


def test_folders_in_any_capitals(small_copy, tmp_path, capsys):
    (small_copy / "Session5").rename(small_copy / "session5")
    (small_copy / "session5/dialog/EmoEvaluation").rename(small_copy / "session5/dialog/emoevaluation")
    (small_copy / "Session2").rename(small_copy / "SESSION2")
    (small_copy / "SESSION2/sentences").rename(small_copy / "SESSION2/Sentences")
    for file in list((small_copy / "SESSION2/Sentences/wav").rglob("Ses*.wav")):
        file.rename(file.with_name(file.name.lower()))
    assert run("manifests/iemocap.py", small_copy, tmp_path / "m") == 0
    everything = read_split(tmp_path / "m", "all")
    assert len(everything) == 100 and sorted(Counter(everything.meta["session"]).values()) == [20] * 5
    assert "session5/sentences/wav/Ses05F_impro01/Ses05F_impro01_F000.wav" in everything.paths
    (small_copy / "Session5").symlink_to("session5")
    assert run("manifests/iemocap.py", small_copy, tmp_path / "m") == 2
    assert "holds both " in (error := capsys.readouterr().err.splitlines()[-1]) and "ession5; remove one of them" in error


def test_sessions_that_are_not_there_are_named(small_copy, tmp_path, capsys):
    (small_copy / "Session5").rename(small_copy / "disk5")
    assert run("manifests/iemocap.py", small_copy, tmp_path / "m") == 0
    assert "holds only Session1, Session2, Session3, Session4; the other sessions are not there" in capsys.readouterr().err
