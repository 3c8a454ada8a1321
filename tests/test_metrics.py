"""Metrics equal scikit-learn's, audmetric's and SciPy's, on random and on degenerate input."""

import itertools
import math
import warnings

import audmetric
import numpy as np
import pytest
import scipy.spatial
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from emohubert.evaluation import metrics

TOLERANCE = 1e-6
CLASSES = ["angry", "happy", "neutral", "sad"]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries compared with warn about every degenerate case
        yield


def confusion_of(reference, predicted):
    return metrics.confusion_matrix(*([CLASSES.index(label) for label in of] for of in (reference, predicted)), len(CLASSES))


def same(ours, theirs):
    return (math.isnan(ours) and math.isnan(theirs)) or abs(ours - theirs) <= TOLERANCE


labels = st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), min_size=1, max_size=40)
"""Random pairs; short lists lack classes, repeat one class, or hold one utterance."""

eighths = st.integers(-80, 80).map(lambda i: i / 8)  # sums are exact: a constant has exactly no variance in the libraries, too
numbers = st.one_of(eighths, st.floats(-1e3, 1e3, allow_nan=False, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3))


def series(element):
    return st.lists(st.tuples(element, element), min_size=2, max_size=40)


@settings(max_examples=100, deadline=None)
@given(labels)
def test_classification_scores_equal_scikit_learn(pairs):
    reference, predicted = zip(*pairs, strict=True)
    scores = metrics.confusion_scores(confusion_of(reference, predicted))
    assert same(scores["UA"], sklearn.metrics.balanced_accuracy_score(reference, predicted))
    assert same(scores["WA"], sklearn.metrics.accuracy_score(reference, predicted))
    macro_f1 = scores["macro_f1"]
    assert same(macro_f1, audmetric.unweighted_average_fscore(reference, predicted, zero_division=0))
    assert same(macro_f1, sklearn.metrics.f1_score(reference, predicted, average="macro", zero_division=0))


@settings(max_examples=40, deadline=None)
@given(labels)
def test_per_class_scores_equal_scikit_learn(pairs):
    reference, predicted = zip(*pairs, strict=True)
    confusion = confusion_of(reference, predicted)
    np.testing.assert_array_equal(confusion, sklearn.metrics.confusion_matrix(reference, predicted, labels=CLASSES))
    options = {"labels": CLASSES, "average": None, "zero_division": np.nan}
    expected = sklearn.metrics.precision_recall_fscore_support(reference, predicted, **options)
    recall, precision, f1 = metrics.class_scores(confusion)
    np.testing.assert_allclose([precision, recall, f1], expected[:3])


@settings(max_examples=300, deadline=None)
@given(series(eighths))
def test_ccc_and_pearson_equal_audmetric_and_scipy_where_rounding_plays_no_part(pairs):
    reference, predicted = zip(*pairs, strict=True)
    if len(set(reference)) > 1 or len(set(predicted)) > 1 or len(set(reference + predicted)) == 1:
        assert same(metrics.ccc(reference, predicted), audmetric.concordance_cc(reference, predicted))
    assert same(metrics.pearson(reference, predicted), scipy.stats.pearsonr(reference, predicted).statistic)
    assert same(metrics.rmse(reference, predicted), audmetric.mean_squared_error(reference, predicted) ** 0.5)


@settings(max_examples=300, deadline=None)
@given(series(numbers))
def test_ccc_equals_its_definition_with_population_variances(pairs):
    x, y = np.array(pairs, dtype=np.float64).T
    spread = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    if np.ptp(x) > 0 and np.ptp(y) > 0:
        assert same(metrics.ccc(x, y), 2 * np.mean((x - x.mean()) * (y - y.mean())) / spread)
        assert same(metrics.ccc(x, y), audmetric.concordance_cc(x, y))


@pytest.mark.parametrize("n", [2, 3, 10, 1000])
def test_scores_of_random_sets(n):
    rng = np.random.default_rng(n)
    x, y = rng.normal(3, 2, n), rng.normal(2, 1, n).astype(np.float32)
    assert same(metrics.ccc(x, y), audmetric.concordance_cc(x, y.astype(np.float64)))
    assert same(metrics.pearson(x, y), audmetric.pearson_cc(x, y.astype(np.float64)))
    assert same(metrics.rmse(x, y), sklearn.metrics.root_mean_squared_error(x, y))
    assert same(metrics.bias(x, y), float(np.mean(y.astype(np.float64)) - np.mean(x)))


