"""manifests/msp_podcast.py on a small release of the same form: partitions, scales, unknown speakers, and the usual mess."""

import numpy as np
import pytest
import soundfile
from scripts import run

from emohubert.corpus.manifest import read_corpus, read_dictionary, read_split, splits_of

HEADER = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"
ROWS = [
    "MSP-PODCAST_0001_0008.wav,N,4.0,1.0,7.0,30,Male,Train",
    "MSP-PODCAST_0001_0009.wav,A,5.8,2.2,5.5,30,Male,Train",
    "MSP-PODCAST_0002_0001.wav,X,3.777778,3.555556,3.777778,Unknown,Unknown,Train",
    "MSP-PODCAST_0002_0002.wav,H,5,6.25,5,44,Female,Development",
    "MSP-PODCAST_0003_0001.wav,S,2,2,3,51,Female,Test1",
    "MSP-PODCAST_0003_0002.wav,U,5,5,5,Unknown,Female,Test1",
    "MSP-PODCAST_0004_0001.wav,O,4,4,4,60,Male,Test2",
    "MSP-PODCAST_test3_0001.wav,,,,,,,Test3",
]


def release(folder, rows=ROWS, table="Labels/labels_consensus.csv", line_end="\n", header=HEADER):
    (folder / "Audios").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, row in enumerate(ROWS):
        soundfile.write(folder / "Audios" / row.split(",")[0], rng.uniform(-0.5, 0.5, 8000 + i), 16000)
    (folder / table).parent.mkdir(exist_ok=True)
    (folder / table).write_bytes((line_end.join([header, *rows]) + line_end).encode())
    return folder


