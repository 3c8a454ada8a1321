"""Tables as people write them: manifests/table.py reads them right, or says in one line what is wrong, and writes nothing."""

import unicodedata

import numpy as np
import pytest
import soundfile
from scripts import run

from emohubert.corpus.audio import read
from emohubert.corpus.manifest import read_corpus, read_split, splits_of

HEAD = "path,speaker,split,emotion"
LINES = ("r0.wav,a,train,sad", "r1.wav,b,valid,sad", "r2.wav,c,test,sad")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "audio").mkdir()
    for i in range(3):
        soundfile.write(tmp_path / f"audio/r{i}.wav", np.random.default_rng(i).uniform(-0.5, 0.5, 16_000 + i), 16_000, subtype="FLOAT")
    return tmp_path


def make(folder, *lines, head=HEAD, options=(), audio="audio"):
    """Run table.py on a table of these lines (or bytes); returns its exit status."""
    (folder / "t.csv").write_bytes(lines[0] if isinstance(lines[0], bytes) else "\n".join([head, *lines, ""]).encode())
    return run("manifests/table.py", folder / audio, folder / "m", "--table", folder / "t.csv", *options)


def refused(folder, capsys, message):
    """Whether the program ended on one line with this message, and left nothing."""
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and message in last
    return not (folder / "m").exists()


# --- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("Train", "Validation", "Test"), ["train", "valid", "test"]),
        (("TRAINING", "dev", "evaluation"), ["train", "valid", "test"]),
        (("training set", "Devel", "Testing"), ["train", "valid", "test"]),
        (("trn", "val-set", "EVAL"), ["train", "valid", "test"]),
        (("TRAIN", "devel", "Test_Seen"), ["train", "valid", "test_seen"]),
        (("train", "dev", "test_b"), ["train", "valid", "test_b"]),
    ],
)
def test_words_for_splits(names, splits, folder, capsys):
    assert make(folder, *(f"r{i}.wav,{i},{name},sad" for i, name in enumerate(names))) == 0
    assert splits_of(folder / "m") == splits and read_split(folder / "m", "train").paths == ["r0.wav"]
    assert f"the split valid is called {names[1]} there" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "1", "0_1", "nan", "None", "True", "../x", "a b", "train|test", "-x"])
def test_what_is_no_name_of_a_split(name, folder, capsys):
    assert make(folder, LINES[0], f"r1.wav,b,{name},sad") == 2
    assert refused(folder, capsys, f"t.csv:3: “{name}” is not the name of a split")


def test_a_table_without_training_says_so(folder, capsys):
    assert make(folder, *LINES[1:]) == 0 and splits_of(folder / "m") == ["valid", "test"]
    assert "no split is train (it has valid, test)" in capsys.readouterr().err


# --- parts of files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--resample", "flac")])
def test_start_and_end_are_honoured(options, folder):
    options = [folder / "flac" if o == "flac" else o for o in options]
    lines = ("r0.wav,a,train,sad,0.1,0.5", "r1.wav,b,valid,sad,,", "r0.wav,a,train,sad,0.5,1", "r2.wav,c,test,sad,0.25,")
    assert make(folder, *lines, head=f"{HEAD},Start,End", options=options) == 0
    train, valid, test = (read_split(folder / "m", name) for name in ("train", "valid", "test"))
    assert train.paths == ["r0_1600_8000.flac", "r0_8000_16000.flac"] and train.n_samples.tolist() == [6400, 8000]
    assert valid.paths == ["r1.flac"] and valid.n_samples.tolist() == [16_001]
    assert test.paths == ["r2_4000_end.flac"] and test.n_samples.tolist() == [12_002]
    assert train.root == (folder / "flac" if options else folder / "m/audio") and train.meta["start"] == ["0.1", "0.5"]
    np.testing.assert_allclose(read(train.audio(0)), read(folder / "audio/r0.wav", 1600, 8000), atol=2**-15)
    assert run("tools/check_manifest.py", folder / "m") == 0
    written = {path: path.stat().st_ctime_ns for path in train.root.iterdir()}
    assert make(folder, *lines, head=f"{HEAD},Start,End", options=[*options, "--seed", 2]) == 0  # another run writes no audio again
    assert {path: path.stat().st_ctime_ns for path in train.root.iterdir()} == written


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ("-0.1,0.5", "t.csv:2: no part from -0.1 to 0.5;"),
        ("0.5,0.1", "t.csv:2: no part from 0.5 to 0.1;"),
        ("0.5,0.5", "t.csv:2: no part from 0.5 to 0.5;"),
        ("-1,", "t.csv:2: no part from -1 to the end"),
        ("inf,1", "t.csv:2: start is “inf”, not a number"),
        ("0,inf", "t.csv:2: end is “inf”, not a number"),
        ("nan,1", "t.csv:2: start is “nan”, not a number"),
        ('"0,5",1', "t.csv:2: start is “0,5”, not a number"),
    ],
)
def test_times_that_cannot_be(times, message, folder, capsys):
    assert make(folder, f"r0.wav,a,train,sad,{times}", LINES[1] + ",,", head=f"{HEAD},start,end") == 2
    assert refused(folder, capsys, message)