@pytest.mark.parametrize(
    ("reference", "predicted", "ccc", "pearson"),
    [
        ([0.5], [0.25], math.nan, math.nan),  # one utterance
        ([], [], math.nan, math.nan),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], 0.0, math.nan),  # constant predictions
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], 0.0, math.nan),  # constant references
        ([2.0, 2.0], [2.0, 2.0], math.nan, math.nan),  # one and the same constant
        ([2.0, 2.0], [3.0, 3.0], 0.0, math.nan),  # two constants
        ([0.1] * 3, [0.1] * 3, math.nan, math.nan),  # the mean of three 0.1 is not 0.1 in floating point
        ([0.1] * 3, [0.1, 0.1, 0.2], 0.0, math.nan),
        ([1.0, 2.0], [2.0, 1.0], -1.0, -1.0),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 1.0, 1.0),
    ],
)
def test_degenerate_correlations(reference, predicted, ccc, pearson):
    assert same(metrics.ccc(reference, predicted), ccc)
    assert same(metrics.pearson(reference, predicted), pearson)
    if len(reference) and len(set(reference) | {0.1}) > 1 and 0.1 not in reference:
        assert same(metrics.ccc(reference, predicted), audmetric.concordance_cc(reference, predicted))
        assert same(metrics.pearson(reference, predicted), audmetric.pearson_cc(reference, predicted))


def test_ccc_of_a_set_is_not_the_mean_of_its_batches():
    reference, predicted = [0.0, 1.0, 10.0, 11.0], [1.0, 0.0, 11.0, 10.0]
    assert metrics.ccc(reference, predicted) == pytest.approx(2 * 24.75 / (25.25 + 25.25))
    assert metrics.ccc(reference[:2], predicted[:2]) == -1


def test_degenerate_classification():
    assert metrics.confusion_scores([[1, 1], [0, 0]])["UA"] == 0.5  # the second has no reference: it does not count
    assert all(math.isnan(v) for v in metrics.confusion_scores([[0, 0], [0, 0]]).values())
    with pytest.raises(ValueError, match="1 references for 2 predictions"):
        metrics.confusion_matrix([0], [0, 1], 2)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30).map(lambda i: i / 30), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_ece_equals_a_loop_over_its_definition(pairs, bins):
    gap = 0.0
    edges = np.linspace(0, 1, bins + 1)
    for i in range(bins):
        inside = [(p, c) for p, c in pairs if (edges[i] < p <= edges[i + 1]) or (i == 0 and p == 0)]
        if inside:
            gap += abs(sum(p for p, _ in inside) - sum(c for _, c in inside)) / len(pairs)
    confidence, correct = zip(*pairs, strict=True)
    assert same(metrics.expected_calibration_error(confidence, correct, bins), gap)


def test_divergences_equal_scipy():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(4, 0.5), 50), rng.dirichlet(np.full(4, 0.5), 50)
    p[0], p[1] = [1, 0, 0, 0], [0.5, 0.5, 0, 0]
    found = metrics.divergences(p, q)
    np.testing.assert_allclose(found["kl"], [scipy.stats.entropy(a, b) for a, b in zip(p, q, strict=True)], atol=1e-9)
    np.testing.assert_allclose(found["js"], [scipy.spatial.distance.jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)], atol=1e-9)
    np.testing.assert_allclose(found["tv"], [scipy.spatial.distance.cityblock(a, b) / 2 for a, b in zip(p, q, strict=True)], atol=1e-9)
    opposite = metrics.divergences([[1, 0]], [[0, 1]])
    assert opposite["js"][0] == pytest.approx(math.log(2)) and opposite["tv"][0] == pytest.approx(1)
    assert opposite["kl"][0] == pytest.approx(12 * math.log(10)), "finite: a probability of 0 counts as 1e-12"


