"""The metric formulas, in float64 and over whole sets: never averaged over batches.

Classification scores are functions of the confusion matrix, regression scores of six moments. Both are sums over
utterances, so that resampling speakers is resampling rows of a small table: thousands of bootstrap draws cost milliseconds.

A score that is not defined (no utterance, a correlation with a constant) is NaN, never a silent 0 or 1.
"""

import numpy as np
from scipy.stats import binomtest

EXACT_SPEAKERS = 14
"""Up to this many speakers the permutation test enumerates every assignment (2¹⁴) instead of drawing some."""


# --- classification ---------------------------------------------------------------------------------------------------


def confusion_matrix(reference, predicted, classes=None):
    """Counts of utterances, rows: reference class, columns: predicted class.

    Args:
        reference, predicted: equally long sequences of labels.
        classes: order of the classes; by default the sorted labels that occur in either.

    Returns:
        int64 array (classes, classes).

    Raises:
        ValueError: unequal lengths, or a label that is not in `classes`.
    """
    reference, predicted = list(reference), list(predicted)
    _same_length(reference, predicted)
    classes = sorted(set(reference) | set(predicted)) if classes is None else list(classes)
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted({str(label) for label in (*reference, *predicted) if label not in index})
    if unknown:
        raise ValueError(f"labels {unknown} are not among the classes {classes}")
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, ([index[label] for label in reference], [index[label] for label in predicted]), 1)
    return counts


def recalls(confusion):
    """Recall of every class; NaN for a class that no reference has. (…, classes, classes) → (…, classes)."""
    confusion = np.asarray(confusion, dtype=np.float64)
    return _ratio(np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1), np.nan)


def precisions(confusion):
    """Precision of every class; NaN for a class that is never predicted. (…, classes, classes) → (…, classes)."""
    confusion = np.asarray(confusion, dtype=np.float64)
    return _ratio(np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-2), np.nan)


def f1_scores(confusion):
    """F1 of every class, 2·TP / (2·TP + FP + FN); NaN for a class that occurs neither in references nor in predictions."""
    confusion = np.asarray(confusion, dtype=np.float64)
    return _ratio(2 * np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1) + confusion.sum(-2), np.nan)


def confusion_scores(confusion):
    """UA, WA and macro F1 of one confusion matrix or of a stack of them.

    UA is the mean recall over the classes that occur in the references (scikit-learn's `balanced_accuracy_score`), WA the
    accuracy, macro F1 the mean F1 over the classes that occur in references or predictions (the default of `f1_score`).

    Args:
        confusion: (…, classes, classes), rows are references.

    Returns:
        {"UA": …, "WA": …, "macro_f1": …}, each of shape (…).
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    correct = np.trace(confusion, axis1=-2, axis2=-1)
    return {
        "UA": _mean_of_defined(recalls(confusion)),
        "WA": _ratio(correct, confusion.sum((-2, -1)), np.nan),
        "macro_f1": _mean_of_defined(f1_scores(confusion)),
    }


def unweighted_accuracy(reference, predicted):
    """UA: the mean of the recalls of the classes that occur in `reference` (scikit-learn: `balanced_accuracy_score`)."""
    return float(confusion_scores(confusion_matrix(reference, predicted))["UA"])


def weighted_accuracy(reference, predicted):
    """WA: the fraction of utterances whose class is right (scikit-learn: `accuracy_score`)."""
    return float(confusion_scores(confusion_matrix(reference, predicted))["WA"])


def macro_f1(reference, predicted, classes=None):
    """Mean F1 over classes (scikit-learn: `f1_score(…, average="macro", labels=classes, zero_division=0)`).

    Args:
        reference, predicted: labels.
        classes: average over exactly these, where one that occurs nowhere counts 0; by default over those that occur.
    """
    reference, predicted = list(reference), list(predicted)
    everything = sorted({*(classes or ()), *reference, *predicted})
    scores = f1_scores(confusion_matrix(reference, predicted, everything))
    if classes is not None:
        scores = np.nan_to_num(scores[[everything.index(name) for name in classes]])
    return float(_mean_of_defined(scores))


def reliability(confidence, correct, bins=15):
    """Accuracy against confidence in equally wide bins (lower edge excluded, upper included), as Guo et al. 2017.

    Args:
        confidence: (n) probability that the system gave its own decision.
        correct: (n) whether the decision was right.
        bins: number of bins over 0…1.

    Returns:
        {"edges": (bins + 1), "n": (bins), "confidence": (bins), "accuracy": (bins)}; means of an empty bin are NaN.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    _same_length(confidence, correct)
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    n = np.bincount(index, minlength=bins)
    return {
        "edges": edges,
        "n": n,
        "confidence": _ratio(np.bincount(index, confidence, bins), n, np.nan),
        "accuracy": _ratio(np.bincount(index, correct, bins), n, np.nan),
    }


