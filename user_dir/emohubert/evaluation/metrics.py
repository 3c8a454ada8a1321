"""The metric formulas, in float64 and over whole sets: never averaged over batches. Evaluations and criterions use these.

Classification scores are functions of the confusion matrix, regression scores of six moments: sums over utterances, which batches and
processes add up, and a bootstrap over speakers resamples. A score that is not defined (no utterance, a correlation with a constant) is NaN.
"""

import numpy as np

EXACT_SPEAKERS = 14  # up to this many speakers the permutation test enumerates every assignment (2¹⁴) instead of drawing some
LEVEL = 0.95
"""Of confidence intervals."""


# --- classification ---------------------------------------------------------------------------------------------------


def confusion_matrix(reference, predicted, classes):
    """Counts of utterances, int64 (classes, classes): rows are references, columns predictions, both integers below `classes`."""
    _same_length(reference, predicted)
    cells = np.asarray(reference, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def class_scores(confusion):
    """Recall, precision and F1 of every class, (…, classes) each, from (…, classes, classes). NaN: recall of a class that no reference has,
    precision of one that is never predicted, F1 of one that is neither."""
    confusion = np.asarray(confusion, dtype=np.float64)
    right, references, predictions = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1), confusion.sum(-2)
    return _ratio(right, references), _ratio(right, predictions), _ratio(2 * right, references + predictions)


def confusion_scores(confusion):
    """{"UA", "WA", "macro_f1"}, (…) each, of confusion matrices (…, classes, classes).

    UA is the mean recall over the classes that occur in the references (scikit-learn's `balanced_accuracy_score`), WA the
    accuracy, macro F1 the mean F1 over the classes that occur in references or predictions (the default of scikit-learn's
    `f1_score`): a class that the data do not have says nothing about the model, and would only lower the mean.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    recall, _, f1 = class_scores(confusion)
    accuracy = _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))
    return {"UA": _mean_of_defined(recall), "WA": accuracy, "macro_f1": _mean_of_defined(f1)}


def expected_calibration_error(confidence, correct, bins=15):
    """ECE (Guo et al. 2017): mean gap between confidence and accuracy over equally wide bins, weighted by their counts. Of (n)
    probabilities that the system gave its own decisions, and whether they were right; bins hold their upper edge, not their lower."""
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    _same_length(confidence, correct)
    index = np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1, 0, bins - 1)
    gaps = np.abs(np.bincount(index, correct, bins) - np.bincount(index, confidence, bins))
    return float(_ratio(gaps.sum(), len(confidence)))


def risk_coverage(confidence, reference, predicted, classes):
    """What deciding only for the most confident utterances would give, for every number of them: {"coverage", "WA", "UA"}, (n) each, and
    "aurc", the area under the risk–coverage curve: the mean of 1 − WA over all coverages (Geifman, Uziel & El-Yaniv 2019; 0 is best; NaN
    for no utterance). Of (n) confidences, references and predictions, both integers below `classes`. Utterances of one confidence, whose order
    means nothing, count as if evenly mixed."""
    _same_length(reference, predicted)
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")
    reference, n = np.asarray(reference, dtype=np.int64)[order], len(order)
    of_class = np.eye(classes)[reference]
    right = of_class * (reference == np.asarray(predicted)[order])[:, None]
    ends = np.flatnonzero(np.diff(np.asarray(confidence)[order], append=np.nan) != 0)  # the last utterance of each confidence
    many = np.arange(1, n + 1)

    def up_to(values):  # (n, classes) → sums over the first k, even within a confidence
        sums = np.vstack([np.zeros(classes), values.cumsum(0)[ends]])
        return np.stack([np.interp(many, np.append(0, ends + 1), column) for column in sums.T], axis=1)

    right, of_class = up_to(right), up_to(of_class)
    accuracy = right.sum(1) / many
    aurc = float(np.mean(1 - accuracy)) if n else float("nan")
    return {"coverage": many / max(n, 1), "WA": accuracy, "UA": _mean_of_defined(_ratio(right, of_class)), "aurc": aurc}


def threshold_sweep(is_class, probability):
    """What deciding for one class at `probability >= threshold` would give, for the thresholds 0.05, 0.10, …, 0.95, from (n), whether the
    reference is that class and the system's probability of it: {"threshold", "accuracy", "precision", "recall", "F1", "FP", "FN", "TP"}, an
    array each. Precision, recall and F1 without any candidate are 0, as scikit-learn's `zero_division=0`."""
    is_class, probability = np.asarray(is_class, dtype=bool), np.asarray(probability, dtype=np.float64)
    thresholds = np.round(np.arange(1, 20) * 0.05, 2)
    decided = probability[None, :] >= thresholds[:, None]  # (thresholds, n)
    tp, fp = (decided & is_class).sum(1), (decided & ~is_class).sum(1)
    fn = is_class.sum() - tp
    return {
        "threshold": thresholds,
        "accuracy": _ratio(len(is_class) - fp - fn, len(is_class)),
        "precision": _ratio(tp, tp + fp, 0.0),
        "recall": _ratio(tp, tp + fn, 0.0),
        "F1": _ratio(2 * tp, 2 * tp + fp + fn, 0.0),
        "FP": fp,
        "FN": fn,
        "TP": tp,
    }


