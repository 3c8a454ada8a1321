"""Folds × seeds of a configuration: what is trained, skipped, refused and missing, and the numbers in the table."""

import json
import os
import shutil
from pathlib import Path

import audmetric
import numpy as np
import pytest
import scripts
import training
from corpus import CLASSES, make_corpus
from random_hubert import write_random_hubert
from sklearn.metrics import balanced_accuracy_score, f1_score

from emohubert.core import programs
from emohubert.core.errors import InputError
from emohubert.core.files import read_json, write_json
from emohubert.corpus.manifest import read_split
from emohubert.evaluation import cross_validation, figures, scoring
from emohubert.evaluation.predictions import DimensionPredictions, from_probabilities, read_predictions, write_predictions
from emohubert.pretrained.safe_files import load_state
from emohubert.training import launch

pytestmark = pytest.mark.slow  # its tests share trainings that take longer than all of them

TINY = {
    "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
    "encoder_layers": 1,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 2,
    "final_dim": 16,
}
FAST = ("optimization.max_epoch=2", "model.mask_channel_length=4", "optimization.lr=[0.01]", "model.freeze=none")
run_folds = scripts.load("tools/run_folds.py")


class Launcher:
    """Runs trainings in the forkserver; remembers what was trained and evaluated."""

    def __init__(self):
        self.commands, self.threads = [], set()

    def execute(self, command, log, environment, progress):
        self.threads.add(environment["OMP_NUM_THREADS"])
        options = command[command.index("--config-dir") :]
        folder = Path(next(c.partition("=")[2] for c in options if c.startswith("checkpoint.save_dir=")).strip("'"))
        self.commands.append(f"train {folder.parent.name}/{folder.name}")
        process = training.start(options[3], *options[4:], config_dir=options[1], output=log)
        process.join(300)
        return process.exitcode

    def evaluate(self, arguments):
        folder, scores = Path(arguments[0]).parent, Path(arguments[3]) / "metrics.json"
        before = scores.exists() and scores.stat().st_mtime_ns
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(figures, "draw", lambda *_: None)
            programs.load("tools", "evaluate").main.__wrapped__([*arguments, "--repeats", "2"])
        if scores.stat().st_mtime_ns != before:
            self.commands.append(f"evaluate {folder.parent.name}/{folder.name}")


@pytest.fixture
def launcher(monkeypatch):
    launcher = Launcher()
    monkeypatch.setattr(launch, "execute", launcher.execute)
    monkeypatch.setattr(run_folds, "evaluate", launcher.evaluate)
    return launcher


def run(*arguments):
    try:
        run_folds.main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code
    return 0


def make_folds(folder, names=("1", "2"), splits=("train", "valid", "test")):
    """Folds whose splits are the corpus's, test utterances dealt out to the folds. Returns the folder of the folds."""
    manifest, everything = folder / "manifest", folder / "folds"
    for number, name in enumerate(names):
        fold = everything / f"fold{name}"
        fold.mkdir(parents=True)
        for path in manifest.iterdir():
            split, _, suffix = path.name.partition(".")
            if split in ("dict", "corpus"):
                shutil.copy(path, fold)
            elif split in splits:
                lines = path.read_text().splitlines()
                header = suffix in ("tsv", "dim", "meta.tsv")
                body = lines[header:][number :: len(names)] if split == "test" else lines[header:]
                (fold / path.name).write_text("\n".join([*lines[:header], *body]) + "\n")
    write_json(everything / "corpus.json", {"corpus": "noise", "options": {"protocol": "folds"}})
    for fold in everything.glob("fold*"):
        (fold / "corpus.json").unlink()
    return everything


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, seconds=(0.2, 0.5), train=16, valid=8, test=32)
    write_random_hubert(folder / "hubert.pt", **TINY)
    make_folds(folder)
    return folder


