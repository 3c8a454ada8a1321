"""The recipes of the papers, end to end on a miniature; and what they refuse."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from scripts import ROOT, run

from emohubert.corpus.manifest import read_dictionary, read_split
from emohubert.pretrained.safe_files import load_state
from emohubert.training.curves import read_training_log

MINIATURE = [
    *("--manifests", "synthetic", "--init", "scratch", "--folds", "1", "--init-updates", "4", "--updates", "4"),
    *("--manifest", "--protocol folds --speakers 8 --utterances 5 --seconds 0.5 1.0"),
    *("--pretrain", "dataset.max_tokens=32000 checkpoint.save_interval_updates=2"),
    *("--finetune", "optimization.max_epoch=1"),
]


def recipe(name, *options):
    """Run a recipe in this environment; returns (exit status, what it printed)."""
    environment = {**os.environ, "EMOHUBERT_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        ["bash", ROOT / "recipes" / f"{name}.sh", *map(str, options)], env=environment, capture_output=True, text=True, check=False
    )
    return finished.returncode, finished.stdout + finished.stderr


@pytest.mark.slow
def test_all_papers_on_the_same_folds_and_start(tmp_path):
    options = ["--corpus-dir", tmp_path / "audio", *MINIATURE, "--out", tmp_path / "out"]
    status, printed = recipe("compare", *options)
    assert status == 0, printed[-4000:]
    systems = {s["name"]: s for s in json.loads((tmp_path / "out" / "results.json").read_text())["systems"]}
    expected = {"V-FT", "TAPT", "P-TAPT", "FLEA, mean", "FLEA, attention", "PAPT, unknown speaker", "PAPT, adapted", "PAPT + PLDC"}
    assert expected <= set(systems)
    assert systems["PAPT, adapted"]["setting"] == ["adapted (2 speakers)"]
    assert systems["PAPT, unknown speaker"]["setting"] == ["inductive (2 speakers)"]
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["evaluations"] and all(leak["allowed"] for leak in audit["leaks"])
    status, again = recipe(
        "tapt", *options[:-1], tmp_path / "out" / "tapt", "--init-dir", tmp_path / "out", "--stage", "4", "--stop-stage", "4"
    )
    assert status == 0 and "trained already" in again, "what was done is done again"


@pytest.mark.slow
def test_where_the_speaker_is_added(tmp_path):
    """The validation loss of every position's pretraining stands beside its scores."""
    options = ["--corpus-dir", tmp_path / "audio", *MINIATURE, "--out", tmp_path / "out", "--positions", "none output"]
    status, printed = recipe("fusion", *options)
    assert status == 0, printed[-4000:]
    systems = {s["name"]: s for s in json.loads((tmp_path / "out" / "results.json").read_text())["systems"]}
    assert set(systems) == {"none", "output"}
    for position in ("none", "output"):
        curves = read_training_log(tmp_path / "out" / "fold1" / f"pretrained_{position}" / "hydra_train.log")
        assert systems[position]["scores"]["validation loss"] == [min(curves["loss"]["valid"][1])] and systems[position]["runs"] == 1


@pytest.mark.slow
def test_a_small_hubert_from_a_folder_of_speech(corpus, tmp_path):
    """Both iterations; the second one learns clusters of a layer of the first. Run again, nothing is left to do."""
    settings = "model.encoder_layers=2 dataset.max_tokens=64000 dataset.validate_interval_updates=2 checkpoint.save_interval_updates=2"
    options = ["--corpus-dir", corpus / "audio", "--out", tmp_path, "--layer", "1", "--clusters", "5", "--updates", "2"]
    status, printed = recipe("hubert_small", *options, "--settings", settings)
    assert status == 0, printed[-4000:]
    state = load_state(tmp_path / "iteration2" / "checkpoint_best.pt")
    assert [s["name"] for s in state["task_state"]["label_sets"]] == ["L1/km25", "prosody/km5", "prosody_absolute/km10"]
    status, again = recipe("hubert_small", *options, "--settings", settings)
    assert status == 0 and again.count("trained already") == 2