def divergences(shares, probabilities):
    """How far a model's probabilities q (at least 1e-12) are from annotators' shares p, both (n, classes): {"kl", "js", "tv"}, (n) each.
    Kullback–Leibler divergence Σ p log(p / q), Jensen–Shannon divergence (0 to log 2), both in nats, total variation distance ½ Σ |p − q|."""
    from scipy.special import rel_entr

    p, q = np.asarray(shares, dtype=np.float64), np.maximum(np.asarray(probabilities, dtype=np.float64), 1e-12)
    js = (rel_entr(p, (p + q) / 2) + rel_entr(q, (p + q) / 2)) / 2
    return {name: terms.sum(axis=-1) for name, terms in {"kl": rel_entr(p, q), "js": js, "tv": np.abs(p - q) / 2}.items()}


# --- regression -------------------------------------------------------------------------------------------------------


def ccc(reference, predicted):
    """Concordance correlation coefficient (Lin 1989) over the whole set: 2·cov / (var_x + var_y + (mean_x − mean_y)²). Population
    variances. As audmetric's: NaN for fewer than two utterances and where both sides are one and the same constant (0 / 0: agreement cannot
    be told from chance), 0 where only one side is constant or the two constants differ."""
    x, y = _pair(reference, predicted)
    return float(_concordance(*_spreads(x, y))) if len(x) > 1 else float("nan")


def pearson(reference, predicted):
    """Pearson correlation; NaN for fewer than two utterances or where a side is constant (as audmetric and SciPy)."""
    x, y = _pair(reference, predicted)
    return float(_correlation(*_spreads(x, y)[:3])) if len(x) > 1 else float("nan")


def rmse(reference, predicted):
    """Root of the mean squared error; NaN for no utterance."""
    x, y = _pair(reference, predicted)
    return float(np.sqrt(np.mean((x - y) ** 2))) if len(x) else float("nan")


def bias(reference, predicted):
    """Mean of prediction − reference; NaN for no utterance."""
    x, y = _pair(reference, predicted)
    return float(np.mean(y - x)) if len(x) else float("nan")


def moments(reference, predicted, origin=0.0):
    """n, Σx, Σy, Σx², Σy², Σxy, with `origin` subtracted before: near the mean it keeps them accurate. Those of one origin add up."""
    x, y = _pair(reference, predicted)
    x, y = x - origin, y - origin
    return np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y])


def moment_scores(sums):
    """{"ccc", "pearson", "rmse"} from summed `moments`, (…, 6) → (…). A variance within their rounding error is that of a constant."""
    n, x, y, xx, yy, xy = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        var_x, var_y, cov = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2, xy / n - (x / n) * (y / n)
        rounding = 1e-14 * (xx + yy) / n
        var_x, var_y = np.where(var_x > rounding, var_x, 0.0), np.where(var_y > rounding, var_y, 0.0)
        cov = np.where((var_x > 0) & (var_y > 0), cov, 0.0)
        return {
            "ccc": np.where(n > 1, _concordance(var_x, var_y, cov, ((x - y) / n) ** 2, rounding), np.nan),
            "pearson": np.where(n > 1, _correlation(var_x, var_y, cov), np.nan),
            "rmse": np.sqrt(np.maximum((xx + yy - 2 * xy) / n, 0.0)),
        }


def _spreads(x, y):
    """n times (var_x, var_y, cov, (mean_x − mean_y)²); exactly 0 for a constant, whose mean may be rounded."""
    dx, dy = (v - v.mean() if np.ptp(v) else np.zeros_like(v) for v in (x, y))
    return dx @ dx, dy @ dy, dx @ dy, len(x) * (x.mean() - y.mean()) ** 2