@pytest.fixture(scope="module")
def finished(corpus):
    """Two folds × two seeds, run to the end; the folder and the launcher."""
    with pytest.MonkeyPatch.context() as patch:
        launcher = Launcher()
        patch.setattr(launch, "execute", launcher.execute)
        patch.setattr(run_folds, "evaluate", launcher.evaluate)
        assert run(*command(corpus, corpus / "runs"), "--jobs", "2") == 0
    return corpus / "runs", launcher


def command(corpus, out, *more):
    options = ["--folds", "1", "2", "--seeds", "1", "2", "--repeats", "20"]
    return ["ser_classification_tiny", corpus / "folds", out, *options, f"model.init_from={corpus}/hubert.pt", *FAST, *more]


def told(out, fold, seed):
    return read_predictions(out / f"fold{fold}" / f"seed{seed}" / "test" / "predictions.tsv")


def scores_of(predictions):
    return np.array(
        [
            100 * balanced_accuracy_score(predictions.emotions, predictions.predicted),
            100 * np.mean(np.array(predictions.emotions) == predictions.predicted),
            100 * f1_score(predictions.emotions, predictions.predicted, labels=list(CLASSES), average="macro", zero_division=0),
        ]
    )


def test_every_fold_is_trained_with_every_seed_and_evaluated(corpus, finished):
    out, launcher = finished
    names = [f"fold{f}/seed{s}" for f in (1, 2) for s in (1, 2)]
    assert sorted(launcher.commands) == sorted([f"{what} {name}" for what in ("train", "evaluate") for name in names])
    for fold in (1, 2):
        for seed in (1, 2):
            cfg = load_state(out / f"fold{fold}" / f"seed{seed}" / "checkpoint_best.pt")["cfg"]
            assert cfg["common"]["seed"] == seed and cfg["task"]["data"] == str(corpus / "folds" / f"fold{fold}")
            assert told(out, fold, seed).ids == read_split(corpus / "folds" / f"fold{fold}", "test").ids
    assert not np.allclose(told(out, 1, 1).probabilities, told(out, 1, 2).probabilities)