@pytest.mark.parametrize("times", ["0.5,1.2", "1,1.5", "1000,9000", "2,"])
def test_times_beyond_the_end(times, folder, capsys):
    assert make(folder, LINES[1] + ",,", f"r0.wav,a,train,sad,{times}", head=f"{HEAD},start,end") == 2
    refused(folder, capsys, "t.csv:3: " + str(folder / "audio/r0.wav") + " lasts 1 s, so there is no part from")
    assert not list((folder / "m").glob("*.tsv"))
    assert make(folder, LINES[1] + ",,", "r0.wav,a,train,sad,0.5,1.01", head=f"{HEAD},start,end") == 0  # rounded up
    assert read_split(folder / "m", "train").n_samples.tolist() == [8000]


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["inf", "-Infinity", "nan", "NaN", "1e400", "1e39", "1_0", "0,5", "0x1"])
def test_dimensions_that_our_check_would_refuse(value, folder, capsys):
    assert make(folder, LINES[1] + ",0.5", f'r0.wav,a,train,sad,"{value}"', head=f"{HEAD},Arousal") == 2
    assert refused(folder, capsys, f"t.csv:3: arousal is “{value}”, not a number")
    assert make(folder, LINES[0] + ",1", head=f"{HEAD},arousal", options=("--scale", "0", "inf")) == 2
    assert refused(folder, capsys, "--scale 0 inf")


# --- paths ----------------------------------------------------------------------------------------------------------


def test_folders_with_odd_names(folder):
    odd = folder / "x = , ( ) ' é 新 { [ # & y } ] \" $HOME ; * ? ~ % \\ | < >"
    odd.mkdir()
    (folder / "audio").rename(odd / "audio")
    (odd / "audio/r0.wav").rename(odd / "audio/r=0, (é) 'x' [#&].wav")
    assert make(odd, "\"r=0, (é) 'x' [#&].wav\",a,train,sad", *LINES[1:]) == 0
    assert run("tools/check_manifest.py", odd / "m") == 0
    assert run("manifests/folder.py", odd / "audio", odd / "speech", "--resample", odd / "16k", "--valid", 0.4) == 0
    assert run("tools/check_manifest.py", odd / "speech") == 0 and len(list((odd / "16k").iterdir())) == 3


def test_absolute_paths_by_way_of_links(folder):
    (folder / "link").symlink_to("audio")
    for audio, named in (("link", "link"), ("link", "audio"), ("audio", "link")):
        assert make(folder, f"{folder / named}/r0.wav,a,train,sad", *LINES[1:], audio=audio, options=("--overwrite",)) == 0
        assert read_split(folder / "m", "train").paths == ["r0.wav"]


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_accents_in_either_normal_form(written, stored, folder):
    name = "Séance é/Grüße ü.wav"
    path = folder / "audio" / unicodedata.normalize(stored, name)
    path.parent.mkdir()
    (folder / "audio/r0.wav").rename(path)
    assert make(folder, unicodedata.normalize(written, name) + ",é,train,sad", *LINES[1:]) == 0
    assert read_split(folder / "m", "train").audio(0).samefile(path)
    assert run("tools/check_manifest.py", folder / "m") == 0


def test_a_speaker_in_two_normal_forms_is_one(folder):
    e = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    assert make(folder, f"r0.wav,{e[0]},train,sad", f"r1.wav,{e[1]},train,sad") == 0
    assert read_corpus(folder / "m")["speakers"] == 1


def test_capitals_backslashes_and_detours(folder):
    (folder / "audio/s").mkdir()
    for i, name in enumerate(("s/r0.WAV", "s/r1.wav")):
        (folder / f"audio/r{i}.wav").rename(folder / "audio" / name)
    assert make(folder, r"s\R0.wav,a,train,sad", "s/../s/r1.wav,b,train,sad", "./r2.wav,c,train,sad", "r2.wav,c,train,sad") == 0
    assert read_split(folder / "m", "train").paths == ["s/r0.WAV", "s/r1.wav", "r2.wav"]
    assert read_corpus(folder / "m")["left_out"] == {"listed twice": ["r2.wav"]}
    (folder / "audio/s/R1.wav").write_bytes((folder / "audio/s/r1.wav").read_bytes())
    (folder / "audio/s/R1.WAV").write_bytes((folder / "audio/s/r1.wav").read_bytes())
    assert make(folder, "s/r1.WAV,b,train,sad") == 2  # three are like it