def expected_calibration_error(confidence, correct, bins=15):
    """ECE: the mean gap between confidence and accuracy over the bins of `reliability`, weighted by their counts."""
    table = reliability(confidence, correct, bins)
    if not table["n"].sum():
        return float("nan")
    gaps = np.nan_to_num(np.abs(table["accuracy"] - table["confidence"]))
    return float((gaps * table["n"]).sum() / table["n"].sum())


def threshold_sweep(is_class, probability, thresholds=None):
    """What deciding for one class at `probability >= threshold` would give, for each threshold.

    Args:
        is_class: (n) whether the reference is that class.
        probability: (n) the system's probability of that class.
        thresholds: ascending; 0.05, 0.10, …, 0.95 by default.

    Returns:
        {"threshold", "accuracy", "precision", "recall", "F1", "FP", "FN", "TP"}, arrays as long as `thresholds`.
        Precision, recall and F1 without any candidate are 0, as scikit-learn's `zero_division=0`.
    """
    is_class, probability = np.asarray(is_class, dtype=bool), np.asarray(probability, dtype=np.float64)
    _same_length(is_class, probability)
    thresholds = np.round(np.arange(1, 20) * 0.05, 2) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    decided = probability[None, :] >= thresholds[:, None]  # (thresholds, n)
    tp, fp = (decided & is_class).sum(1), (decided & ~is_class).sum(1)
    fn = is_class.sum() - tp
    return {
        "threshold": thresholds,
        "accuracy": _ratio(len(is_class) - fp - fn, np.full(len(thresholds), len(is_class)), np.nan),
        "precision": _ratio(tp, tp + fp, 0.0),
        "recall": _ratio(tp, tp + fn, 0.0),
        "F1": _ratio(2 * tp, 2 * tp + fp + fn, 0.0),
        "FP": fp,
        "FN": fn,
        "TP": tp,
    }


# --- regression -------------------------------------------------------------------------------------------------------


def ccc(reference, predicted):
    """Concordance correlation coefficient (Lin 1989), population variances, over the whole set.

    2·cov / (var_x + var_y + (mean_x − mean_y)²). As audmetric's: NaN for fewer than two utterances and where both sides are
    one and the same constant; 0 where only one side is constant, or both are and differ.
    """
    reference, predicted = _pair(reference, predicted)
    if len(reference) < 2:
        return float("nan")
    if np.ptp(reference) == 0 or np.ptp(predicted) == 0:  # exact, where the formula would divide rounding errors
        same = np.ptp(reference) == np.ptp(predicted) and reference[0] == predicted[0]
        return float("nan") if same else 0.0
    x, y = reference - reference.mean(), predicted - predicted.mean()
    denominator = x @ x + y @ y + len(x) * (reference.mean() - predicted.mean()) ** 2
    return float(2 * (x @ y) / denominator) if denominator else float("nan")


def pearson(reference, predicted):
    """Pearson correlation; NaN for fewer than two utterances or where a side is constant (as audmetric and SciPy)."""
    reference, predicted = _pair(reference, predicted)
    if len(reference) < 2 or np.ptp(reference) == 0 or np.ptp(predicted) == 0:
        return float("nan")
    x, y = reference - reference.mean(), predicted - predicted.mean()
    denominator = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.clip(x @ y / denominator, -1, 1)) if denominator else float("nan")


def rmse(reference, predicted):
    """Root of the mean squared error; NaN for no utterance."""
    reference, predicted = _pair(reference, predicted)
    return float(np.sqrt(np.mean((reference - predicted) ** 2))) if len(reference) else float("nan")


def bias(reference, predicted):
    """Mean of prediction − reference: the shift of a group's predictions; NaN for no utterance."""
    reference, predicted = _pair(reference, predicted)
    return float(np.mean(predicted - reference)) if len(reference) else float("nan")


def moments(reference, predicted, origin=0.0):
    """The sums that CCC, Pearson and RMSE are functions of: n, Σx, Σy, Σx², Σy², Σxy, with `origin` subtracted before.

    An origin near the mean keeps the sums accurate; only moments of equal origin may be added.
    """
    x, y = _pair(reference, predicted)
    x, y = x - origin, y - origin
    return np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y])


def moment_scores(sums):
    """{"ccc", "pearson", "rmse"} from summed `moments`, (…, 6) → (…); NaN where not defined."""
    n, x, y, xx, yy, xy = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        var_x, var_y, cov = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2, xy / n - (x / n) * (y / n)
        rounding = 1e-14 * (xx + yy) / n
        var_x, var_y = np.where(var_x > rounding, var_x, 0.0), np.where(var_y > rounding, var_y, 0.0)
        cov = np.where((var_x > 0) & (var_y > 0), cov, 0.0)
        spread = var_x + var_y + ((x - y) / n) ** 2
        defined = n >= 2
        return {
            "ccc": np.where(defined & (spread > rounding), 2 * cov / spread, np.nan),
            "pearson": np.where(defined & (var_x > 0) & (var_y > 0), cov / np.sqrt(var_x * var_y), np.nan),
            "rmse": np.sqrt(np.maximum((xx + yy - 2 * xy) / n, 0.0)),
        }


