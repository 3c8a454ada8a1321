"""tools/check_manifest.py: everything that can be wrong is found and named in one line, and every planted leak as well."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpus import make_labels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts import ROOT, run

from emohubert.corpus import check as validation
from emohubert.corpus.manifest import Utterance, read_dictionary, write_corpus

SPLITS = {"train": ("ann", "bob", "cai"), "valid": ("dot",), "test": ("eva", "fay")}
CLASSES = ("angry", "sad")


def make(folder, splits=None, name="speech", speakers=SPLITS, fold="", seed=0):
    """Noise in folder/audio and its manifest in folder/manifest (or a fold there); returns the manifest folder."""
    rng = np.random.default_rng(seed)
    made = {}
    for split, who in (splits or speakers).items():
        made[split] = []
        for speaker in who:
            for i, emotion in enumerate(CLASSES):
                path = f"{split}/{speaker}_{i}.wav"
                (folder / "audio" / split).mkdir(parents=True, exist_ok=True)
                n = int(rng.integers(3000, 6000))
                soundfile.write(folder / "audio" / path, rng.uniform(-0.5, 0.5, n), 16_000)
                made[split].append(Utterance(path, n, speaker, emotion, {"arousal": 0.5}, {"session": f"of-{speaker}"}))
    write_corpus(folder / "manifest", name, folder / "audio", {fold: made}, scales={"arousal": {"min": 0, "max": 1}})
    return folder / "manifest"


@pytest.fixture
def good(tmp_path):
    return make(tmp_path)


def check(capsys, *arguments):
    """Run the program; returns (exit status, lines of standard output, lines of standard error)."""
    status = run("tools/check_manifest.py", *arguments)
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err.splitlines()


def replace_line(path, number, text):
    lines = path.read_text().splitlines()
    lines[number - 1] = text
    path.write_text("".join(f"{line}\n" for line in lines))


def test_what_is_whole_passes_with_a_table(good, capsys):
    status, out, err = check(capsys, good, "--json", good / "report.json")
    assert status == 0 and not any("error" in line or "problem" in line for line in err)
    train = next(line for line in out if line.startswith(f"{good}/train"))
    assert train.split()[1:4] == ["6", f"{json.loads((good / 'report.json').read_text())['splits'][str(good)]['train']['hours']:.2f}", "3"]
    assert train.endswith("angry 3, sad 3") and out[-1] == "no errors, no leaks"
    assert json.loads((good / "report.json").read_text())["ok"] is True


@pytest.mark.slow
def test_as_a_program_from_any_folder(good, tmp_path):
    soundfile.write(good.parent / "audio/test/eva_0.wav", np.ones(9000) / 2, 16_000)
    done = subprocess.run(
        [sys.executable, ROOT / "tools/check_manifest.py", "manifest"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: manifest/test.tsv:2: ")
    assert "9000 samples" in done.stderr.splitlines()[-1]


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def break_flac(manifest):
    wav = manifest.parent / "audio/train/ann_0.wav"
    wave, _ = soundfile.read(wav)
    soundfile.write(wav.with_suffix(".flac"), wave, 16_000)
    cut(wav.with_suffix(".flac"))
    replace_line(manifest / "train.tsv", 2, f"train/ann_0.flac\t{len(wave)}")


def line_of(path, number):
    return path.read_text().splitlines()[number - 1]


def change_dictionary(manifest, name, remove):
    path = manifest / f"dict.{name}.txt"
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines() if not line.startswith(remove)))


BROKEN = {
    "missing audio": (lambda m: (m.parent / "audio/train/bob_1.wav").unlink(), "train.tsv:5: ", "no such audio file"),
    "truncated WAV": (lambda m: cut(m.parent / "audio/train/ann_1.wav"), "train.tsv:3: ", "truncated WAV"),
    "damaged FLAC": (break_flac, "train.tsv:2: ", "restore it"),
    "not audio": (lambda m: (m.parent / "audio/valid/dot_0.wav").write_text("hello"), "valid.tsv:2: ", "cannot be read as audio"),
    "NaN": (lambda m: soundfile.write(m.parent / "audio/valid/dot_0.wav", np.full(4000, np.nan), 16_000, "FLOAT"), "valid.tsv:2: ", "NaN"),
    "wrong sample count": (lambda m: replace_line(m / "test.tsv", 3, "test/eva_1.wav\t4321"), "test.tsv:3: ", "the manifest says 4321"),
    "empty manifest": (lambda m: (m / "test.tsv").write_text(""), "test.tsv: ", "lists no audio"),
    "root moved": (lambda m: replace_line(m / "test.tsv", 1, "/nowhere/at/all"), "test.tsv:1: ", "no such folder"),
    "malformed line": (lambda m: replace_line(m / "valid.tsv", 2, "valid/dot_0.wav"), "valid.tsv:2: ", "is not path<TAB>n_samples"),
    "sidecar too short": (lambda m: (m / "test.emo").write_text("sad\n"), "test.emo: ", "1 lines for the 4 utterances"),
    "table too short": (lambda m: (m / "test.dim").write_text("arousal\n1\n"), "test.dim: ", "1 lines for the 4 utterances"),
    "not a number": (lambda m: replace_line(m / "test.dim", 3, "much"), "test.dim:3: ", "not a number"),
    "off the scale": (lambda m: replace_line(m / "test.dim", 3, "1.5"), "test.dim:3: ", "its scale in corpus.json is 0 to 1"),
    "not votes": (lambda m: (m / "test.votes").write_text("angry\tsad\n1\t0\n1\t-1\n" + "0\t0\n" * 2), "test.votes:3: ", "number of votes"),
    "votes for another class": (
        lambda m: (m / "test.votes").write_text("angry\tbored\n" + "0\t1\n" * 4),
        "test.votes:1: ",
        "“bored” is not in",
    ),
    "unknown class": (lambda m: replace_line(m / "valid.emo", 2, "bored"), "valid.emo:2: ", "the class “bored” is not in"),
    "empty class dictionary": (lambda m: (m / "dict.emo.txt").write_text(""), "dict.emo.txt: ", "the dictionary is empty"),
    "class dictionary missing": (lambda m: (m / "dict.emo.txt").unlink(), "dict.emo.txt: ", "no such file"),
    "speaker not in dictionary": (lambda m: change_dictionary(m, "spk", "bob"), "train.spk:3: ", "the speaker “bob” is not in"),
    "listed twice": (
        lambda m: replace_line(m / "test.tsv", 3, line_of(m / "test.tsv", 2)),
        "test.tsv:3: ",
        "in line 2 already",
    ),
    "binary sidecar": (lambda m: (m / "train.spk").write_bytes(b"\xff\xfe\x00"), "train.spk: ", "not a UTF-8 text file"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_one_line_names_file_line_and_remedy(what, good, capsys):
    break_it, where, message = BROKEN[what]
    break_it(good)
    status, _, err = check(capsys, good)
    assert status == 2 and err[-1].startswith("error: ") and where in err[-1] and message in err[-1] and ";" in err[-1]
    assert sum(line.startswith("error:") for line in err) == 1


def test_too_short_for_a_frame(tmp_path, capsys):
    manifest = make(tmp_path)
    soundfile.write(tmp_path / "audio/valid/dot_0.wav", np.ones(399) / 3, 16_000)
    replace_line(manifest / "valid.tsv", 2, "valid/dot_0.wav\t399")
    status, _, err = check(capsys, manifest)
    assert status == 2 and "valid.tsv:2: 399 samples are not enough for a frame" in err[-1]


def test_every_error_is_listed(good, capsys):
    for what in ("missing audio", "wrong sample count", "unknown class", "speaker not in dictionary", "not a number"):
        BROKEN[what][0](good)
    status, _, err = check(capsys, good)
    problems = [line for line in err if line.startswith("problem: ")]
    assert status == 2 and len(problems) == 5 and "(5 problems in all)" in err[-1]
    for what in ("missing audio", "wrong sample count", "unknown class", "speaker not in dictionary", "not a number"):
        assert any(BROKEN[what][1] in p and BROKEN[what][2] in p for p in problems), what


@pytest.mark.parametrize("nothing", ["missing", "empty"])
def test_no_manifests(nothing, tmp_path, capsys):
    if nothing == "empty":
        (tmp_path / nothing).mkdir()
    status, _, err = check(capsys, tmp_path / nothing)
    assert status == 2 and err[-1].startswith(f"error: {tmp_path / nothing}: ") and "manifests/NAME.py" in err[-1]


def labels(manifest):
    return make_labels(manifest, manifest.parent / "labels" / "km12")


def test_labels_that_fit(good, capsys):
    labels(good)
    assert check(capsys, good, "--labels", good.parent / "labels")[0] == 0


LABEL_FAULTS = {
    "empty dictionary": (lambda d: (d / "dict.km.txt").write_text(""), "dict.km.txt: ", "empty"),
    "no dictionary": (lambda d: (d / "dict.km.txt").unlink(), "dict.km.txt: ", "no such file"),
    "line too short": (lambda d: replace_line(d / "test.km", 2, "1 2 3"), "test.km:2: ", "3 labels, but the audio"),
    "line missing": (lambda d: (d / "train.km").write_text("1 2 3\n"), "train.km: ", "1 lines for 6 utterances"),
    "unknown label": (
        lambda d: replace_line(d / "valid.km", 1, line_of(d / "valid.km", 1) + " 77"),
        "valid.km:1: ",
        "“77”",
    ),
    "no labels of train": (lambda d: (d / "train.km").unlink(), "train.km: ", "no such label file"),
    "of another manifest": (lambda d: shutil.copy(d / "test.km", d / "test2.km"), "test2.km: ", "no readable split test2"),
}


@pytest.mark.parametrize("what", LABEL_FAULTS)
def test_labels_that_do_not_fit(what, good, capsys):
    break_it, where, message = LABEL_FAULTS[what]
    break_it(labels(good))
    status, _, err = check(capsys, good, "--labels", good.parent / "labels/km12")
    assert status == 2 and where in err[-1] and message in err[-1]


def test_labels_of_a_fold_are_checked_against_that_fold(tmp_path, capsys):
    manifest = make(tmp_path, fold="fold1")
    make_labels(manifest / "fold1", tmp_path / "labels/fold1/km12")
    assert check(capsys, manifest, "--labels", tmp_path / "labels")[0] == 0
    shutil.move(tmp_path / "labels/fold1", tmp_path / "labels/somewhere")
    status, _, err = check(capsys, manifest, "--labels", tmp_path / "labels")
    assert status == 2 and "no telling which fold" in err[-1]


def test_no_label_folder(good, capsys):
    status, _, err = check(capsys, good, "--labels", good / "nowhere")
    assert status == 2 and "nowhere: no such label folder" in err[-1]
    status, _, err = check(capsys, good, "--labels", good)
    assert status == 2 and "holds no label file" in err[-1]


def test_shared_speaker_and_session(tmp_path, capsys):
    manifest = make(tmp_path, {"train": ("ann", "bob"), "valid": ("cai",), "test": ("bob", "dot")})
    status, _, err = check(capsys, manifest)
    assert status == 2
    assert any("test.spk:1: leak of speaker: 1 speakers" in line and "(bob)" in line for line in err)
    assert any("test.meta.tsv:2: leak of session" in line and "(of-bob)" in line for line in err)
    assert check(capsys, manifest, "--allow", "speaker")[0] == 2
    assert check(capsys, manifest, "--allow", "speaker", "--allow", "session")[0] == 0
    assert check(capsys, manifest, "--allow", "speaker:test,session:test")[0] == 0
    assert check(capsys, manifest, "--allow", "speaker:valid,session:valid")[0] == 2
    status, _, err = check(capsys, manifest, "--allow", "everything")
    assert status == 2 and err[-1].startswith("error: argument --allow: ")


@pytest.mark.parametrize("copy", ["same bytes", "flac", "float wav"])
@pytest.mark.parametrize("to", ["train", "valid"])
def test_same_audio_under_two_names(copy, to, good, capsys):
    audio = good.parent / "audio"
    wave, _ = soundfile.read(audio / "test/fay_1.wav", dtype="float32")
    speaker = {"train": "bob", "valid": "dot"}[to]
    new = f"{to}/{speaker}_1." + ("flac" if copy == "flac" else "wav")
    if copy == "same bytes":
        shutil.copy(audio / "test/fay_1.wav", audio / new)
    else:
        soundfile.write(audio / new, wave, 16_000, "PCM_16" if copy == "flac" else "FLOAT")
    replace_line(good / f"{to}.tsv", {"train": 5, "valid": 3}[to], f"{new}\t{len(wave)}")
    status, _, err = check(capsys, good)
    assert status == 2 and "test.tsv:5: leak of audio: 1 recordings" in err[-1] and f"{new} = " in err[-1]
    assert check(capsys, good, "--allow", "audio")[0] == 0
    assert check(capsys, good, "--headers-only")[0] == 0  # as its help says


def test_the_same_file_is_found_without_decoding(good, capsys):
    replace_line(good / "train.tsv", 5, line_of(good / "test.tsv", 2))
    status, _, err = check(capsys, good, "--headers-only")
    assert status == 2 and "leak of audio" in err[-1]


def test_silence_is_no_leak(good, capsys):
    for split, name, line in (("train", "ann_0", 2), ("test", "eva_0", 2)):
        soundfile.write(good.parent / f"audio/{split}/{name}.wav", np.zeros(4000), 16_000)
        replace_line(good / f"{split}.tsv", line, f"{split}/{name}.wav\t4000")
    status, out, _ = check(capsys, good)
    assert status == 0 and any("2 files are digital silence" in line for line in out)


def test_unknown_speakers_are_not_one_person(tmp_path, capsys):
    manifest = make(tmp_path, {"train": ("ann", "<unk>"), "test": ("<unk>", "dot")})
    assert read_dictionary(manifest / "dict.spk.txt") == ["ann"]
    assert check(capsys, manifest, "--allow", "session")[0] == 0


def test_pretraining_in_one_folder_and_testing_in_another(tmp_path, capsys):
    tests = make(tmp_path / "a", seed=1)
    harmless = make(tmp_path / "b", {"train": ("gus",), "valid": ("hal",)}, seed=2)
    assert check(capsys, harmless, tests)[0] == 0
    harmful = make(tmp_path / "c", {"train": ("gus", "eva"), "valid": ("hal",)}, seed=3)
    assert check(capsys, harmful)[0] == 0
    status, _, err = check(capsys, harmful, tests, "--allow", "session")
    assert status == 2 and f"1 speakers of {harmful}/train.tsv are in {tests}/test.tsv" in err[-1]
    other_corpus = make(tmp_path / "d", {"train": ("gus", "eva"), "valid": ("hal",)}, name="other", seed=4)
    assert check(capsys, other_corpus, tests)[0] == 0  # the same name in another corpus is another person


def test_folds_of_one_corpus_are_separate_but_equal_folds_of_two_are_not(tmp_path, capsys):
    folds = {
        "fold1": {"train": ("ann",), "valid": ("bob",), "test": ("cai",)},
        "fold2": {"train": ("cai",), "valid": ("ann",), "test": ("bob",)},
    }
    for corpus in ("a", "b"):
        for i, (fold, splits) in enumerate(folds.items()):
            make(tmp_path / corpus / fold, splits, fold=fold, seed=10 + i + 2 * (corpus == "b"))
            shutil.move(tmp_path / corpus / fold / "manifest" / fold, tmp_path / corpus / "manifest" / fold)
        (tmp_path / corpus / "manifest" / "corpus.json").write_text('{"corpus": "speech"}')
    a, b = tmp_path / "a/manifest", tmp_path / "b/manifest"
    assert check(capsys, a)[0] == 0
    assert check(capsys, a, b)[0] == 0  # fold k of one against fold k of the other
    status, _, err = check(capsys, a / "fold1", b / "fold2", "--allow", "session")
    assert status == 2 and "leak of speaker" in err[-1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(assignment=st.lists(st.sampled_from(["", "train", "valid", "test", "train test", "valid test"]), min_size=4, max_size=4))
def test_speaker_leaks_are_exactly_the_shared_speakers(assignment, good):
    speakers = dict(zip("pqrs", assignment, strict=True))
    splits = {name: [s for s, where in speakers.items() if name in where.split()] for name in ("train", "valid", "test")}
    members = [validation.Member(0, "", good, {}, {n: validation.read_split(good, n) for n in splits})]
    for name, split in members[0].splits.items():
        split.speakers = ((splits[name] or [f"only-{name}"]) * len(split))[: max(len(split), len(splits[name]))]
        split.meta = None
    report = validation.CheckReport(members)
    validation._find_leaks(report, {}, set())
    expected = {(name, tuple(sorted(set(splits["train"]) & set(splits[name])))) for name in ("valid", "test")}
    assert {(Path(leak.between["second"]).stem, tuple(leak.shared)) for leak in report.leaks} == {(n, s) for n, s in expected if s}
