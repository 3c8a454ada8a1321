"""Evaluation: the files of predictions and embeddings, metrics.json, breakdowns, comparison."""

import io
import json
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import audmetric
import numpy as np
import pytest
import sklearn.metrics
from scripts import ROOT, run

from emohubert.core.errors import InputError
from emohubert.corpus.manifest import Split
from emohubert.evaluation import figures, metrics, scoring
from emohubert.evaluation.predictions import (
    ClassPredictions,
    DimensionPredictions,
    from_probabilities,
    read_embeddings,
    read_predictions,
    write_embeddings,
    write_predictions,
)

CLASSES = ["angry", "happy", "neutral", "sad"]


def take(made, indices):
    """Some of the utterances that were predicted."""
    per_utterance = {name: v for name, v in vars(made).items() if name not in ("classes", "dims", "name")}
    return replace(made, **{n: v[indices] if isinstance(v, np.ndarray) else [v[i] for i in indices] for n, v in per_utterance.items()})


def some_classes(n=120, speakers=6, seed=0, skill=1.5):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(CLASSES), n)
    logits = rng.normal(size=(n, len(CLASSES))) + skill * np.eye(len(CLASSES))[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    speakers = [f"s{i % speakers:02d}" for i in range(n)]
    return from_probabilities([f"u{i}" for i in range(n)], speakers, [CLASSES[i] for i in truth], CLASSES, probabilities)


def some_dimensions(n=120, speakers=6, seed=0, dims=("arousal", "valence")):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(size=(n, len(dims)))
    predicted = (0.2 + 0.6 * truth + rng.normal(0, 0.1, truth.shape)).astype(np.float32).astype(np.float64)
    return DimensionPredictions([f"u{i}" for i in range(n)], [f"s{i % speakers:02d}" for i in range(n)], list(dims), truth, predicted)


def a_split(predictions, **meta):
    n = len(predictions)
    return Split(
        Path("m"), "test", Path("a"), [f"{i}.wav" for i in predictions.ids], np.ones(n), meta={"id": list(predictions.ids), **meta}
    )


# --- files ------------------------------------------------------------------------------------------------------------


def test_class_predictions_survive_writing(tmp_path):
    made = some_classes()
    made.emotions[3] = "-"
    write_predictions(tmp_path / "p.tsv", made)
    assert (tmp_path / "p.tsv").read_text().splitlines()[0].split("\t") == [
        "id",
        "speaker",
        "emo",
        "emo_pred",
        *(f"p_{c}" for c in CLASSES),
    ]
    read = read_predictions(tmp_path / "p.tsv")
    assert (read.ids, read.speakers, read.emotions, read.predicted, read.classes) == (
        *(made.ids, made.speakers, made.emotions, made.predicted, CLASSES),
    )
    np.testing.assert_allclose(read.probabilities, made.probabilities, rtol=1e-8)


def test_dimension_predictions_survive_writing(tmp_path):
    made = some_dimensions()
    made.references[2, 1] = np.nan
    write_predictions(tmp_path / "p.tsv", made)
    header = (tmp_path / "p.tsv").read_text().splitlines()[0].split("\t")
    assert header == ["id", "speaker", "arousal", "arousal_pred", "valence", "valence_pred"]
    read = read_predictions(tmp_path / "p.tsv")
    assert read.dims == ["arousal", "valence"]
    np.testing.assert_array_equal(read.predicted.astype(np.float32), made.predicted.astype(np.float32))
    np.testing.assert_allclose(read.references, made.references, rtol=1e-8)


HEADER = "id\tspeaker\temo\temo_pred\tp_a\tp_b\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.tsv: empty"),
        ("id\tspeaker\n", "p.tsv:1: the header id speaker is not that of predictions"),
        (HEADER, "lists no utterance"),
        (HEADER + "u\ts\ta\tb\t0.5\n", "p.tsv:2: 5 columns"),
        (HEADER + "u\ts\ta\tb\t0.5\tx\n", "p.tsv:2: p_b is “x”, not a number"),
        (HEADER + "u\ts\ta\tb\t0.5\t0.1\n", "p.tsv:2: the probabilities [0.5, 0.1] do not sum to 1"),
        (HEADER + "u\ts\ta\tb\tnan\t1\n", "p.tsv:2: the probabilities"),
        (HEADER + "u\ts\ta\ta\t0.5\t0.5\nv\ts\ta\tc\t0.5\t0.5\n", "p.tsv:3: emo_pred is “c”, which is not among the classes a b"),
        (HEADER + "u\ts\ta\t-\t0.5\t0.5\n", "p.tsv:2: emo_pred is “-”"),
        (HEADER + "u\ts\ta\ta\t0.5\t0.5\nu\ts\ta\ta\t0.5\t0.5\n", "p.tsv:3: the utterance “u” is listed twice"),
        ("id\tspeaker\temo\temo_pred\tq_a\tp_b\nu\ts\ta\ta\t1\t0\n", "p.tsv:1: expected a column p_CLASS"),
        ("id\tspeaker\tarousal\tvalence\nu\ts\t1\t1\n", "p.tsv:1: expected columns in pairs NAME NAME_pred"),
        ("id\tspeaker\tarousal\tarousal_pred\nu\ts\t1\tinf\n", "p.tsv:2: arousal_pred is inf"),
        ("id\tspeaker\tarousal\tarousal_pred\nu\ts\t1\tnan\n", "p.tsv:2: arousal_pred is nan"),
        ("id\tspeaker\tarousal\tarousal_pred\nu\ts\thigh\t1\n", "p.tsv:2: arousal is “high”"),
    ],
)
def test_malformed_predictions_are_named_in_one_line(tmp_path, text, message):
    (tmp_path / "p.tsv").write_text(text)
    with pytest.raises(InputError) as error:
        read_predictions(tmp_path / "p.tsv")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tab_in_an_id_is_refused(tmp_path):
    made = some_classes(4)
    made.ids[1] = "a\tb"
    with pytest.raises(InputError, match="tab or line break"):
        write_predictions(tmp_path / "p.tsv", made)
    assert list(tmp_path.iterdir()) == []


