"""PLDC: numbers worked out by hand, simulations with known shifts, the guard, and properties that always hold."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scripts import run
from sklearn.metrics import accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from emohubert.core.errors import InputError
from emohubert.corpus.manifest import by_speaker
from emohubert.data.speaker_vectors import from_utterances
from emohubert.evaluation.predictions import DimensionPredictions, from_probabilities, read_predictions, write_embeddings, write_predictions
from emohubert.evaluation.scoring import metrics
from emohubert.speakers import calibration_files
from emohubert.speakers.pldc import class_frequencies, cosine, fit, label_statistics, matched, ranking

CLASSES = ["angry", "happy", "sad"]


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)


# --- by hand ----------------------------------------------------------------------------------------------------------

# Cosines with (1, 0): A 1, B 0.8, C 0.6, D 0. Label means 2, 3, 6, 10; standard deviations 1, √2, 2, 1.
TRAINING = from_utterances(["A", "B", "C", "D"], [[1, 0], [4, 3], [3, 4], [0, 1]])
SPEAKERS = list("AABBBCCDD")
LABELS = np.array([1, 3, 2, 2, 5, 4, 8, 9, 11.0])[:, None]
MEAN, STD = 11 / 3, (1 + math.sqrt(2) + 2) / 3  # of A, B and C
SIGMA = math.sqrt((4 + 1 + 9) / 3)  # of the predictions 0, 1, 5, whose mean is 2


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("mean", [-2 + MEAN, -1 + MEAN, 3 + MEAN]),
        ("std", [-2 / SIGMA * STD + 2, -1 / SIGMA * STD + 2, 3 / SIGMA * STD + 2]),
        ("mean-std", [-2 / SIGMA * STD + MEAN, -1 / SIGMA * STD + MEAN, 3 / SIGMA * STD + MEAN]),
    ],
)
def test_three_neighbours(match, expected):
    fitted, _ = fit(TRAINING, SPEAKERS, LABELS, ["arousal"], match, k=3, always=True)
    close(fitted(np.array([2.0, 0.0]), np.array([[0.0], [1], [5]]))[:, 0], expected)


def test_neighbours_on_the_other_side_and_more_than_there_are():
    fitted, _ = fit(TRAINING, SPEAKERS, LABELS, ["arousal"], "mean", k=3, always=True)
    close(fitted(np.array([0.0, 5.0]), np.array([[7.0]])), [[19 / 3]])  # D, C and B
    fitted, _ = fit(TRAINING, SPEAKERS, LABELS, ["arousal"], "mean", k=9, always=True)
    close(fitted(np.array([0.0, 5.0]), np.array([[7.0]])), [[21 / 4]])


def test_prior_of_similar_speakers():
    # A: 3 angry, 1 happy; B: 1 sad, 1 happy; C: 2 sad. π₀ = 3/8, 2/8, 3/8
    vectors = from_utterances(["A", "B", "C"], [[1, 0], [4, 3], [0, 1]])
    emotions = ["angry", "angry", "angry", "happy", "sad", "happy", "sad", "sad"]
    fitted, _ = fit(vectors, list("AAAABBCC"), emotions, CLASSES, "prior", k=2, always=True)
    base = np.array([3, 2, 3]) / 8
    a, b = (np.array([3, 1, 0]) + base) / 5, (np.array([0, 1, 1]) + base) / 3
    posteriors = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    expected = posteriors[0] * ((a + b) / 2) / base
    close(fitted(np.array([2.0, 0.0]), posteriors), [expected / expected.sum(), [1, 0, 0]])


def test_classes_that_no_training_speaker_has_keep_their_posterior():
    _, values, base = class_frequencies(list("AB"), ["angry", "happy"], CLASSES)
    close(base, [0.5, 0.5, 0])
    close(values, [[0.75, 0.25, 0], [0.25, 0.75, 0]])
    close(matched(np.array([[0.2, 0.2, 0.6]]), "prior", values[0], base), [[0.3, 0.1, 0.6]])


@pytest.mark.parametrize(("match", "expected"), [("mean", 4.0), ("std", 1.1), ("mean-std", 4.0)])
def test_constant_predictions_are_moved_and_not_scaled(match, expected):
    close(matched(np.full((3, 1), 1.1), match, np.array([4.0, 2.0])), np.full((3, 1), expected))  # 1.1 · 3 is not 3.3 in floating point


def test_label_statistics_need_two_labels_in_every_dimension():
    labels = np.array([[1, 2], [3, 6], [5, np.nan], [7, 1], [9, np.nan], [9, 9.0]])
    ids, values, _ = label_statistics(["a", "a", "b", "b", "b", "c"], labels)
    assert ids == ["a"]
    close(values, [[2, 4, 1, 2]])


def test_the_unknown_speaker_is_nobodys_neighbour():
    speakers, labels = [*SPEAKERS, "<unk>", "<unk>"], np.concatenate([LABELS, [[100.0], [200]]])
    vectors = from_utterances(["A", "B", "C", "D", "<unk>"], [[1, 0], [4, 3], [3, 4], [0, 1], [1, 0]])
    fitted, _ = fit(vectors, speakers, labels, ["arousal"], "mean", k=1, always=True)
    assert fitted.speakers.ids == list("ABCD")
    close(fitted(np.array([2.0, 0.0]), np.array([[7.0]])), [[2.0]])


def test_speakers_without_labels_are_left_out():
    fitted, _ = fit(TRAINING, list("AABBCx"), LABELS[:6], ["arousal"], "std")
    assert fitted.speakers.ids == ["A", "B"]
    with pytest.raises(InputError, match="no training speaker has both embeddings and two labels in arousal"):
        fit(TRAINING, list("ABCD"), LABELS[:4], ["arousal"], "std")


# --- similar speakers -------------------------------------------------------------------------------------------------


@given(*[hnp.arrays(float, (n, 5), elements=st.integers(-100_000, 100_000).map(lambda n: n / 1000)) for n in (4, 3)])
@settings(max_examples=60, deadline=None)
def test_cosine_equals_scikit_learns(a, b):
    np.testing.assert_allclose(cosine(a, b), cosine_similarity(a, b), atol=1e-9)


def test_ranking():
    assert ranking(np.array([[0.2, 0.9, -0.5, 0.8]])).tolist() == [[1, 3, 0, 2]]
    assert ranking(np.array([[0.3, 0.3 + 1e-15, 0.3 - 1e-15]])).tolist() == [[0, 1, 2]]  # equal but for rounding
    alike = np.array([[1.0, 0.2, 0.5], [0.2, 1.0, 0.9], [0.5, 0.9, 1.0]])
    assert ranking(alike, leave_one_out=True).tolist() == [[2, 1], [2, 0], [1, 0]]


# --- what always holds ------------------------------------------------------------------------------------------------

VALUES = hnp.arrays(float, st.tuples(st.integers(1, 6), st.just(2)), elements=st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.25]))


@given(VALUES)
@settings(deadline=None)
def test_nothing_changes_where_the_similar_speakers_labels_are_distributed_as_the_predictions(predictions):
    target = np.concatenate([predictions.mean(0), predictions.std(0)])
    for match in ("mean", "std", "mean-std"):
        close(matched(predictions, match, target), predictions)
    posteriors = np.exp(predictions) / np.exp(predictions).sum(1, keepdims=True)
    close(matched(posteriors, "prior", np.array([0.3, 0.7]), np.array([0.3, 0.7])), posteriors)


@given(VALUES, st.sampled_from(["mean", "std", "mean-std"]), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_distribution_is_the_one_that_was_asked_for_and_order_does_not_matter(predictions, match, random):
    target = np.array([2.0, -1.0, 0.5, 4.0])
    found = matched(predictions, match, target)
    varies = predictions.std(0) > 0
    close(found.mean(0), predictions.mean(0) if match == "std" else target[:2])
    close(found.std(0), predictions.std(0) if match == "mean" else np.where(varies, target[2:], 0))
    order = list(range(len(predictions)))
    random.shuffle(order)
    close(matched(predictions[order], match, target), found[order])


# --- the guard --------------------------------------------------------------------------------------------------------


def simulate(seed, shift, spread=0.0, training=30, unseen=10, utterances=20, heard=0.0, width=16):
    """Speakers with a voice of two traits: the first shifts their labels, the second scales them; embeddings show both noisily.

    Returns two (speakers, embeddings, labels, predictions); predictions follow the content, and the shift as far as `heard`.
    """
    rng = np.random.default_rng(seed)
    mix, common = rng.normal(size=(2, width)), 3 * rng.normal(size=width)

    def group(count, name):
        voices = np.repeat(rng.normal(size=(count, 2)), utterances, axis=0)
        speakers = np.repeat([f"{name}{i:03}" for i in range(count)], utterances)
        embeddings = common + voices @ mix + rng.normal(size=(len(speakers), width))
        content = rng.normal(size=len(speakers))
        labels = shift * voices[:, 0] + np.exp(spread * voices[:, 1]) * content
        return speakers.tolist(), embeddings, labels, content + 0.5 * rng.normal(size=len(speakers)) + heard * shift * voices[:, 0]

    return group(training, "train"), group(unseen, "test")


def simulate_classes(seed, shift, training=30, unseen=10, utterances=20, width=12):
    """Speakers whose class frequencies follow their voice; posteriors are exact for equal frequencies."""
    rng = np.random.default_rng(seed)
    mix, common = rng.normal(size=(3, width)), 3 * rng.normal(size=width)

    def group(count, name):
        voices = rng.normal(size=(count, 3))
        frequencies = np.exp(shift * voices) / np.exp(shift * voices).sum(1, keepdims=True)
        speakers = np.repeat([f"{name}{i:03}" for i in range(count)], utterances).tolist()
        embeddings = common + np.repeat(voices @ mix, utterances, axis=0) + rng.normal(size=(len(speakers), width))
        truth = np.concatenate([rng.choice(3, utterances, p=p) for p in frequencies])
        logits = rng.normal(size=(len(speakers), 3)) + np.eye(3)[truth]
        return speakers, embeddings, [CLASSES[i] for i in truth], np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    return group(training, "train"), group(unseen, "test")


def dimension(speakers, values, references):
    ids = [f"u{i}" for i in range(len(values))]
    return DimensionPredictions(ids, list(speakers), ["arousal"], np.array(references)[:, None], np.array(values)[:, None])


def gains(seed, match, **kwargs):
    """How much (overall CCC, mean CCC over speakers) rise for unseen speakers, and whether the guard lets it be applied."""
    (speakers, embeddings, labels, _), (unseen, new, references, predicted) = simulate(seed, **kwargs)
    fitted, guard = fit(from_utterances(speakers, embeddings), speakers, labels[:, None], ["arousal"], match)
    result = calibration_files.calibrate(fitted, from_utterances(unseen, new), dimension(unseen, predicted, references))
    scores = []
    for values in (predicted, result.predicted[:, 0]):
        members = by_speaker(unseen).values()
        scores.append([metrics.ccc(references, values), np.mean([metrics.ccc(references[m], values[m]) for m in members])])
    return *np.subtract(scores[1], scores[0]), guard.helps


@pytest.mark.parametrize("match", ["mean", "mean-std"])
def test_a_known_shift_is_recovered_in_every_seed(match):
    results = np.array([gains(seed, match, shift=1.0, spread=0.5) for seed in range(10)])
    assert results[:, 2].all() and (results[:, :2] > 0).all()
    assert results[:, 0].mean() > 0.15 and results[:, 1].mean() > 0.08


def test_a_known_spread_is_recovered():
    results = np.array([gains(seed, "std", shift=0.0, spread=0.5) for seed in range(10)])
    assert results[:, 2].mean() > 0.8 and results[:, 1].mean() > 0.02


@pytest.mark.parametrize("match", ["mean", "std", "mean-std"])
def test_voices_that_say_nothing_about_labels_are_rarely_used(match):
    results = np.array([gains(seed, match, shift=0.0, training=10, unseen=2) for seed in range(60)])
    assert results[:, 2].sum() <= 9
    unused = results[results[:, 2] == 0]
    close(unused[:, :2], 0)


def test_class_frequencies_that_follow_the_voice_are_recovered_and_equal_ones_are_left():
    for shift, least, most in ((1.5, 10, 10), (0.0, 0, 3)):
        applied, gain = 0, []
        for seed in range(10):
            (speakers, embeddings, emotions, _), (unseen, new, references, posteriors) = simulate_classes(seed, shift)
            fitted, guard = fit(from_utterances(speakers, embeddings), speakers, emotions, CLASSES, "prior")
            before = from_probabilities(range(len(unseen)), unseen, references, CLASSES, posteriors)
            after = calibration_files.calibrate(fitted, from_utterances(unseen, new), before)
            close(after.probabilities.sum(1), 1)
            gain.append(np.subtract(*[accuracy_score(references, p.predicted) for p in (after, before)]))
            applied += guard.helps
        assert least <= applied <= most
        assert not shift or (min(gain) > 0 and np.mean(gain) > 0.05)


def test_the_guard_by_loops():
    """Its gain and standard error against plain loops over speakers: each is judged with the k that is best for the others."""
    (speakers, embeddings, labels, _), _ = simulate(2, shift=0.7, training=9)
    vectors = from_utterances(speakers, embeddings)
    fitted, guard = fit(vectors, speakers, labels[:, None], ["arousal"], "mean")
    means = np.array([labels[np.array(speakers) == name].mean() for name in vectors.ids])
    similar = cosine_similarity(vectors.vectors)
    ks, error, usual = [8, 6, 4, 3, 2, 1], {}, np.zeros(9)
    for i in range(9):
        others = sorted((j for j in range(9) if j != i), key=lambda j: -similar[i, j])
        usual[i] = (means[i] - means[others].mean()) ** 2
        for k in ks:
            error[k, i] = (means[i] - means[others[:k]].mean()) ** 2
    gain = []
    for i in range(9):
        best = min(ks, key=lambda k: sum(error[k, j] for j in range(9) if j != i))
        gain.append((usual[i] - error[best, i]) / usual.mean())
    assert guard.gain == pytest.approx(np.mean(gain), abs=1e-9)
    assert guard.error == pytest.approx(np.std(gain, ddof=1) / 3, abs=1e-9)
    assert fitted.k == min(ks, key=lambda k: sum(error[k, j] for j in range(9)))


@pytest.mark.parametrize("speakers", ["AA", "AABB"])
def test_too_few_speakers_to_leave_one_out(speakers):
    fitted, guard = fit(TRAINING, list(speakers), LABELS[: len(speakers)], ["arousal"], "mean")
    assert not guard.helps and not fitted.applied
    close(fitted(np.array([1.0, 0.0]), np.array([[7.0], [9]])), [[7], [9]])


# --- the program ------------------------------------------------------------------------------------------------------


def write_split(folder, name, speakers, emotions=None, dimensions=None):
    """A manifest split without audio; returns the utterances' ids."""
    folder.mkdir(exist_ok=True)
    ids = [f"{speaker}/{name}{i:04}" for i, speaker in enumerate(speakers)]
    (folder / f"{name}.tsv").write_text("/nowhere\n" + "".join(f"{i}.wav\t16000\n" for i in ids))
    (folder / f"{name}.spk").write_text("".join(f"{s}\n" for s in speakers))
    if emotions is not None:
        (folder / f"{name}.emo").write_text("".join(f"{e}\n" for e in emotions))
    if dimensions is not None:
        (folder / f"{name}.dim").write_text("arousal\n" + "".join(f"{v:.9g}\n" for v in dimensions))
    return ids