def failure(capsys):
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("table", "development"),
    [
        ("Labels/labels_consensus.csv", "Development"),
        ("Labels/labels_concensus.csv", "Validation"),
        ("labels_concensus.csv", "Validation"),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_partitions_as_released(table, development, line_end, tmp_path):
    rows = [row.replace("Development", development) for row in ROWS]
    assert run("manifests/msp_podcast.py", release(tmp_path / "db", rows, table, line_end), tmp_path / "m") == 0
    splits = {name: read_split(tmp_path / "m", name) for name in splits_of(tmp_path / "m")}
    assert {name: len(s) for name, s in splits.items()} == {"train": 3, "valid": 1, "test1": 2, "test2": 1, "test3": 1}
    train = splits["train"]
    assert train.paths[0] == "Audios/MSP-PODCAST_0001_0008.wav" and train.n_samples.tolist() == [8000, 8001, 8002]
    assert train.emotions == ["neutral", "angry", "-"] and train.meta["sex"] == ["male", "male", "unknown"]
    np.testing.assert_allclose(train.dimensions["arousal"], [0.5, 0.8, (3.777778 - 1) / 6], atol=1e-6)
    np.testing.assert_allclose(train.dimensions["valence"], [0, 0.2, (3.555556 - 1) / 6], atol=1e-6)
    np.testing.assert_allclose(train.dimensions["dominance"], [1, 0.75, (3.777778 - 1) / 6], atol=1e-6)
    assert splits["test3"].emotions is None and np.isnan(splits["test3"].dimensions["arousal"]).all()
    scale = {"min": 0, "max": 1, "original_min": 1, "original_max": 7}
    assert read_corpus(tmp_path / "m")["label_scales"] == dict.fromkeys(("arousal", "valence", "dominance"), scale)
    assert read_dictionary(tmp_path / "m/dict.emo.txt") == ["angry", "neutral"]


def test_unknown_speakers(tmp_path):
    folder = release(tmp_path / "db")
    assert run("manifests/msp_podcast.py", folder, tmp_path / "m") == 0
    assert read_split(tmp_path / "m", "train").speakers == ["30", "30", "<unk>"]
    assert read_split(tmp_path / "m", "test1").speakers == ["51", "<unk>"]
    assert read_dictionary(tmp_path / "m/dict.spk.txt") == ["30"]
    assert run("manifests/msp_podcast.py", folder, tmp_path / "m", "--unknown-speakers", "leave-out") == 0
    assert read_split(tmp_path / "m", "train").speakers == ["30", "30"]
    assert len(read_corpus(tmp_path / "m")["left_out"]["unknown speaker"]) == 3


def test_check_does_not_call_unknown_speakers_a_leak(tmp_path, capsys):
    rows = [row for row in ROWS if ",H," not in row and ",S," not in row and ",U," not in row]
    rows += ["MSP-PODCAST_0002_0002.wav,N,5,6.25,5,44,Female,Development", "MSP-PODCAST_0003_0002.wav,A,5,5,5,Unknown,Female,Test1"]
    assert run("manifests/msp_podcast.py", release(tmp_path / "db", rows), tmp_path / "m") == 0
    assert run("tools/check_manifest.py", tmp_path / "m") == 0
    assert "no errors, no leaks" in capsys.readouterr().out


def test_one_partition_can_be_the_test_split_and_classes_can_be_chosen(tmp_path):
    options = ("--test", "test1", "--classes", "neutral", "angry", "happy", "sad")
    assert run("manifests/msp_podcast.py", release(tmp_path / "db"), tmp_path / "m", *options) == 0
    assert splits_of(tmp_path / "m") == ["train", "valid", "test"]
    assert read_split(tmp_path / "m", "test").emotions == ["sad"]
    assert len(read_corpus(tmp_path / "m")["left_out"]["another class, or no agreement"]) == 4


@pytest.mark.parametrize("packed", [False, True])
def test_votes_of_the_single_annotations(packed, tmp_path, capsys):
    folder = release(tmp_path / "db")
    said = {"0001_0008": ["Neutral", "Sad", "Neutral", "Other-bored"], "0002_0001": ["Angry", "Happy"]}
    header, row = (
        ("FileName,EmoDetail", "{},WORKER01; {}; Tired,Sad; A:4; V:3; D:4;") if packed else ("FileName,WorkerID,EmoClass_Major", "{},W,{}")
    )
    row = row.replace("WORKER", '"WORKER') + '"' if packed else row
    lines = [row.format(f"MSP-PODCAST_{name}.wav", word) for name, words in said.items() for word in words]
    (folder / "Labels/labels_detailed.csv").write_text("\n".join([header, *lines, ""]))
    assert run("manifests/msp_podcast.py", folder, tmp_path / "m") == 0
    train = read_split(tmp_path / "m", "train")  # neutral and angry are the classes of its dictionary
    assert {name: list(v) for name, v in train.votes.items()} == {"angry": [0, 0, 1], "neutral": [2, 0, 0]}
    (folder / "Labels/labels_detailed.csv").write_text("FileName,Emotion\na,b\n")
    assert run("manifests/msp_podcast.py", folder, tmp_path / "m") == 2
    assert "labels_detailed.csv:1: has no column “EmoClass_Major”" in failure(capsys)


def test_messy_release(tmp_path, capsys):
    rows = [
        *ROWS,
        ROWS[0],
        "MSP-PODCAST_0009_0001.wav,N,4,4,4,30,Male,Train",
        ROWS[1].replace("0001_0009", "0001_0010").replace("5.8", "7.5"),
    ]
    folder = release(tmp_path / "db", rows)
    for name in ("MSP-PODCAST_0001_0010", "MSP-PODCAST_0100_0001"):
        soundfile.write(folder / f"Audios/{name}.wav", np.ones(8000) / 3, 48000)
    (folder / "Audios/._MSP-PODCAST_0001_0008.wav").write_bytes(b"\0\5\26\7")
    assert run("manifests/msp_podcast.py", folder, tmp_path / "m", "--resample", tmp_path / "16k") == 0
    train = read_split(tmp_path / "m", "train")
    assert train.paths[-1] == "Audios/MSP-PODCAST_0001_0010.flac" and train.n_samples[-1] == 2667
    assert np.isnan(train.dimensions["arousal"][-1]) and train.emotions[-1] == "angry"
    assert read_corpus(tmp_path / "m")["left_out"] == {
        "listed twice": ["Audios/MSP-PODCAST_0001_0008.wav"],
        "labelled, but no audio": ["MSP-PODCAST_0009_0001.wav"],
        "kept, but without dimensions, which are not on the scale 1–7": ["Audios/MSP-PODCAST_0001_0010.wav"],
        "audio without labels": ["Audios/MSP-PODCAST_0100_0001.wav"],
        "hidden files, such as ._*": ["Audios/._MSP-PODCAST_0001_0008.wav"],
    }
    assert "labelled, but no audio: 1 (MSP-PODCAST_0009_0001.wav)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("MSP-PODCAST_0001_0008.wav,Q,4,4,4,30,Male,Train", ":2: EmoClass “Q” is not one of A C D F H N S U O X"),
        ("MSP-PODCAST_0001_0008.wav,N,high,4,4,30,Male,Train", ":2: EmoAct is “high”, not a number"),
        ("MSP-PODCAST_0001_0008.wav,N,4,4,4,30,Male,Exam", ":2: Split_Set “Exam” is unknown"),
        ("MSP-PODCAST_0001_0008.wav,N,4,4,4,30,Male", ":2: 7 columns where the header has 8"),
    ],
)
def test_faulty_lines_are_named(row, message, tmp_path, capsys):
    assert run("manifests/msp_podcast.py", release(tmp_path / "db", [row, *ROWS[1:]]), tmp_path / "m") == 2
    assert f"labels_consensus.csv{message}" in failure(capsys)


def test_incomplete_releases(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("manifests/msp_podcast.py", tmp_path / "empty", tmp_path / "m") == 2
    assert "holds no Labels/labels_consensus.csv" in failure(capsys)
    folder = release(tmp_path / "a", header=HEADER.replace("SpkrID", "Speaker"))
    assert run("manifests/msp_podcast.py", folder, tmp_path / "m") == 2
    assert "labels_consensus.csv:1: has no column “SpkrID”" in failure(capsys)
    folder = release(tmp_path / "b", [row for row in ROWS if "Development" not in row])
    assert run("manifests/msp_podcast.py", folder, tmp_path / "m") == 2
    assert "lists no utterance with audio of the partition valid" in failure(capsys)
    contradiction = ROWS[0].replace(",N,", ",A,")
    assert run("manifests/msp_podcast.py", release(tmp_path / "c", [*ROWS, contradiction]), tmp_path / "m") == 2
    assert "MSP-PODCAST_0001_0008.wav is listed twice with different labels" in failure(capsys)