# --- chance -----------------------------------------------------------------------------------------------------------


def bootstrap(parts, score, repeats=2000, seed=1):
    """Draw speakers with replacement and score each draw.

    Utterances of one speaker are not independent: resampling them would make intervals too narrow, so whole speakers are
    drawn (Bisani & Ney 2004).

    Args:
        parts: (speakers, …) per-speaker tables that add up: confusion matrices or moments.
        score: function of summed parts (draws, …) → {name: (draws)}.
        repeats: number of draws.
        seed: of the draws.

    Returns:
        {name: (draws)}.
    """
    parts = np.asarray(parts, dtype=np.float64)
    counts = np.random.default_rng(seed).multinomial(len(parts), np.full(len(parts), 1 / len(parts)), size=repeats)
    return score(np.tensordot(counts, parts, axes=1))


def interval(draws, level=0.95):
    """Percentile interval [low, high] of bootstrap draws; draws whose score is not defined are left out."""
    draws = np.asarray(draws, dtype=np.float64)
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return [float("nan"), float("nan")]
    return [float(v) for v in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])]


def confidence_intervals(parts, score, repeats=2000, level=0.95, seed=1):
    """{name: [low, high]} by bootstrap over speakers; with fewer than two speakers there is none: [NaN, NaN]."""
    if len(parts) < 2:
        return {name: [float("nan"), float("nan")] for name in score(np.asarray(parts, dtype=np.float64).sum(0))}
    return {name: interval(draws, level) for name, draws in bootstrap(parts, score, repeats, seed).items()}


def paired_comparison(parts, other_parts, score, repeats=2000, level=0.95, seed=1):
    """Compare two systems on the same utterances, speaker by speaker.

    The interval is a paired bootstrap over speakers. The p-value is a two-sided permutation test: under the hypothesis that
    the systems are equal, exchanging their outputs for any set of speakers changes nothing. Up to 14 speakers every
    exchange is enumerated (exact), otherwise `repeats` are drawn and (1 + hits) / (1 + repeats) is reported. With few
    speakers p cannot be small: its lowest possible value is 2 / 2^speakers.

    Args:
        parts, other_parts: (speakers, …) summable tables of the two systems, the speakers in the same order.
        score: function of summed parts → {name: value}.

    Returns:
        name → {"this", "other", "difference", "ci", "p", "speakers"}; difference = this − other.
    """
    parts, other_parts = np.asarray(parts, dtype=np.float64), np.asarray(other_parts, dtype=np.float64)
    _same_length(parts, other_parts)
    n = len(parts)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=repeats)
    drawn, other_drawn = score(np.tensordot(counts, parts, axes=1)), score(np.tensordot(counts, other_parts, axes=1))
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
        ci = interval(drawn[name] - other_drawn[name], level) if n > 1 else [float("nan"), float("nan")]
        result[name] = {"this": float(this[name]), "other": float(other[name]), "difference": difference, "ci": ci, "p": p, "speakers": n}
    return result


def mcnemar(correct, other_correct):
    """Exact McNemar test on the utterances that only one of two classifiers gets right.

    It takes utterances as independent, which utterances of one speaker are not: read it beside `paired_comparison`.

    Returns:
        {"only_this", "only_other", "p"}: counts and the two-sided binomial p-value (1 without any discordant utterance).
    """
    correct, other_correct = np.asarray(correct, dtype=bool), np.asarray(other_correct, dtype=bool)
    _same_length(correct, other_correct)
    only, only_other = int((correct & ~other_correct).sum()), int((~correct & other_correct).sum())
    p = float(binomtest(only, only + only_other, 0.5).pvalue) if only + only_other else 1.0
    return {"only_this": only, "only_other": only_other, "p": p}


def mean_std(values):
    """(mean, population standard deviation, count) of the values that are defined; (NaN, NaN, 0) for none."""
    values = np.array([v for v in values if v is not None and not np.isnan(v)], dtype=np.float64)
    return (float(values.mean()), float(values.std()), len(values)) if len(values) else (float("nan"), float("nan"), 0)


def _same_length(a, b):
    if len(a) != len(b):
        raise ValueError(f"{len(a)} references for {len(b)} predictions; they must be as many")


def _pair(reference, predicted):
    reference, predicted = np.asarray(reference, dtype=np.float64).ravel(), np.asarray(predicted, dtype=np.float64).ravel()
    _same_length(reference, predicted)
    return reference, predicted


def _ratio(numerator, denominator, otherwise):
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(numerator, denominator, out=np.full(np.broadcast(numerator, denominator).shape, otherwise), where=denominator != 0)


def _mean_of_defined(values):
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(-1), defined.sum(-1), np.nan)