def test_ece_by_hand():
    # bins of 0.5: {0.4 wrong, 0.5 right} → |0.5 − 0.45| · 2/4; {0.9 right, 0.9 wrong} → |0.5 − 0.9| · 2/4
    assert metrics.expected_calibration_error([0.4, 0.5, 0.9, 0.9], [0, 1, 1, 0], bins=2) == pytest.approx(0.025 + 0.2)
    assert math.isnan(metrics.expected_calibration_error([], []))


def test_risk_coverage_by_hand():
    # most confident first: right (a), wrong (b), right (b), wrong (a)
    found = metrics.risk_coverage([0.7, 0.9, 0.6, 0.8], [1, 0, 0, 1], [1, 0, 1, 0], 3)
    np.testing.assert_allclose(found["coverage"], [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found["WA"], [1, 1 / 2, 2 / 3, 1 / 2])
    np.testing.assert_allclose(found["UA"], [1, (1 + 0) / 2, (1 + 1 / 2) / 2, (1 / 2 + 1 / 2) / 2])  # the third class has no reference
    assert found["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    # equal confidences: whatever their order, a third of a mixture of 2 errors in 3 is wrong
    for reference in ([0, 1, 1], [1, 0, 1], [1, 1, 0]):
        assert metrics.risk_coverage([0.5] * 3, reference, [0] * 3, 2)["WA"] == pytest.approx([1 / 3] * 3)
    assert math.isnan(metrics.risk_coverage([], [], [], 2)["aurc"])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20).map(lambda i: i / 20)), min_size=1, max_size=40))
def test_threshold_sweep_equals_scikit_learn(pairs):
    truth, probability = (np.array(v) for v in zip(*pairs, strict=True))
    sweep = metrics.threshold_sweep(truth, probability)
    for i, threshold in list(enumerate(sweep["threshold"]))[::4]:
        decided = probability >= threshold
        precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(truth, decided, average="binary", zero_division=0)
        (_, fp), (fn, tp) = sklearn.metrics.confusion_matrix(truth, decided, labels=[False, True])
        assert same(sweep["accuracy"][i], sklearn.metrics.accuracy_score(truth, decided))
        assert same(sweep["precision"][i], precision)
        assert same(sweep["recall"][i], recall)
        assert same(sweep["F1"][i], f1)
        assert (sweep["FP"][i], sweep["FN"][i], sweep["TP"][i]) == (fp, fn, tp)


@settings(max_examples=200, deadline=None)
@given(series(numbers), st.integers(0, 2**31))
def test_scores_from_summed_moments_equal_the_direct_ones(pairs, seed):
    x, y = np.array(pairs, dtype=np.float64).T
    parts = np.random.default_rng(seed).integers(0, 3, len(x))
    total = sum(metrics.moments(x[parts == p], y[parts == p], origin=x.mean()) for p in range(3))
    ours = metrics.moment_scores(total)
    assert same(float(ours["ccc"]), metrics.ccc(x, y))
    assert abs(float(ours["rmse"]) - metrics.rmse(x, y)) <= 1e-4
    if x.std() > 1e-2 * (1 + abs(y).max()) and y.std() > 1e-2 * (1 + abs(x).max()):
        assert same(float(ours["pearson"]), metrics.pearson(x, y))


def test_bootstrap_draws_equal_scoring_the_drawn_utterances():
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(5), [3, 8, 2, 6, 4])
    reference, predicted = rng.choice(CLASSES, 23), rng.choice(CLASSES, 23)
    parts = [confusion_of(reference[speakers == s], predicted[speakers == s]) for s in range(5)]
    draws = metrics.bootstrap(parts, metrics.confusion_scores, repeats=50, seed=3)
    counts = np.random.default_rng(3).multinomial(5, np.full(5, 0.2), size=50)
    for i, count in enumerate(counts):
        rows = np.concatenate([np.flatnonzero(speakers == s) for s in range(5) for _ in range(count[s])])
        assert same(draws["UA"][i], sklearn.metrics.balanced_accuracy_score(reference[rows], predicted[rows]))
        assert same(draws["WA"][i], sklearn.metrics.accuracy_score(reference[rows], predicted[rows]))
        assert same(draws["macro_f1"][i], sklearn.metrics.f1_score(reference[rows], predicted[rows], average="macro", zero_division=0))
    again = metrics.bootstrap(parts, metrics.confusion_scores, repeats=50, seed=3)
    assert all((draws[name] == again[name]).all() for name in draws)