@pytest.mark.slow
def test_every_corpus_is_tested_by_a_model_of_every_corpus(corpus, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(corpus / "manifest", other)
    for path in (*other.glob("*.emo"), other / "dict.emo.txt"):
        path.write_text(path.read_text().replace("happy", "excitement").replace("neutral", "puzzled"))
    options = ["--corpora", f"first={corpus / 'manifest'} second={other}", "--init", corpus / "hubert/checkpoint_last.pt"]
    options += ["--config", "ser_classification_tiny", "--finetune", "optimization.max_epoch=1 model.mask_channel_length=4"]
    status, printed = recipe("cross_corpus", *options, "--out", tmp_path / "out", "--all-others")
    assert status == 0, printed[-4000:]
    systems = {s["name"] for s in json.loads((tmp_path / "out" / "results.json").read_text())["systems"]}
    assert systems == {f"{a} → {b}" for a in ("first", "second", "all others") for b in ("first", "second")}
    found = json.loads((tmp_path / "out" / "second" / "on_first" / "metrics.json").read_text())
    assert found["classes"] == ["angry", "excitement", "sad"] and found["label_map"]["left_out"] == {"neutral": 4}


@pytest.mark.slow
def test_settings_are_named_everywhere(corpus, tmp_path):
    """Transductive training in the title and by the audit, and normalised speakers in a row of their own."""
    options = ["--corpus-dir", tmp_path / "audio", *MINIATURE, "--init", corpus / "hubert/checkpoint_last.pt", "--size", "tiny"]
    status, printed = recipe("vft", *options, "--out", tmp_path / "out", "--transductive", "--normalised")
    assert status == 0, printed[-4000:]
    assert "transductive" in (tmp_path / "out" / "results.md").read_text().splitlines()[0]
    systems = {s["name"]: s["setting"] for s in json.loads((tmp_path / "out" / "results.json").read_text())["systems"]}
    assert systems["V-FT, normalised"] == ["normalised by unlabelled audio (2 speakers)"]
    heard = read_split(tmp_path / "out" / "fold1" / "unlabelled", "train")
    test = read_split(tmp_path / "out" / "manifest" / "fold1", "test")
    assert set(test.paths) <= set(heard.paths) and heard.emotions is None and heard.dimensions is None
    assert run("tools/audit_run.py", tmp_path / "out") == 2, "without --allow it is a leak"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--corpus-dir", "x"], "--manifests is missing"),
        (["--frobnicate", "1"], "--frobnicate: unknown option"),
        (["--corpus-dir"], "--corpus-dir: needs a value"),
        (["--corpus-dir", "x", "--manifests", "nothing", "--init", "x", "--out", "x"], "there is no manifests/nothing.py"),
        (["--corpus-dir", "x", "--manifests", "emodb", "--init", "scratch", "--out", "x", "--size", "base"], "makes a tiny HuBERT"),
        (["--corpus-dir", "x", "--manifests", "emodb", "--init", "x", "--out", "x", "--stage", "two"], "not a number"),
        (["--corpus-dir", "x", "--manifests", "emodb", "--init", "x", "--out", "x", "--jobs", "0"], "--jobs 0: give 1 or more"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(options, expected):
    status, printed = recipe("vft", *options)
    assert status == 2 and expected in printed and printed.count("error: ") == 1


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("labels", ["--manifest-dir", "x", "--clusters", "3", "--out", "x", "--nshard", "0"], "--nshard 0: give 1 or more"),
        ("labels", ["--manifest-dir", "x", "--clusters", "3", "--out", "x", "--jobs", ""], "--jobs : not a number"),
        ("labels", ["--manifest-dir", "x", "--clusters", "3", "--out", "x", "--jobs", "0"], "--jobs 0: give 1 or more"),
        ("labels", ["--manifest-dir", "x", "--clusters", "3"], "--out is missing"),
        ("pretrain", ["--config", "papt_tiny", "--out", "x", "--nproc", "0"], "--nproc 0: give 1 or more"),
        ("pretrain", ["--config", "papt_tiny", "--out", "x", "--stage", ""], "--stage : not a number"),
        ("pretrain", ["papt_tiny"], "papt_tiny: unexpected argument"),
    ],
)
def test_so_are_those_of_recipes_without_a_paper(name, options, expected):
    status, printed = recipe(name, *options)
    assert status == 2 and expected in printed and printed.count("error: ") == 1


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "recipes").glob("*.sh") if p.stem not in ("lib", "paper")))
def test_every_recipe_explains_itself(name):
    status, printed = recipe(name, "--help")
    assert status == 0 and "bash recipes/" in printed


def test_pretraining_audio_holds_no_label(tmp_path, corpus):
    manifest = corpus / "manifest"
    assert run("tools/unlabelled.py", manifest, tmp_path / "out", "--train", "train", "test", "--valid", "valid") == 0
    assert not any(p.suffix in (".emo", ".dim") or "emo" in p.name for p in (tmp_path / "out").iterdir())
    heard, sources = read_split(tmp_path / "out", "train"), [read_split(manifest, s) for s in ("train", "test")]
    assert heard.paths == [p for s in sources for p in s.paths] and heard.speakers == [p for s in sources for p in s.speakers]
    assert set(heard.meta) == {"id"}
    assert read_dictionary(tmp_path / "out" / "dict.spk.txt") == sorted(set(heard.speakers))
    assert run("tools/unlabelled.py", manifest, tmp_path / "twice", "--train", "train", "--valid", "train") == 2
    assert run("tools/unlabelled.py", manifest, tmp_path / "none") == 2


def test_programs_in_one_process_up_to_the_first_that_fails(tmp_path, corpus, capsys):
    one, two, three = (["unlabelled", corpus / "manifest", tmp_path / name] for name in ("one", "two", "three"))
    assert run("tools/steps.py", *one, "--train", "train", "--", *two, "--", *three, "--train", "train") == 2
    assert "two: nothing to write" in capsys.readouterr().err
    assert (tmp_path / "one" / "train.tsv").exists() and not (tmp_path / "three").exists()
    assert run("tools/steps.py", "unlabeled", "x") == 2
    assert "error: unlabeled: not a program" in capsys.readouterr().err
    assert run("tools/steps.py", "unlabelled", "--frobnicate") == 2
    assert "(see unlabelled --help)" in capsys.readouterr().err