def test_cores_are_divided_among_jobs(finished, monkeypatch, corpus, launcher, tmp_path):
    assert finished[1].threads == {str(max(1, int(os.environ.get("OMP_NUM_THREADS") or cross_validation.cores()) // 2))}
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    runs = cross_validation.plan("ser_classification_tiny", corpus / "folds", tmp_path, [1], overrides=["model.init_from=/nowhere.pt"])
    with pytest.raises(InputError):
        cross_validation.execute(runs[:1], launcher.evaluate, jobs=2)
    assert launcher.threads == {"3"}


def test_the_table_holds_what_scikit_learn_says(finished):
    """Per fold over seeds; over all runs; predictions pooled over folds."""
    out, _ = finished
    content = read_json(out / "results.json")
    rows = {s["name"]: np.array(list(s["scores"].values())).T for s in content["systems"]}
    single = {(f, s): scores_of(told(out, f, s)) for f in (1, 2) for s in (1, 2)}
    for fold in (1, 2):
        np.testing.assert_allclose(rows[f"fold {fold}"], [single[fold, 1], single[fold, 2]])
    np.testing.assert_allclose(rows["all runs"], [single[1, 1], single[1, 2], single[2, 1], single[2, 2]])
    for seed in (1, 2):
        a, b = told(out, 1, seed), told(out, 2, seed)
        both = from_probabilities(
            a.ids + b.ids, a.speakers + b.speakers, a.emotions + b.emotions, a.classes, [*a.probabilities, *b.probabilities]
        )
        np.testing.assert_allclose(rows["pooled over folds"][seed - 1], scores_of(both))
        assert read_predictions(out / "pooled" / f"seed{seed}" / "predictions.tsv").ids == both.ids
    line = next(line for line in (out / "results.md").read_text().splitlines() if line.startswith("| all runs"))
    runs = np.array(list(single.values()))
    assert [f"{m:.1f} ± {s:.1f}" for m, s in zip(runs.mean(0), runs.std(0), strict=True)] == [c.strip() for c in line.split("|")[5:8]]


def test_the_head_of_the_table_says_setting_and_protocol(finished):
    text = (finished[0] / "results.md").read_text()
    head = text[: text.index("| system")]
    for part in (
        "ser_classification_tiny on noise: 2 folds, 2 seeds",
        "optimization.max_epoch=2",
        "folds 1, 2 of noise (manifest protocol folds), seeds 1, 2",
        "the best epoch on the validation split (fold 1, 2)",
        "seen (2 speakers), no speaker embedding",
        "population standard deviation",
    ):
        assert part in head, head
    details = read_json(finished[0] / "results.json")["runs"]
    assert [(d["fold"], d["seed"]) for d in details] == [("1", 1), ("1", 2), ("2", 1), ("2", 2)]
    assert all(d["epoch"] in (1, 2) and "best on validation data" in d["selected"] for d in details)


def test_a_second_call_trains_nothing_and_writes_the_same(corpus, finished, launcher, capsys):
    before = (finished[0] / "results.json").read_bytes()
    (finished[0] / "results.json").unlink()
    assert run(*command(corpus, finished[0])) == 0
    assert launcher.commands == [] and (finished[0] / "results.json").read_bytes() == before
    assert "| pooled over folds" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_and_the_others_are_left_alone(corpus, finished, launcher, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "runs")
    (out / "fold2" / "seed1" / "finished").unlink()
    (out / "fold1" / "seed2" / "test" / "metrics.json").unlink()
    (out / "fold1" / "seed2" / "test" / ".evaluate.json").unlink()
    first = load_state(out / "fold2" / "seed1" / "checkpoint_last.pt")
    assert run(*command(corpus, out)) == 0
    assert sorted(launcher.commands) == ["evaluate fold1/seed2", "train fold2/seed1"]
    assert "Loaded checkpoint" in (out / "fold2" / "seed1" / "output.log").read_text()
    assert load_state(out / "fold2" / "seed1" / "checkpoint_last.pt")["optimizer_history"][-1] == first["optimizer_history"][-1]


def test_other_settings_are_refused_in_one_line(corpus, finished, launcher, capsys):
    for more in (["optimization.update_freq=[2]"], ["optimization.update_freq=[2]", "--collect"]):
        assert run(*command(corpus, finished[0], *more)) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "holds a training with other settings" in errors[0]
    assert launcher.commands == []


def test_settings_are_kept_as_they_were_given(corpus, finished):
    lines = (finished[0] / "fold1" / "seed2" / "settings.txt").read_text().splitlines()
    expected = [f"task.data={corpus}/folds/fold1", "common.seed=2", f"model.init_from={corpus}/hubert.pt", *FAST]
    assert lines == ["ser_classification_tiny", *expected]


def test_one_index_runs_alone_and_collecting_names_what_is_missing(corpus, finished, launcher, tmp_path, capsys):
    out = shutil.copytree(finished[0], tmp_path / "runs")
    for name in ("results.json", "results.md"):
        (out / name).unlink()
    for name in ("fold1/seed2", "fold2/seed2"):
        shutil.rmtree(out / name)
    assert run(*command(corpus, out, "--collect")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 4 runs are missing or unfinished: fold1/seed2 (--index 1), fold2/seed2 (--index 3)" in error
    assert run(*command(corpus, out, "--index", "1")) == 0
    assert launcher.commands == ["train fold1/seed2", "evaluate fold1/seed2"] and not (out / "results.json").exists()
    np.testing.assert_allclose(told(out, 1, 2).probabilities, told(finished[0], 1, 2).probabilities, atol=1e-6)
    assert run(*command(corpus, out, "--index", "4")) == 2 and "0 to 3" in capsys.readouterr().err
    assert launcher.commands == ["train fold1/seed2", "evaluate fold1/seed2"]


def test_without_a_validation_split_the_last_epoch_is_scored_and_said_so(corpus, launcher, tmp_path):
    shutil.copytree(corpus / "manifest", tmp_path / "manifest")
    make_folds(tmp_path, names=("7",), splits=("train", "test"))
    arguments = ["ser_classification_tiny", tmp_path / "folds", tmp_path / "runs", f"model.init_from={corpus}/hubert.pt", *FAST]
    assert run(*arguments) == 0
    text = (tmp_path / "runs" / "results.md").read_text()
    assert "the last epoch, as there is no validation split (fold 7); epochs 2" in text
    assert "pooled" not in text and "| fold 7" in text
    assert read_json(tmp_path / "runs" / "fold7" / "seed1" / "test" / "metrics.json")["checkpoint"].endswith("checkpoint_last.pt")


def test_a_failed_training_ends_it_with_its_own_words(corpus, launcher, tmp_path, capsys):
    arguments = command(corpus, tmp_path / "runs", "optimization.max_epoch=1", "model.num_layers=9")
    assert run(*arguments) == 2
    err = capsys.readouterr().err.splitlines()
    assert any("has 1 layers" in line for line in err[:-1]) and "training failed (status 2)" in err[-1]
    assert launcher.commands == ["train fold1/seed1"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ser_classification_tiny", "{corpus}/manifest", "{out}"], "holds no fold*/"),
        (["ser_classification_tiny", "{corpus}/folds", "{out}", "--folds", "1", "3"], "fold3/train.tsv: no such file"),
        (["ser_classification_tiny", "{corpus}/folds", "{out}", "--split", "dev"], "fold1/dev.tsv"),
        (["ser_classification_tiny", "{corpus}/folds", "{out}", "--seeds", "1", "1"], "listed twice"),
        (["ser_classification_tiny", "{corpus}/folds", "{out}", "common.seed=3"], "set by --seeds"),
        (["ser_classification_tiny", "{corpus}/folds", "{out}", "--jobs", "0"], "--jobs"),
        (["ser_classification_tiny", "{corpus}/folds", "{out}", "nonsense"], "unrecognized arguments"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(corpus, launcher, tmp_path, capsys, arguments, expected):
    assert run(*(a.format(corpus=corpus, out=tmp_path / "out") for a in arguments)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and expected in errors[0] and launcher.commands == []


def test_fold_and_seed_in_values(corpus, tmp_path):
    overrides = ["model.init_from=exp/fold{fold}/s{seed}.pt", "task.target=[arousal]"]
    runs = cross_validation.plan("c", corpus / "folds", tmp_path, [5, 6], ["2"], overrides=overrides)
    assert [r.overrides[2:] for r in runs] == [(f"model.init_from=exp/fold2/s{s}.pt", "task.target=[arousal]") for s in (5, 6)]
    assert [r.index for r in runs] == [0, 1] and [r.name for r in runs] == ["fold2/seed5", "fold2/seed6"]


def test_overwriting_removes_runs_and_nothing_else(corpus, launcher, tmp_path, monkeypatch):
    other = tmp_path / "runs" / "fold1" / "seed1"
    other.mkdir(parents=True)
    (other / "thesis.txt").write_text("irreplaceable")
    runs = cross_validation.plan("ser_classification_tiny", corpus / "folds", tmp_path / "runs", [1], ["1"])
    with pytest.raises(InputError, match="holds something other than a training"):
        cross_validation.execute(runs, launcher.evaluate, overwrite=True)
    assert (other / "thesis.txt").exists() and launcher.commands == []
    (other / "settings.txt").write_text("c\n")
    monkeypatch.setattr(launch, "execute", lambda _, log, *__: log.write_text("no audio\n") and 1)
    (other / "thesis.txt").rename(other / "checkpoint_last.pt")
    with pytest.raises(InputError, match="training failed \\(status 1\\)"):
        cross_validation.execute(runs, launcher.evaluate, overwrite=True)
    assert not (other / "checkpoint_last.pt").exists()


def test_dimensions_are_collected_as_ccc(corpus, tmp_path):
    """Runs made by hand, scored by audmetric."""
    rng = np.random.default_rng(0)
    runs = cross_validation.plan("ser_regression_tiny", corpus / "folds", tmp_path, [1, 2])
    data = {}
    for r in runs:
        ids = [f"f{r.fold}u{i}" for i in range(20)]
        truth = rng.normal(size=(20, 2))
        data[r.fold, r.seed] = truth, truth + rng.normal(size=(20, 2)) * int(r.fold)
        predictions = DimensionPredictions(ids, ["a", "b"] * 10, ["arousal", "valence"], *data[r.fold, r.seed])
        r.results.mkdir(parents=True)
        write_predictions(r.results / "predictions.tsv", predictions)
        scores = {"setting": "inductive (2 speakers)", **scoring.evaluate(predictions, repeats=5)}
        write_json(r.results / "metrics.json", scores)
        (r.folder / "settings.txt").write_text("\n".join([r.config, *r.overrides]) + "\n")
        (r.folder / "finished").touch()
    cross_validation.collect(runs, tmp_path, repeats=5)
    rows = {s["name"]: s["scores"] for s in json.loads((tmp_path / "results.json").read_text())["systems"]}
    for column, name in enumerate(("arousal", "valence")):
        expected = [audmetric.concordance_cc(t[:, column], p[:, column]) for t, p in data.values()]
        np.testing.assert_allclose(rows["all runs"][f"CCC {name}"], expected)
        for seed in (1, 2):
            truth, predicted = (np.concatenate([data["1", seed][i], data["2", seed][i]])[:, column] for i in (0, 1))
            found = rows["pooled over folds"][f"CCC {name}"][seed - 1]
            np.testing.assert_allclose(found, [audmetric.concordance_cc(truth, predicted)])


def test_pooling_folds_whose_classes_differ():
    a = from_probabilities(["1"], ["s"], ["x"], ["x", "y"], [[0.7, 0.3]])
    b = from_probabilities(["2", "3"], ["s", "t"], ["z", "-"], ["z", "y"], [[0.2, 0.8], [0.6, 0.4]])
    both = cross_validation.pooled([a, b])
    assert both.classes == ["x", "y", "z"] and both.predicted == ["x", "y", "z"] and both.emotions == ["x", "z", "-"]
    np.testing.assert_array_equal(both.probabilities, [[0.7, 0.3, 0], [0, 0.8, 0.2], [0, 0.4, 0.6]])


def test_an_utterance_in_two_folds_is_not_pooled(corpus, finished, tmp_path, caplog):
    out = shutil.copytree(finished[0], tmp_path / "runs")
    shutil.copy(out / "fold1/seed1/test/predictions.tsv", out / "fold2/seed1/test/predictions.tsv")
    runs = cross_validation.plan(
        "ser_classification_tiny", corpus / "folds", out, [1, 2], overrides=[f"model.init_from={corpus}/hubert.pt", *FAST]
    )
    cross_validation.collect(runs, out, repeats=5)
    assert "is in the test split of more than one fold" in (out / "results.md").read_text()
    assert not any("pooled" in s["name"] for s in read_json(out / "results.json")["systems"])


@pytest.mark.slow
def test_the_programs_themselves_are_run(corpus, tmp_path):
    """One run, its training in a process of its own."""
    arguments = ["ser_classification_tiny", corpus / "folds", tmp_path / "runs", "--folds", "2", f"model.init_from={corpus}/hubert.pt"]
    assert run(*arguments, *FAST) == 0
    content = read_json(tmp_path / "runs" / "results.json")
    assert [s["name"] for s in content["systems"]] == ["fold 2"] and content["runs"][0]["epoch"] in (1, 2)