def test_interval_covers_the_true_accuracy_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        difficulty = np.clip(rng.normal(0.7, 0.1, 40), 0, 1)  # accuracy differs between speakers; the mean over speakers is 0.7
        right = rng.binomial(20, difficulty)
        parts = [[[r, 20 - r], [0, 0]] for r in right]
        low, high = metrics.confidence_intervals(parts, metrics.confusion_scores, repeats=300, seed=trial)["WA"]
        hits += low <= 0.7 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_one_speaker_has_no_interval():
    intervals = metrics.confidence_intervals([[[3, 1], [0, 2]]], metrics.confusion_scores)
    assert all(math.isnan(v) for pair in intervals.values() for v in pair)


def test_permutation_test_is_exact_for_few_speakers():
    this = np.array([[[9, 1], [0, 0]], [[8, 2], [0, 0]], [[7, 3], [0, 0]], [[9, 1], [0, 0]]])
    other = np.array([[[6, 4], [0, 0]], [[7, 3], [0, 0]], [[8, 2], [0, 0]], [[5, 5], [0, 0]]])
    result = metrics.paired_comparison(this, other, metrics.confusion_scores, repeats=200)["WA"]
    gains = (this - other)[:, 0, 0] / 40
    hits = [abs(np.dot(signs, gains)) >= gains.sum() - 1e-12 for signs in itertools.product([1, -1], repeat=4)]
    assert result["difference"] == pytest.approx(33 / 40 - 26 / 40)
    assert result["p"] == pytest.approx(np.mean(hits)) == 6 / 16  # gains 3, 1, −1, 4: sums of 7 or 9, either sign
    assert result["ci"][0] < result["difference"] < result["ci"][1]
    theirs = scipy.stats.permutation_test(
        (gains,), np.sum, permutation_type="samples", alternative="two-sided", n_resamples=np.inf, vectorized=False
    )
    assert result["p"] == pytest.approx(theirs.pvalue)


def test_equal_systems_are_not_told_apart_and_clearly_better_ones_are():
    rng = np.random.default_rng(5)
    truth = rng.normal(size=(30, 10))
    good, same_quality, bad = (truth + noise * rng.normal(size=truth.shape) for noise in (0.5, 0.5, 2.0))
    parts = {k: [metrics.moments(t, p) for t, p in zip(truth, v, strict=True)] for k, v in {"g": good, "s": same_quality, "b": bad}.items()}
    better = metrics.paired_comparison(parts["g"], parts["b"], metrics.moment_scores, repeats=500)["ccc"]
    assert better["difference"] > 0.2
    assert better["p"] == pytest.approx(1 / 501)
    assert better["ci"][0] > 0
    assert metrics.paired_comparison(parts["g"], parts["s"], metrics.moment_scores, repeats=500)["ccc"]["p"] > 0.05
    none = metrics.paired_comparison(parts["g"], parts["g"], metrics.moment_scores, repeats=100)["ccc"]
    assert (none["difference"], none["p"], none["ci"]) == (0, 1, [0, 0])


def test_permutation_p_values_are_uniform_without_a_difference():
    rng = np.random.default_rng(11)
    p = []
    for trial in range(200):
        this, other = (np.array([[[r, 20 - r], [0, 0]] for r in rng.binomial(20, 0.6, 20)]) for _ in range(2))
        p.append(metrics.paired_comparison(this, other, metrics.confusion_scores, repeats=200, seed=trial)["WA"]["p"])
    assert np.mean(np.array(p) <= 0.05) <= 0.1
    assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=0.12)


def test_default_thresholds_are_every_twentieth():
    assert metrics.threshold_sweep([True], [0.5])["threshold"].tolist() == [i / 20 for i in range(1, 20)]


def test_mean_std_leaves_out_what_is_not_defined():
    assert metrics.mean_std([1.0, math.nan, 3.0, None]) == (2.0, 1.0, 2)
    assert metrics.mean_std([])[2] == 0