def test_embeddings_survive_writing(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    write_embeddings(tmp_path / "e.npz", ["a", "b", "ü"], ["s", "s", "t"], values)
    read = read_embeddings(tmp_path / "e.npz")
    assert (read.ids, read.speakers) == (["a", "b", "ü"], ["s", "s", "t"])
    np.testing.assert_array_equal(read.values, values)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as archive:
        assert {k: archive[k].dtype.kind for k in archive} == {"ids": "U", "speakers": "U", "embeddings": "f"}


class _Hostile:
    def __reduce__(self):
        return (Path("ran").touch, ())


def _npz(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


NAMES = np.array(["a", "b"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not hold embeddings"),
        (b"nonsense", "does not hold embeddings"),
        (_npz(ids=NAMES, speakers=NAMES, embeddings=np.ones((2, 3), np.float32))[:200], "does not hold embeddings"),
        (_npz(ids=NAMES), "does not hold embeddings"),
        (_npz(ids=NAMES, speakers=NAMES, embeddings=np.ones((3, 3), np.float32)), "expected n × d floats with n names each"),
        (_npz(ids=NAMES, speakers=NAMES, embeddings=np.ones(2, np.float32)), "expected n × d floats"),
        (_npz(ids=NAMES, speakers=NAMES, embeddings=np.full((2, 3), np.nan, np.float32)), "the embedding of “a” is not finite"),
    ],
)
def test_malformed_embeddings_are_named(tmp_path, content, message):
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_embeddings(tmp_path / "e.npz")


@pytest.mark.parametrize("bare", [True, False])
def test_a_pickle_among_embeddings_does_not_run(tmp_path, monkeypatch, bare):
    monkeypatch.chdir(tmp_path)
    hostile = np.array([_Hostile(), _Hostile()], dtype=object)
    content = pickle.dumps(hostile) if bare else _npz(ids=hostile, speakers=NAMES, embeddings=np.ones((2, 3), np.float32))
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(InputError, match="does not hold embeddings"):
        read_embeddings(tmp_path / "e.npz")
    assert not (tmp_path / "ran").exists()


def test_missing_files_are_one_line(tmp_path, capsys):
    (tmp_path / "test.tsv").write_text("/audio\na.wav\t16000\n")
    (tmp_path / "model.pt").touch()
    command = ("tools/evaluate.py", tmp_path / "none.pt", tmp_path, "test", tmp_path / "out")
    assert run(*command) == 2 and run(command[0], tmp_path / "model.pt", *command[2:], "--speaker-vectors", tmp_path / "none.npz") == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path}/{n}: no such file; correct the path" for n in ("none.pt", "none.npz")
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", ["evaluate", "predict", "results", "robustness"])
def test_help_loads_nothing_heavy(program):
    code = (
        "import runpy, sys\nsys.argv = [sys.argv[1], '--help']\ntry:\n    runpy.run_path(sys.argv[0], run_name='__main__')\nfinally:\n    "
    )
    code += "print(*{'torch', 'fairseq', 'scipy', 'sklearn', 'pandas', 'matplotlib'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, ROOT / "tools" / f"{program}.py"], capture_output=True, text=True, check=True)
    assert "usage: " in done.stdout and done.stderr == "\n"


# --- metrics.json -----------------------------------------------------------------------------------------------------


def test_classification_equals_scikit_learn_on_the_written_predictions(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda *_: None)
    made = some_classes()
    made.emotions[5] = made.emotions[6] = "-"
    split = a_split(made, sex=["f" if s < "s03" else "m" for s in made.speakers])
    scoring.save(tmp_path, made, split)
    scores, read = json.loads((tmp_path / "metrics.json").read_text()), read_predictions(tmp_path / "predictions.tsv")
    keep = [i for i, e in enumerate(read.emotions) if e != "-"]
    truth, decided = np.array(read.emotions)[keep], np.array(read.predicted)[keep]
    assert (scores["n"], scores["without_reference"]) == (118, 2)
    assert scores["UA"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(truth, decided), abs=1e-9)
    assert scores["WA"] == pytest.approx(sklearn.metrics.accuracy_score(truth, decided), abs=1e-9)
    assert scores["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(truth, decided, average="macro"), abs=1e-9)
    assert scores["confusion"] == sklearn.metrics.confusion_matrix(truth, decided, labels=scores["classes"]).tolist()
    assert scores["classes"] == CLASSES
    for speaker, values in scores["per_speaker"].items():
        rows = [j for j, i in enumerate(keep) if read.speakers[i] == speaker]
        assert values["n"] == len(rows)
        assert values["UA"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(truth[rows], decided[rows]), abs=1e-9)
    ua = [v["UA"] for v in scores["per_speaker"].values()]
    assert scores["speakers"]["UA"] == {"mean": pytest.approx(np.mean(ua)), "std": pytest.approx(np.std(ua)), "n": 6}
    by = scores["by"]["sex"]
    assert {v: by[v]["n"] for v in by} == {"f": 59, "m": 59}  # the two without a reference are of s05 and s00: one each
    assert scores["difference"]["sex"]["UA"] == pytest.approx(by["f"]["UA"] - by["m"]["UA"])
    assert (scores["difference"]["sex"]["first"], scores["difference"]["sex"]["second"]) == ("f", "m")
    low, high = scores["ci"]["UA"]
    assert low < scores["UA"] < high


def test_distance_from_the_votes_by_hand():
    made = from_probabilities(
        ["a", "b", "c"], ["x", "y", "y"], ["sad", "-", "angry"], ["angry", "sad"], [[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]
    )
    split = a_split(made)
    split.votes = {"sad": np.array([3.0, 1, 0]), "angry": np.array([1.0, 0, 0]), "bored": np.array([0.0, 9, 2])}
    scores = scoring.evaluate(take(made, [1, 2, 0]), split)
    assert scores["n"] == 2 and scores["votes"]["n"] == 2, "votes count without a class, and only for classes of the model"
    kl = [0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5), -math.log(0.75)]
    assert scores["votes"]["kl"] == pytest.approx(np.mean(kl)) and scores["votes"]["tv"] == pytest.approx(0.25)
    assert scores["votes"]["ci"]["kl"] == pytest.approx(sorted(kl)), "of two speakers with an utterance each"
    assert "votes" not in scoring.evaluate(made, a_split(made))


def test_regression_equals_audmetric_on_the_written_predictions(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda *_: None)
    made = some_dimensions()
    made.references[7, 1] = np.nan
    made.references[8] = np.nan
    split = a_split(made, sex=["female" if s < "s03" else "male" for s in made.speakers])
    scoring.save(tmp_path, made, split)
    scores, read = json.loads((tmp_path / "metrics.json").read_text()), read_predictions(tmp_path / "predictions.tsv")
    assert (scores["n"], scores["without_reference"]) == (119, 1)
    for column, name in enumerate(read.dims):
        keep = ~np.isnan(read.references[:, column])
        truth, predicted = read.references[keep, column], read.predicted[keep, column]
        values = scores["dims"][name]
        assert values["n"] == keep.sum()
        assert values["ccc"] == pytest.approx(audmetric.concordance_cc(truth, predicted), abs=1e-7)
        assert values["pearson"] == pytest.approx(audmetric.pearson_cc(truth, predicted), abs=1e-7)
        assert values["rmse"] == pytest.approx(math.sqrt(audmetric.mean_squared_error(truth, predicted)), abs=1e-7)
        speakers = np.array(read.speakers)[keep]
        ccc = [audmetric.concordance_cc(truth[speakers == s], predicted[speakers == s]) for s in np.unique(speakers)]
        assert values["speaker_ccc_mean"] == pytest.approx(np.mean(ccc), abs=1e-7)
        assert values["speaker_ccc_std"] == pytest.approx(np.std(ccc), abs=1e-7)
        sexes = {v: np.array(split.meta["sex"])[keep] == v for v in ("female", "male")}
        shift = {v: np.mean(predicted[m] - truth[m]) for v, m in sexes.items()}
        ccc = {v: audmetric.concordance_cc(truth[m], predicted[m]) for v, m in sexes.items()}
        difference = scores["difference"]["sex"]["dims"][name]
        assert difference["ccc"] == pytest.approx(ccc["female"] - ccc["male"], abs=1e-7)
        assert difference["bias"] == pytest.approx(shift["female"] - shift["male"], abs=1e-7)


def test_one_utterance():
    scores = scoring.evaluate(some_classes(1))
    assert (scores["n"], scores["speakers"]["n"]) == (1, 1)
    assert scores["UA"] in (0.0, 1.0)
    assert all(math.isnan(v) for v in scores["ci"]["UA"])
    scores = scoring.evaluate(some_dimensions(1))["dims"]["arousal"]
    assert math.isnan(scores["ccc"]) and math.isnan(scores["pearson"]) and scores["rmse"] >= 0
    assert (scores["speakers_with_ccc"], math.isnan(scores["speaker_ccc_mean"])) == (0, True)


def test_one_utterance_is_written_as_json_and_figures(tmp_path):
    for name, made in {"c": some_classes(1), "d": some_dimensions(1)}.items():
        scoring.save(tmp_path / name, made, a_split(made, sex=["f"]), embeddings=np.ones((1, 4)))
        json.loads((tmp_path / name / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_a_class_absent_from_the_test_part_does_not_count_against_ua():
    made = some_classes()
    keep = [i for i, e in enumerate(made.emotions) if e != "sad"]
    part = take(made, keep)
    scores = scoring.evaluate(part)
    assert scores["UA"] == pytest.approx(sklearn.metrics.recall_score(part.emotions, part.predicted, labels=CLASSES[:3], average="macro"))
    assert math.isnan(metrics.class_scores(scores["confusion"])[0][3]) and sum(row[3] for row in scores["confusion"]) > 0


def test_nothing_to_score_is_counted_not_scored():
    made = some_classes(5)
    made.emotions = ["-"] * 5
    scores = scoring.evaluate(made)
    assert (scores["n"], scores["without_reference"], scores["per_speaker"]) == (0, 5, {})
    assert math.isnan(scores["UA"]) and math.isnan(scores["ece"])
    with pytest.raises(InputError, match="no predictions"):
        scoring.evaluate(take(made, []))


def test_constant_predictions():
    made = some_dimensions()
    made.predicted[:] = 0.5
    scores = scoring.evaluate(made)["dims"]["arousal"]
    assert scores["ccc"] == 0 and math.isnan(scores["pearson"]) and scores["speaker_ccc_mean"] == 0


def test_a_reference_class_the_model_lacks_is_an_error():
    made = some_classes(3)
    made.emotions[0] = "bored"
    with pytest.raises(InputError, match="bored"):
        scoring.evaluate(made)


def test_columns_of_many_values_are_named_not_broken_down():
    made = some_classes()
    split = a_split(made, file=[f"f{i}" for i in range(120)], age=[str(20 + i % 40) for i in range(120)], text=["a"] * 119 + [""])
    scores = scoring.evaluate(made, split)
    assert scores["columns_left_out"] == ["file", "age"]
    assert {v: s["n"] for v, s in scores["by"]["text"].items()} == {"-": 1, "a": 119}
    assert scores["difference"] == {}  # "-" is no group to compare with


def test_the_breakdown_follows_the_ids_not_the_order():
    made = some_classes()
    split = a_split(made, sex=["f" if i % 3 else "m" for i in range(120)])
    expected = scoring.evaluate(made, split)["by"]
    order = np.random.default_rng(1).permutation(120)[:90]
    shuffled, straight = take(made, order), take(made, sorted(order))
    assert scoring.evaluate(shuffled, split)["by"] == scoring.evaluate(straight, split)["by"] != expected
    split.meta["id"][5] = "other"
    with pytest.raises(InputError, match="lacks 1 predicted utterances, “u5”"):
        scoring.evaluate(made, split)


def test_same_seed_same_bytes(tmp_path):
    made, embeddings = some_dimensions(60, dims=["arousal"]), np.random.default_rng(0).normal(size=(60, 8))
    for folder in "ab":
        scoring.save(tmp_path / folder, made, a_split(made, sex=["f", "m"] * 30), embeddings)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 3 + 2 + 3
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_thresholds_file_equals_scikit_learn(tmp_path):
    made = some_classes()
    scoring.write_thresholds(tmp_path / "t.tsv", made)
    rows = [line.split("\t") for line in (tmp_path / "t.tsv").read_text().splitlines()]
    assert rows[0] == ["class", "threshold", "accuracy", "precision", "recall", "F1", "FP", "FN", "TP"]
    assert len(rows) == 1 + 19 * 4
    for name, threshold, accuracy, precision, recall, f1, fp, fn, _ in rows[1::7]:
        truth = np.array(made.emotions) == name
        decided = made.probabilities[:, CLASSES.index(name)] >= float(threshold)
        expected = sklearn.metrics.precision_recall_fscore_support(truth, decided, average="binary", zero_division=0)[:3]
        assert [float(v) for v in (precision, recall, f1)] == pytest.approx(expected, abs=1e-5)
        assert float(accuracy) == pytest.approx(np.mean(truth == decided), abs=1e-5)
        assert (int(fp), int(fn)) == ((decided & ~truth).sum(), (truth & ~decided).sum())


# --- comparison -------------------------------------------------------------------------------------------------------


def test_paired_tests():
    this, other = some_classes(skill=2.5, seed=3), some_classes(skill=2.5, seed=3)
    mixed = 0.2 * other.probabilities + 0.8 * np.random.default_rng(1).dirichlet(np.ones(4), size=120)
    other = from_probabilities(other.ids, other.speakers, other.emotions, CLASSES, mixed)
    test = scoring.paired_tests(this, other, repeats=300)["UA"]
    expected = (sklearn.metrics.balanced_accuracy_score(made.emotions, made.predicted) for made in (this, other))
    assert [test["this"], test["other"]] == pytest.approx(list(expected))
    assert test["p"] == 2 / 2**6  # six speakers, every one better: as small as it can be
    this, other = some_dimensions(seed=4), some_dimensions(seed=4)
    other.predicted = other.predicted + np.random.default_rng(0).normal(0, 0.3, other.predicted.shape)
    this.references[3] = other.references[3] = np.nan
    test = scoring.paired_tests(this, other, repeats=200)["ccc_valence"]
    keep = np.arange(120) != 3
    expected = [metrics.ccc(made.references[keep, 1], made.predicted[keep, 1]) for made in (this, other)]
    assert [test["this"], test["other"]] == pytest.approx(expected) and test["ci"][0] > 0


def test_confidence_is_of_the_decision_not_of_the_most_probable():
    made = ClassPredictions(["u"], ["s"], ["a"], ["b"], ["a", "b"], np.array([[0.6, 0.4]]))
    assert made.confidence.tolist() == [0.4]


def test_unknown_speakers_are_nobody():
    """Neither one person in per-speaker scores and intervals, nor a speaker in tests and counts; overall they count."""
    speakers = ["a"] * 4 + ["b"] * 4 + ["<unk>"] * 4
    emotions = ["x", "y"] * 6
    predictions = from_probabilities([f"u{i}" for i in range(12)], speakers, emotions, ["x", "y"], np.tile([0.9, 0.1], (12, 1)))
    scores = scoring.evaluate(predictions, repeats=50)
    assert scores["n"] == 12 and scores["WA"] == 0.5
    assert list(scores["per_speaker"]) == ["a", "b"] and scores["speakers"]["n"] == 2
    other = from_probabilities(predictions.ids, speakers, emotions, ["x", "y"], np.tile([0.1, 0.9], (12, 1)))
    assert scoring.paired_tests(predictions, other, repeats=50)["WA"]["speakers"] == 2
    nobody = from_probabilities(predictions.ids, ["<unk>"] * 12, emotions, ["x", "y"], predictions.probabilities)
    assert scoring.evaluate(nobody, repeats=50)["per_speaker"] == {}
    assert scoring.paired_tests(nobody, nobody) == {}