def _concordance(xx, yy, xy, gap, rounding=0.0):
    spread = xx + yy + gap
    return _ratio(2 * xy, np.where(spread > rounding, spread, 0.0))


def _correlation(xx, yy, xy):
    return np.clip(_ratio(xy, np.sqrt(xx) * np.sqrt(yy)), -1, 1)


# --- chance -----------------------------------------------------------------------------------------------------------


def bootstrap(parts, score, repeats=2000, seed=1):
    """Scores of speakers drawn with replacement: {name: (draws)}; intervals from dependent utterances would be too narrow (Bisani & Ney
    2004). `parts`: (speakers, …) confusion matrices or moments, which add up; `score`: summed parts (draws, …) → {name: (draws)}."""
    parts = np.asarray(parts, dtype=np.float64)
    return score(np.tensordot(_drawn(np.random.default_rng(seed), len(parts), repeats), parts, axes=1))


def confidence_intervals(parts, score, repeats=2000, seed=1):
    """{name: [low, high]} by `bootstrap`; with fewer than two speakers there is none: [NaN, NaN]."""
    return {name: _interval(values, len(parts)) for name, values in bootstrap(parts, score, repeats, seed).items()}


def paired_comparison(parts, other_parts, score, repeats=2000, seed=1):
    """Compare two systems on the same utterances, from tables and scores as for `bootstrap`, the speakers in the same order.

    The interval is a paired bootstrap over speakers. The p-value is a two-sided permutation test: were the systems equal, exchanging
    their outputs for any set of speakers would change nothing. Up to 14 speakers every exchange is enumerated (exact), otherwise
    `repeats` are drawn and (1 + hits) / (1 + repeats) is reported; p cannot be below 2 / 2^speakers.
    Returns name → {"this", "other", "difference", "ci", "p", "speakers"}; difference = this − other.
    """
    parts, other_parts = np.asarray(parts, dtype=np.float64), np.asarray(other_parts, dtype=np.float64)
    _same_length(parts, other_parts)
    n = len(parts)
    rng = np.random.default_rng(seed)
    counts = _drawn(rng, n, repeats)
    drawn, other_drawn = (score(np.tensordot(counts, p, axes=1)) for p in (parts, other_parts))
    exact = n <= EXACT_SPEAKERS
    swap = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 if exact else rng.integers(0, 2, size=(repeats, n))
    change = np.tensordot(swap, other_parts - parts, axes=1)
    swapped, other_swapped = score(parts.sum(0) + change), score(other_parts.sum(0) - change)
    this, other = score(parts.sum(0)), score(other_parts.sum(0))
    result = {}
    for name in this:
        difference = float(this[name] - other[name])
        extreme = np.abs(swapped[name] - other_swapped[name]) >= abs(difference) - 1e-12
        p = float("nan") if np.isnan(difference) else float(extreme.mean() if exact else (1 + extreme.sum()) / (1 + repeats))
        ci = _interval(drawn[name] - other_drawn[name], n)
        result[name] = {"this": float(this[name]), "other": float(other[name]), "difference": difference, "ci": ci, "p": p, "speakers": n}
    return result


def mean_std(values):
    """(mean, population standard deviation, count) of the values that are defined; (NaN, NaN, 0) for none."""
    values = np.array(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    return (float(values.mean()), float(values.std()), len(values)) if len(values) else (float("nan"), float("nan"), 0)


def _drawn(rng, speakers, repeats):
    """How often each draw has each speaker: (repeats, speakers)."""
    return rng.multinomial(speakers, np.full(speakers, 1 / speakers), size=repeats)


def _interval(draws, speakers):
    """Percentile interval [low, high]; draws whose score is not defined are left out."""
    draws = draws[~np.isnan(draws)]
    if speakers < 2 or not len(draws):
        return [float("nan"), float("nan")]
    return [float(v) for v in np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def _same_length(a, b):
    if len(a) != len(b):
        raise ValueError(f"{len(a)} references for {len(b)} predictions; they must be as many")


def _pair(reference, predicted):
    reference, predicted = np.asarray(reference, dtype=np.float64).ravel(), np.asarray(predicted, dtype=np.float64).ravel()
    _same_length(reference, predicted)
    return reference, predicted


def _ratio(numerator, denominator, otherwise=np.nan):
    """Elementwise quotient; `otherwise` where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return np.divide(numerator, denominator, out=np.full(numerator.shape, otherwise), where=denominator != 0)


def _mean_of_defined(values):
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(-1), defined.sum(-1))