@pytest.fixture
def files(tmp_path):
    """Simulated files of both kinds: {"d": arguments, "c": arguments}."""
    arguments = {}
    (speakers, embeddings, labels, own), (unseen, new, references, predicted) = simulate(4, 1.0, 0.5, training=20, unseen=6, utterances=8)
    unseen[-1] = "<unk>"
    ids = write_split(tmp_path / "d", "train", speakers, dimensions=labels)
    new_ids = write_split(tmp_path / "d", "test", unseen, dimensions=references)
    write_embeddings(tmp_path / "d" / "train.npz", ids, speakers, embeddings)
    write_embeddings(tmp_path / "d" / "test.npz", new_ids, unseen, new)
    for name, who, which, columns in (("test", unseen, new_ids, (references, predicted)), ("train", speakers, ids, (labels, own))):
        predictions = DimensionPredictions(which, who, ["arousal"], *(x[:, None] for x in columns))
        write_predictions(tmp_path / "d" / f"{name}_predictions.tsv", predictions)
    (speakers, embeddings, emotions, _), (unseen, new, references, posteriors) = simulate_classes(
        3, 1.5, training=14, unseen=6, utterances=8
    )
    ids, new_ids = write_split(tmp_path / "c", "train", speakers, emotions), write_split(tmp_path / "c", "test", unseen, references)
    write_embeddings(tmp_path / "c" / "train.npz", ids, speakers, embeddings)
    write_embeddings(tmp_path / "c" / "test.npz", new_ids, unseen, new)
    write_predictions(tmp_path / "c" / "test_predictions.tsv", from_probabilities(new_ids, unseen, references, CLASSES, posteriors))
    for kind in "dc":
        folder = tmp_path / kind
        arguments[kind] = {
            "--train-manifest": folder / "train",
            "--train-embeddings": folder / "train.npz",
            "--test-embeddings": folder / "test.npz",
            "--predictions": folder / "test_predictions.tsv",
            "--bootstrap": 20,
        }
    return arguments