@pytest.mark.parametrize("path", ["../out.wav", "s/../../out.wav", "/out.wav", ".", "..", "/", "x/.."])
@pytest.mark.parametrize("options", [(), ("--resample", "flac/deep")])
def test_paths_that_lead_out(path, options, folder, capsys):
    soundfile.write(folder / "out.wav", np.zeros(8000), 16_000)
    assert make(folder, *LINES, f"{path},a,train,sad", options=[folder / o if "/" in o else o for o in options]) == 2
    assert refused(folder, capsys, f"t.csv:5: {path} is not below {folder / 'audio'}; give a common folder")
    assert not (folder / "flac").exists()


def test_a_folder_that_is_not_there(folder, capsys):
    assert make(folder, f"{folder}/audio/r0.wav,a,train,sad", audio="nowhere") == 2
    assert refused(folder, capsys, f"{folder}/nowhere: no such folder")


def test_two_files_of_one_stem(folder, capsys):
    soundfile.write(folder / "audio/r0.flac", np.zeros(8000), 16_000)
    assert make(folder, *LINES, "r0.flac,a,train,sad") == 2
    assert refused(folder, capsys, "t.csv:5: r0.flac and r0.wav (line 2) are called the same but for the ending")


# --- files ----------------------------------------------------------------------------------------------------------

PLAIN = "\n".join((HEAD, *LINES, ""))
AS_PEOPLE_WRITE = {
    "byte order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "Windows": PLAIN.replace("\n", "\r\n").encode(),
    "old Mac": PLAIN.replace("\n", "\r").encode(),
    "Excel's Unicode text": PLAIN.replace(",", "\t").encode("utf-16"),
    "big-endian": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "semicolons": PLAIN.replace(",", ";").encode(),
    "quoted": "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in PLAIN.split("\n")[:-1]).encode(),
    "empty rows": ("\n\n" + PLAIN.replace("\nr1", "\n\n,,,\nr1") + ",,,\n").encode(),
    "trailing delimiters": PLAIN.replace("\n", ",,\n").encode(),
    "trailing delimiters below": PLAIN.replace("sad\n", "sad,\n").encode(),
    "whitespace": PLAIN.replace(",", " , ").encode(),
    "capitals": PLAIN.replace(HEAD, HEAD.title()).encode(),
    "mixed": PLAIN.replace(HEAD, HEAD.upper()).replace("\n", "\r\n").encode("utf-8-sig"),
}


@pytest.mark.parametrize("kind", AS_PEOPLE_WRITE)
def test_files_as_people_write_them(kind, folder):
    assert make(folder, AS_PEOPLE_WRITE[kind]) == 0 and splits_of(folder / "m") == ["train", "valid", "test"]
    test = read_split(folder / "m", "test")
    assert (test.paths[:], test.speakers[:], test.emotions[:], list(test.meta)) == (["r2.wav"], ["c"], ["sad"], ["id"])


def test_a_column_without_a_name_gets_one(folder):
    assert make(folder, *(f"{i},{line}" for i, line in enumerate(LINES)), head=f",{HEAD}") == 0  # the index that pandas writes
    assert read_split(folder / "m", "test").meta == {"id": ["r2"], "column 1": ["2"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PLAIN.encode("utf-16-le"), "t.csv: holds zero bytes, so it is no plain text; save it as CSV"),
        (PLAIN.encode("utf-16")[:-1], "t.csv: not a UTF-8 text file"),
        (PLAIN.replace("a", "é").encode("latin-1"), "t.csv: not a UTF-8 text file"),
        (PLAIN.replace("emotion", "emotion,emotion").encode(), "t.csv:1: the column “emotion” is there twice"),
        (PLAIN.replace("path", "Path,PATH").encode(), "t.csv:2: 4 columns where the header has 5"),
        (PLAIN.replace(LINES[1], "r0.wav,a,test,sad").encode(), "t.csv:3: r0.wav is in line 2 already, with other values"),
        (PLAIN.replace(LINES[1], "r1.wav").encode(), "t.csv:3: 1 columns where the header has 4"),
        (PLAIN.replace("r0", "x" * 300).encode(), "no such audio file"),
        (b'{"a": 1,\n "b": 2}\n', "t.csv:1: has no column “path”"),
    ],
)
def test_files_that_cannot_be_read(content, message, folder, capsys):
    assert make(folder, content) == 2
    assert refused(folder, capsys, message)