def run_calibrate(arguments, *more):
    return run("tools/calibrate.py", *(x for pair in arguments.items() for x in pair), *more)


def test_program_writes_what_the_contract_names(files, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_calibrate(files["d"], "--match", "mean-std", "--test-manifest", tmp_path / "d" / "test", out) == 0
    printed = capsys.readouterr().out
    before, after = (json.loads((out / name).read_text()) for name in ("metrics_before.json", "metrics.json"))
    assert after["dims"]["arousal"]["speaker_ccc_mean"] > before["dims"]["arousal"]["speaker_ccc_mean"] and after["calibrated"] is True
    result, original = read_predictions(out / "predictions.tsv"), read_predictions(files["d"]["--predictions"])
    assert result.ids == original.ids
    assert metrics.ccc(result.references[:, 0], result.predicted[:, 0]) == pytest.approx(after["dims"]["arousal"]["ccc"], abs=1e-7)
    unknown = np.array(original.speakers) == "<unk>"
    np.testing.assert_array_equal(result.predicted[unknown], original.predicted[unknown])
    assert (result.predicted != original.predicted)[~unknown].all()
    assert [p.name for p in (out / "figures").glob("*.png")] == ["before_after_CCC_of_arousal.png"]
    report = json.loads((out / "calibration.json").read_text())
    rows = [line.split("\t") for line in (out / "speakers.tsv").read_text().splitlines()]
    assert rows[0][0] == "speaker" and {row[0] for row in rows[1:]} == set(original.speakers) - {"<unk>"}
    expected = {row[0] for row in rows[1:] if float(row[4]) < float(row[3])}
    assert {speaker for speaker, _ in report["worse"]} == expected and all(name in printed for name in expected)
    assert "match mean-std" in printed and ": applied" in printed and report["guard"]["helps"]


def test_the_program_reads_files_only(files, tmp_path):
    arguments = [str(x) for pair in files["d"].items() for x in pair]
    code = f"import sys, runpy; sys.argv[1:] = {[*arguments, str(tmp_path / 'out')]}; runpy.run_path('tools/calibrate.py', run_name='__main__')"
    code += "; assert not {'torch', 'fairseq', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1], capture_output=True)


def test_program_with_classes(files, tmp_path):
    out = tmp_path / "out"
    assert run_calibrate(files["c"], out) == 0
    before, after = (json.loads((out / name).read_text()) for name in ("metrics_before.json", "metrics.json"))
    assert after["WA"] > before["WA"]
    assert (out / "figures" / "before_after_UA.png").is_file()


def test_what_does_not_help_is_not_applied_and_says_so(files, tmp_path, capsys):
    """Embeddings dealt out to other speakers: similar voices say nothing about labels."""
    with np.load(files["d"]["--train-embeddings"]) as arrays:
        write_embeddings(tmp_path / "dealt.npz", arrays["ids"], arrays["speakers"], np.roll(arrays["embeddings"], 72, axis=0))
    files["d"]["--train-embeddings"] = tmp_path / "dealt.npz"
    assert run_calibrate(files["d"], tmp_path / "out") == 0
    assert "NOT applied" in capsys.readouterr().out
    result, original = read_predictions(tmp_path / "out" / "predictions.tsv"), read_predictions(files["d"]["--predictions"])
    np.testing.assert_array_equal(result.predicted, original.predicted)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["calibrated"] is False
    assert run_calibrate(files["d"], tmp_path / "out", "--always") == 0
    assert "applied although it does not help" in capsys.readouterr().out
    assert (read_predictions(tmp_path / "out" / "predictions.tsv").predicted != original.predicted).any()


def test_test_labels_never_matter(files, tmp_path):
    """References replaced by garbage: the same predictions and the same calibration, byte for byte."""
    path = files["c"]["--predictions"]
    assert run_calibrate(files["c"], tmp_path / "clean") == 0
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    rng = np.random.default_rng(0)
    for row in rows[1:]:
        row[2] = rng.choice([*CLASSES, "-"])
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    assert run_calibrate(files["c"], tmp_path / "garbage") == 0
    clean, garbage = (read_predictions(tmp_path / name / "predictions.tsv") for name in ("clean", "garbage"))
    np.testing.assert_array_equal(clean.probabilities, garbage.probabilities)
    assert np.mean(clean.probabilities != read_predictions(path).probabilities) > 0.5  # it was calibrated at all


def test_predictions_without_any_reference(files, tmp_path):
    predictions = read_predictions(files["d"]["--predictions"])
    predictions.references[:] = np.nan
    write_predictions(files["d"]["--predictions"], predictions)
    assert run_calibrate(files["d"], tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["n"] == 0
    assert len((tmp_path / "out" / "speakers.tsv").read_text().splitlines()) == 1


def test_second_run_skips_and_other_settings_do_not(files, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_calibrate(files["d"], out) == 0
    first, contents = capsys.readouterr().out, {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    times = {p: p.stat().st_mtime_ns for p in contents}
    assert run_calibrate(files["d"], out) == 0
    assert times == {p: p.stat().st_mtime_ns for p in contents}
    assert capsys.readouterr().out.splitlines()[:3] == first.splitlines()[:3]
    assert run_calibrate(files["d"], "--overwrite", out) == 0
    assert contents == {p: p.read_bytes() for p in contents}  # same settings, same bytes
    assert run_calibrate(files["d"], "--match", "mean-std", out) == 0
    assert contents[out / "calibration.json"] != (out / "calibration.json").read_bytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("inductive (5 speakers)", "calibrated by unlabelled audio (5 speakers)"),
        ("seen (2 speakers), inductive (3 speakers)", "seen and calibrated (2 speakers), calibrated by unlabelled audio (3 speakers)"),
        ("transductive (5 speakers)", "transductive and calibrated (5 speakers)"),
        ("normalised by unlabelled audio (5 speakers)", "normalised by unlabelled audio and calibrated (5 speakers)"),
        (None, "calibrated by unlabelled audio (6 speakers)"),
    ],
)
def test_nobody_is_inductive_after_a_calibration(files, tmp_path, before, after):
    """The test speakers' audio says who is similar, and their predictions what is rescaled; the row says so, applied or not."""
    if before:
        (tmp_path / "d" / "metrics.json").write_text(json.dumps({"setting": before, "checkpoint": "c.pt"}))
    assert run_calibrate(files["d"], tmp_path / "out") == 0
    read = [json.loads((tmp_path / "out" / name).read_text()).get("setting") for name in ("metrics_before.json", "metrics.json")]
    assert read == [before, after]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--train-manifest": "nowhere/train"}, "no such manifest directory"),
        ({"--train-embeddings": "missing.npz"}, "missing.npz: no such file"),
        ({"--match": "prior"}, "--match prior: the predictions are of dimensions (arousal); use mean, std or mean-std"),
        ({"--top-k": "0"}, "neither auto nor"),
        ({"--train-embeddings": "OTHER"}, "holds none of the"),
        ({"--test-embeddings": "OTHER"}, "holds none of the"),
        ({"--test-embeddings": "WIDE"}, "width 3"),
        ({"--test-embeddings": "PART"}, "no embedding of the speaker “test004” (2 such speakers)"),
        ({"--test-embeddings": "SWAPPED"}, "is of the speaker"),
        ({"--train-manifest": "CLASSES"}, "has nothing, predicted are arousal"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(files, tmp_path, capsys, change, message):
    predictions = read_predictions(files["d"]["--predictions"])
    ids, speakers = predictions.ids, predictions.speakers
    part = [i for i, name in enumerate(speakers) if name < "test004"]
    places = {}
    for name, which, who, width in (
        ("OTHER", ["x"], ["y"], 16),
        ("WIDE", ids, speakers, 3),
        ("SWAPPED", ids, speakers[::-1], 16),
        ("PART", [ids[i] for i in part], [speakers[i] for i in part], 16),
    ):
        places[name] = tmp_path / f"{name}.npz"
        write_embeddings(places[name], which, who, np.ones((len(which), width)))
    for option, value in change.items():
        files["d"][option] = tmp_path / "c" / "train" if value == "CLASSES" else places.get(value, value)
    assert run_calibrate(files["d"], tmp_path / "out") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out" / "predictions.tsv").exists()


def test_only_the_training_splits_embeddings_are_used(files, tmp_path):
    """A file with every utterance of the corpus gives what the training split's own file gives."""
    assert run_calibrate(files["d"], tmp_path / "own") == 0
    arrays = [dict(np.load(files["d"][name])) for name in ("--train-embeddings", "--test-embeddings")]
    both = {name: np.concatenate([a[name] for a in arrays]) for name in ("ids", "speakers", "embeddings")}
    files["d"]["--train-embeddings"] = tmp_path / "all.npz"
    write_embeddings(tmp_path / "all.npz", both["ids"], both["speakers"], both["embeddings"])
    assert run_calibrate(files["d"], tmp_path / "all") == 0
    assert (tmp_path / "own" / "predictions.tsv").read_bytes() == (tmp_path / "all" / "predictions.tsv").read_bytes()


def test_the_size_of_msp_podcast():
    """1 409 training speakers, k chosen by leaving each out, in seconds."""
    import time

    (speakers, embeddings, labels, _), _ = simulate(0, shift=1.0, training=1409, unseen=1, utterances=10)
    start = time.monotonic()
    fitted, guard = fit(from_utterances(speakers, embeddings), speakers, np.repeat(labels[:, None], 3, axis=1), list("avd"), "mean")
    assert time.monotonic() - start < 30 and guard.helps and 1 < fitted.k < 200
