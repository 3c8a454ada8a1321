"""PLDC: calibrating predictions for speakers whom the model has never met, from the training speakers most like them.

Personalised label distribution calibration (Tran, Yin & Soleymani 2023) takes the k training speakers whose vectors have the
highest cosine similarity, averages their label means μ_j (and standard deviations σ_j), and moves the speaker's predictions
there:  ŷ' = (ŷ − m) / s · σ_k + μ_k,  m and s the mean and standard deviation of the speaker's predictions. With
`shrinkage="none"` this is exactly what is done here. It needs no label of the new speaker, but it can do harm: neighbours may
say nothing about labels, a handful of predictions has a mean by chance, and the model may have heard the shift itself. So, by
default, μ_k is first shrunk to q, as far as leaving out training speakers tells (`neighbourhood`), and then predictions go
only part of the way: m' = m + λ (q − m), and likewise s' = s + λ_s (q_s − s), with

    λ = (B − h τ² ρ)₊ / (B + ν(n)),   ν(n) = ω² / n for a mean, ω² / 2(n − 1) for a standard deviation

- B is the variance between speakers of the discrepancy q − m beyond chance: the solution of Σ_t (q_t − m_t)² / (B + ν_t) = χ²
  (Paule & Mandel 1982), with the upper quartile of χ²: a lower bound. Predictions that agree with the neighbours as well as
  chance allows are left alone: B = 0.
- ω² is the variance of predictions within a speaker. In λ it makes the factor n / (n + κ), κ = ω² / B, of an empirical-Bayes
  estimate from n utterances.
- τ² is the variance of the error of q (training speakers left out, less the chance in their own means), ρ the neighbours'
  disagreement, and h in 0..1 the share of the speakers' shifts that the model hears itself.

Why: over speakers, E(y − m − λ(q − m))², y the mean of the labels, is least at λ = 1 + E(y − q)(q − m) / E(q − m)². As
E[y − q | q] = 0, which γ sees to, E(y − q)(q − m) = −E(y − q)m: that is h τ², from the part of the shift that q misses and m hears,
and ν, from the content of n utterances, which m follows where predictions are unbiased within a speaker. h is the slope of m
on q over the speakers to be calibrated, with a normal prior of standard deviation ½ around the most that a model without
errors of its own can hear, √(variance of m between speakers / variance of the training speakers' labels between speakers).
With fewer than three speakers h = 1. Where γ = 0, λ = 0.

B, h and ω² come from predictions, never from their labels. **Classes** take the prior-ratio form of Saerens, Latinne &
Decaestecker 2002: p'(c|x) ∝ p(c|x) · π(c) / π₀(c), where π₀ is the training frequency of the class and π the q above for
smoothed frequencies (n_c + α π₀(c)) / (n + α); or their EM over the speaker's own posteriors, where q counts as much as A
utterances, A by maximum likelihood of the training speakers' counts (without shrinkage A = 0: the published EM). A model that
hears a speaker's frequencies itself then counts them twice, and posteriors alone do not show it: with predictions of the
training speakers, `choose_by_metric` finds the exponent of the ratio that is best for them.

Defined everywhere, never NaN: constant predictions (or one) have standard deviation 0 and are shifted, not scaled; a training
speaker with one label has the average standard deviation; more neighbours than speakers means all of them; a class that no
training speaker has keeps its ratio of 1.
"""

import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln, xlogy
from scipy.stats import chi2, chi2_contingency

from ..core.errors import InputError
from ..core.files import atomic
from ..data import speaker_vectors
from ..data.speaker_vectors import SpeakerVectors
from ..evaluation import metrics
from ..evaluation.predictions import ClassPredictions, DimensionPredictions, from_probabilities
from .similar_speakers import Neighbourhood, choose, numbers_of_neighbours, speaker_means

MATCHES = ("mean", "mean-std", "prior")
SHRINKAGES = ("auto", "none")
PRIORS = ("neighbours", "em")
CONFIDENCE = 0.75
"""Quantile of χ² up to which discrepancies count as chance."""
HEARD_PRIOR = 0.5
"""Standard deviation of the prior of h."""
STRENGTHS = np.linspace(0, 1, 5)
CONCENTRATIONS = np.logspace(0, 4, 41)
CONSTANT = 1e-7
"""Predictions that vary less than this share of their size, the resolution of float32, are constant."""
_TIE = 1e-9
_RARE = 1e-9
"""Frequency below which a class counts as this frequent when estimates are compared."""


@dataclass(frozen=True)
class Settings:
    """How to calibrate.

    Attributes:
        match: `mean` or `mean-std` for dimensions, `prior` for classes.
        top_k: number of neighbours; None chooses by leave-one-speaker-out.
        weighting: `hard` or `similarity`, see `speaker_vectors.neighbour_weights`.
        shrinkage: `auto`, or `none` for the published formulas.
        smoothing: α, utterances of average class frequencies added to every training speaker's.
        prior: `neighbours`, or `em`.
    """

    match: str = "mean"
    top_k: int | None = None
    weighting: str = "hard"
    shrinkage: str = "auto"
    smoothing: float = 1.0
    prior: str = "neighbours"

    def __post_init__(self):
        choices = (("match", MATCHES), ("weighting", speaker_vectors.WEIGHTINGS), ("shrinkage", SHRINKAGES), ("prior", PRIORS))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is “{getattr(self, name)}”; expected one of {' '.join(allowed)}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top-k is {self.top_k}; expected 1 or more, or auto")
        if not (math.isfinite(self.smoothing) and self.smoothing >= 0):
            raise InputError(f"smoothing is {self.smoothing}; expected 0 or a positive number")


# --- dimensions -------------------------------------------------------------------------------------------------------


@dataclass
class Moments:
    """Number, means and standard deviations of a speaker's predictions, updated one utterance at a time (Welford 1962)."""

    n: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, predictions):
        """Of predictions (n, dims), n ≥ 0."""
        moments = cls(0, np.zeros(predictions.shape[1]), np.zeros(predictions.shape[1]))
        if len(predictions):
            centred = predictions - predictions[0]  # exactly 0 for constant predictions
            moments.n, moments.mean = len(predictions), predictions[0] + centred.mean(0)
            moments.squares = ((centred - centred.mean(0)) ** 2).sum(0)
        return moments

    def add(self, prediction):
        """One more utterance's predictions (dims)."""
        self.n += 1
        difference = prediction - self.mean
        self.mean = self.mean + difference / self.n
        self.squares = self.squares + difference * (prediction - self.mean)

    @property
    def std(self):
        """Population standard deviations; 0 for constant predictions."""
        std = np.sqrt(self.squares / max(self.n, 1))
        return np.where(std > CONSTANT * np.abs(self.mean), std, 0.0)


@dataclass
class Shift:
    """A speaker's correction of dimensions: ŷ' = ŷ + shift + (scale − 1)(ŷ − mean), (dims) each.

    `strength` is λ of the mean (and, after it, of the standard deviation).
    """

    mean: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    strength: np.ndarray

    def __call__(self, predictions):
        """Predictions (…, dims) → calibrated ones."""
        return predictions + self.shift + (self.scale - 1) * (predictions - self.mean)


@dataclass
class DimensionCalibration:
    """PLDC of dimensions. `fit` it on the training speakers; `attend` to the predictions to be calibrated; `apply`.

    Attributes:
        settings: Settings.
        names: of the dimensions.
        neighbourhood: values are the label means, then (match `mean-std`) the label standard deviations.
        error: τ², (columns).
        between: B, (columns).
        heard: h, (columns).
        within: ω², (dims).
        strength: factor of every λ, below 1 where `choose_by_metric` found that less is better.
        tried: the values of k that were compared.
        p_values: of the neighbours' estimates being no better than chance, see `neighbourhood`.
        left_out: training speakers that could not be used → reason.
    """

    settings: Settings
    names: list
    neighbourhood: Neighbourhood
    error: np.ndarray
    between: np.ndarray
    heard: np.ndarray
    within: np.ndarray
    shifts: np.ndarray
    strength: float = 1.0
    tried: list = field(default_factory=list)
    p_values: list = field(default_factory=list)
    left_out: dict = field(default_factory=dict)

    kind = "dimensions"

    @classmethod
    def fit(cls, vectors, speakers, labels, names, settings=None):
        """Learn from training speakers.

        Args:
            vectors: SpeakerVectors.
            speakers: n ids, of training utterances.
            labels: (n, dims); NaN where there is none.
            names: of the dimensions.
            settings: Settings.

        Raises:
            InputError: no training speaker has a vector and labels in every dimension, or `match` is not for dimensions.
        """
        settings = Settings() if settings is None else settings
        if settings.match not in ("mean", "mean-std"):
            raise InputError(f"match “{settings.match}” is for classes, and these are dimensions ({' '.join(names)}); use mean or mean-std")
        labels = np.asarray(labels, dtype=np.float64)
        counts, means, stds, ids = _label_statistics(speakers, labels)
        vectors, rows, left_out = _usable(vectors, ids, (counts > 0).all(1), "no label in " + " or ".join(names))
        counts, means, stds = counts[rows], means[rows], stds[rows]
        several = counts > 1
        within = np.where(several, counts * stds**2, 0.0).sum(0) / np.maximum(np.where(several, counts - 1, 0).sum(0), 1)
        average_std = np.where(several, stds, 0.0).sum(0) / np.maximum(several.sum(0), 1)
        stds = np.where(several, stds, average_std)
        with np.errstate(divide="ignore"):
            chance = np.concatenate([within / counts, np.where(several, within / (2 * np.maximum(counts - 1, 1)), np.nan)], axis=1)
        columns = slice(None) if settings.match == "mean-std" else slice(len(names))
        values, chance = np.concatenate([means, stds], axis=1)[:, columns], chance[:, columns]
        known = ~np.isnan(chance)

        def loss(expected, order):
            return np.where(known[order], (values[order] - expected) ** 2, np.nan)

        centre, others = values.mean(0), max(len(values) - 1, 1)
        centres = (values.sum(0) - values) / others
        differ = [_homogeneity(values[:, i], chance[:, i]) for i in range(values.shape[1])]
        shrink = settings.shrinkage != "none"
        hood, tried, p = choose(vectors, values, centre, centres, loss, settings.top_k, settings.weighting, shrink, homogeneity=differ)
        error, between = np.zeros(values.shape[1]), np.zeros(values.shape[1])
        if len(vectors) > 1:
            expected = hood.estimate(vectors, centres, leave_one_out=True).expected
            error = np.maximum(speaker_means((values - expected) ** 2 - chance), 0.0)
            between = ((expected - centres) ** 2).mean(0)
        shifts = np.maximum(speaker_means((values - centre) ** 2 - chance), 0.0)
        return cls(settings, list(names), hood, error, between, np.zeros(values.shape[1]), within, shifts, 1.0, tried, p.tolist(), left_out)

    def attend(self, vectors, speakers, predictions, leave_one_out=False):
        """Set B, h and ω² from predictions (n, dims) of speakers without labels; returns their Estimates.

        Without this, they are what the training labels say of a model that hears nothing of a speaker: h = 0, ω² the
        within-speaker variance of the labels, B the variance of q over the training speakers.
        """
        estimates = self._estimate(vectors, leave_one_out)
        moments = [Moments.of(rows) for rows in by_speaker(vectors.ids, speakers, predictions)]
        n = np.array([m.n for m in moments])
        squares, freedom = sum(m.squares for m in moments), np.maximum(n - 1, 0).sum()
        if freedom:
            self.within = squares / freedom
        found = np.concatenate([np.stack([m.mean for m in moments]), np.stack([m.std for m in moments])], axis=1)[:, : self.columns]
        chance = self._chance(n)
        for column in range(self.columns):
            d = estimates.expected[:, column] - found[:, column]
            counted = np.isfinite(chance[:, column])
            self.between[column] = _excess_variance(d[counted], chance[counted, column])
            self.heard[column] = _share_heard(
                estimates.expected[counted, column], found[counted, column], chance[counted, column], self.shifts[column]
            )
        return estimates

    def corrections(self, estimates, seen):
        """{speaker: Shift} from what the neighbours say and the predictions seen so far, {speaker: (n, dims) or Moments}."""
        return {name: self._correction(estimates, row, seen[name]) for row, name in enumerate(estimates.ids)}

    def estimate(self, vectors):
        """What the neighbours say about speakers with these vectors."""
        return self._estimate(vectors, leave_one_out=False)

    @property
    def columns(self):
        """Number of matched statistics: dims, or twice as many with standard deviations."""
        return self.neighbourhood.values.shape[1]

    def _estimate(self, vectors, leave_one_out):
        values = self.neighbourhood.values
        centres = (values.sum(0) - values) / max(len(values) - 1, 1) if leave_one_out else None
        return self.neighbourhood.estimate(vectors, centres, leave_one_out)

    def _chance(self, n):
        """ν of speakers with n predictions: (speakers, columns); inf where there is no estimate."""
        n = np.asarray(n, dtype=np.float64)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.where(n > 0, self.within / n, np.inf)
            std = np.where(n > 1, self.within / (2 * (n - 1)), np.inf)
        return np.concatenate([mean, std], axis=1)[:, : self.columns]

    def _correction(self, estimates, row, seen):
        moments = seen if isinstance(seen, Moments) else Moments.of(seen)
        dims = len(self.names)
        if not moments.n:
            return Shift(np.zeros(dims), np.zeros(dims), np.ones(dims), np.zeros(self.columns))
        expected, std = estimates.expected[row], moments.std
        strength = self._strength(moments.n, estimates.disagreement[row])
        shift = strength[:dims] * (expected[:dims] - moments.mean)
        scale = np.ones(dims)
        if self.columns > dims:
            target = std + strength[dims:] * (expected[dims:] - std)
            scale = np.divide(target, std, out=np.ones(dims), where=std > 0)
        return Shift(moments.mean, shift, scale, strength)

    def _strength(self, n, disagreement):
        if self.settings.shrinkage == "none":
            return np.full(self.columns, self.strength)
        total = self.between + self._chance([n])[0]
        excess = np.maximum(self.between - self.heard * self.error * disagreement, 0.0)
        spoken = (self.neighbourhood.trust > 0) & (total > 0) & np.isfinite(total)
        return self.strength * np.divide(excess, total, out=np.zeros(self.columns), where=spoken)


def _label_statistics(speakers, labels):
    """(counts, means, population standard deviations, ids), (speakers, dims) each; 0 where there is no label."""
    ids = sorted(set(speakers))
    rows = by_speaker(ids, speakers, labels)
    moments = [[Moments.of(r[~np.isnan(r[:, d]), d][:, None]) for d in range(labels.shape[1])] for r in rows]
    counts = np.array([[m.n for m in row] for row in moments])
    means = np.array([[m.mean[0] for m in row] for row in moments])
    stds = np.array([[math.sqrt(m.squares[0] / max(m.n, 1)) for m in row] for row in moments])
    return counts, means, stds, ids


def _homogeneity(values, chance):
    """Cochran's Q test: the probability of values (speakers) at least so different by chance, given their variances by chance."""
    values, chance = values[np.isfinite(chance)], chance[np.isfinite(chance)]
    if len(values) < 2 or np.ptp(values) == 0:
        return 1.0
    if chance.min() == 0:
        return 0.0
    mean = np.average(values, weights=1 / chance)
    return float(chi2.sf(((values - mean) ** 2 / chance).sum(), len(values) - 1))


def _usable(vectors, ids, labelled, reason):
    """The vectors of the labelled speakers, the rows of their labels, and {speaker: why it is left out}."""
    known = {name: i for i, name in enumerate(ids)}
    left_out = {name: "no vector" for name in ids if name not in set(vectors.ids)}
    left_out |= {name: "no training utterance" for name in vectors.ids if name not in known}
    left_out |= {name: reason for name in vectors.ids if name in known and not labelled[known[name]]}
    kept = [name for name in vectors.ids if name not in left_out]
    if not kept:
        some = ", ".join(f"“{name}” has {why}" for name, why in sorted(left_out.items())[:2])
        raise InputError(f"no training speaker can be used ({some}); give the labels and the embeddings of the same training split")
    return vectors.take(kept), [known[name] for name in kept], left_out


def by_speaker(ids, speakers, rows):
    """The rows (n, …) of each of the speakers `ids`, in order: a list of arrays."""
    names, index, counts = np.unique(np.asarray(speakers, dtype=np.str_), return_inverse=True, return_counts=True)
    groups = np.split(rows[np.argsort(index, kind="stable")], np.cumsum(counts)[:-1])
    of = dict(zip(names.tolist(), groups, strict=True))
    return [of.get(name, rows[:0]) for name in ids]


def _excess_variance(d, chance):
    """B: the variance of d beyond `chance`, the solution of Σ d² / (B + chance) = χ²(0.9); 0 if chance explains d."""
    quantile = chi2.ppf(CONFIDENCE, len(d)) if len(d) else np.inf

    def surplus(between):
        total = between + chance
        return np.divide(d**2, total, out=np.where(d != 0, np.inf, 0.0), where=total > 0).sum() - quantile

    if surplus(0.0) <= 0:
        return 0.0
    high = float((d**2).sum() / quantile)  # surplus ≤ 0 there, as chance ≥ 0
    if surplus(high) >= 0:
        return high
    return float(brentq(surplus, 0.0 if np.isfinite(surplus(0.0)) else high * 1e-12, high, xtol=1e-300, rtol=1e-14))


def _share_heard(expected, found, chance, shifts):
    """h: the slope of the predictions' means on what the neighbours say, shrunk to √(variance of the means / `shifts`)."""
    if len(found) < 3:
        return 1.0
    heard = np.sqrt(max(found.var(ddof=1) - chance.mean(), 0.0) / shifts) if shifts > 0 else 1.0
    heard = min(heard, 1.0)
    x, y = expected - expected.mean(), found - found.mean()
    power = float(x @ x)
    if power <= 1e-24 * float(expected @ expected):
        return heard
    slope = float(x @ y) / power
    variance = float(((y - slope * x) ** 2).sum()) / (len(x) - 2) / power
    share = HEARD_PRIOR**2 / (HEARD_PRIOR**2 + variance)
    return float(np.clip(share * slope + (1 - share) * heard, 0.0, 1.0))


# --- classes ----------------------------------------------------------------------------------------------------------


@dataclass
class PriorRatio:
    """A speaker's correction of classes: p' ∝ p · ratio. `prior` is π, the class frequencies expected of the speaker."""

    ratio: np.ndarray
    prior: np.ndarray

    def __call__(self, probabilities):
        """Posteriors (…, classes) → calibrated ones, which sum to 1; those that would all become 0 stay as they are."""
        scaled = probabilities * self.ratio
        scaled = np.where(scaled.sum(-1, keepdims=True) > 0, scaled, probabilities)
        return scaled / scaled.sum(-1, keepdims=True)


@dataclass
class ClassCalibration:
    """PLDC of classes: prior ratios. The interface is that of `DimensionCalibration`.

    Attributes:
        settings: Settings.
        names: of the classes.
        neighbourhood: values are the smoothed class frequencies, centre is π₀.
        concentration: A, how many utterances the neighbours' frequencies are worth in EM.
        strength: exponent of every ratio, below 1 where `choose_by_metric` found that less is better.
        tried, p_values, left_out: as `DimensionCalibration`.
    """

    settings: Settings
    names: list
    neighbourhood: Neighbourhood
    concentration: float
    strength: float = 1.0
    tried: list = field(default_factory=list)
    p_values: list = field(default_factory=list)
    left_out: dict = field(default_factory=dict)

    kind = "classes"

    @classmethod
    def fit(cls, vectors, speakers, emotions, names, settings=None):
        """Learn from training speakers.

        Args:
            vectors: SpeakerVectors.
            speakers: n ids, of training utterances.
            emotions: n classes; those not among `names`, such as "-", are not counted.
            names: of the classes.
            settings: Settings.

        Raises:
            InputError: no training speaker has a vector and a label, or `match` is not for classes.
        """
        settings = Settings(match="prior") if settings is None else settings
        if settings.match != "prior":
            raise InputError(f"match “{settings.match}” is for dimensions, and these are classes ({' '.join(names)}); use prior")
        ids, rows = np.unique(np.asarray(speakers, dtype=np.str_), return_inverse=True)
        column = {name: i for i, name in enumerate(names)}
        counted = [i for i, emotion in enumerate(emotions) if emotion in column]
        counts = np.zeros((len(ids), len(names)))
        np.add.at(counts, (rows[counted], [column[emotions[i]] for i in counted]), 1)
        vectors, rows, left_out = _usable(vectors, ids.tolist(), counts.sum(1) > 0, "no label among the classes " + " ".join(names))
        counts = counts[rows]
        totals, everyone = counts.sum(1, keepdims=True), counts.sum(0)
        base = everyone / everyone.sum()
        alpha = settings.smoothing
        values = (counts + alpha * base) / (totals + alpha)
        rest = everyone - counts
        rest_total = rest.sum(1, keepdims=True) + alpha
        centres = np.divide(rest + alpha * base, rest_total, out=np.broadcast_to(base, rest.shape).copy(), where=rest_total > 0)

        def loss(expected, order):
            return -xlogy((counts / totals)[order], np.maximum(expected, _RARE)).sum(-1, keepdims=True)

        shrink = settings.shrinkage != "none"
        present = counts[:, everyone > 0]
        differ = [float(chi2_contingency(present).pvalue) if min(present.shape) > 1 else 1.0]
        hood, tried, p = choose(vectors, values, base, centres, loss, settings.top_k, settings.weighting, shrink, True, differ)
        concentration = CONCENTRATIONS[0]
        if len(vectors) > 1:
            concentration = _concentration(counts, hood.estimate(vectors, centres, leave_one_out=True).expected)
        return cls(settings, list(names), hood, concentration if shrink else 0.0, 1.0, tried, p.tolist(), left_out)

    def attend(self, vectors, speakers, predictions, leave_one_out=False):
        """Estimates for the speakers; nothing is learnt from their predictions."""
        return self._estimate(vectors, leave_one_out)

    def estimate(self, vectors):
        """What the neighbours say about speakers with these vectors."""
        return self._estimate(vectors, leave_one_out=False)

    def corrections(self, estimates, seen):
        """{speaker: PriorRatio} from what the neighbours say and, for EM, the posteriors seen so far, {speaker: (n, classes)}."""
        return {name: self._correction(estimates.expected[row], seen[name]) for row, name in enumerate(estimates.ids)}

    def _estimate(self, vectors, leave_one_out):
        return self.neighbourhood.estimate(vectors, None, leave_one_out)

    def _correction(self, prior, posteriors):
        base = self.neighbourhood.centre
        if self.settings.prior == "em" and len(posteriors):
            prior = expectation_maximisation(posteriors, base, prior, self.concentration)
        return PriorRatio(_ratio(prior, base) ** self.strength, prior)


def expectation_maximisation(posteriors, base, mean, concentration=0.0, tolerance=1e-12, most=10_000):
    """Class frequencies of a set of utterances from its posteriors (Saerens, Latinne & Decaestecker 2002, equation 9).

    Args:
        posteriors: (n, classes) of a model trained under the frequencies `base`.
        base: (classes), from which the iteration starts.
        mean: (classes) frequencies expected beforehand.
        concentration: as many utterances with the frequencies `mean` are added to the n (a Dirichlet prior); 0: pure EM.
        tolerance: stop when no frequency changes by more than this.
        most: iterations.

    Returns:
        float64 (classes), summing to 1.
    """
    prior = np.asarray(base, dtype=np.float64)
    for _ in range(most):
        expected = PriorRatio(_ratio(prior, base), prior)(posteriors).sum(0)
        updated = (expected + concentration * mean) / (len(posteriors) + concentration)
        if np.abs(updated - prior).max() <= tolerance:
            return updated
        prior = updated
    return prior


def _ratio(prior, base):
    return np.divide(prior, base, out=np.ones_like(base), where=base > 0)


def _concentration(counts, expected):
    """A: the Dirichlet concentration under which the speakers' class counts are likeliest, given what was expected of each."""
    known = (expected > 0).all(0)
    counts, expected = counts[:, known], expected[:, known]
    totals = counts.sum(1)

    def likelihood(a):
        return (gammaln(a) - gammaln(totals + a)).sum() + (gammaln(counts + a * expected) - gammaln(a * expected)).sum()

    return float(max(CONCENTRATIONS, key=likelihood)) if known.any() else CONCENTRATIONS[0]


# --- using a calibration ----------------------------------------------------------------------------------------------


def calibrate(calibration, vectors, predictions):
    """Calibrate a file of predictions; its references are carried along and never looked at.

    Args:
        calibration: fitted; B, h and ω² are set from these predictions.
        vectors: SpeakerVectors of (at least) the speakers of the predictions.
        predictions: ClassPredictions or DimensionPredictions.

    Returns:
        (predictions of the same kind, Estimates, {speaker: correction}).
    """
    vectors = vectors.take(sorted(set(predictions.speakers)))
    values = values_of(predictions)
    estimates = calibration.attend(vectors, predictions.speakers, values)
    seen = dict(zip(vectors.ids, by_speaker(vectors.ids, predictions.speakers, values), strict=True))
    corrections = calibration.corrections(estimates, seen)
    return with_values(predictions, corrected(corrections, predictions.speakers, values)), estimates, corrections


def values_of(predictions):
    """Predicted dimensions (n, dims), or probabilities (n, classes) that sum to 1."""
    if isinstance(predictions, DimensionPredictions):
        return predictions.predicted
    return predictions.probabilities / predictions.probabilities.sum(1, keepdims=True)


def with_values(predictions, values):
    """The same utterances with other predicted values."""
    if isinstance(predictions, DimensionPredictions):
        return DimensionPredictions(predictions.ids, predictions.speakers, predictions.dims, predictions.references, values)
    return from_probabilities(predictions.ids, predictions.speakers, predictions.emotions, predictions.classes, values)


def corrected(corrections, speakers, values):
    """Values (n, …) with the correction of each one's speaker applied."""
    return np.stack([corrections[name](row) for name, row in zip(speakers, values, strict=True)])


def choose_by_metric(vectors, speakers, labels, names, settings, predictions):
    """Choose k and the strength by what they do to predictions of the training speakers, each calibrated as if unseen.

    The predictions should come from models that had not trained on the speaker (folds): a model is better on what it has
    trained on than it will be on new speakers, and calibration then looks useless.

    Args:
        vectors, speakers, labels, names, settings: as `fit`; k is chosen if `settings.top_k` is None.
        predictions: of the training speakers, with references; the metric is the mean CCC over dimensions, or UA.

    Returns:
        A fitted calibration; `tried` lists {"k", "strength", "score"}. Strength 0 (change nothing) if nothing helps.

    Raises:
        InputError: fewer than three training speakers, or a speaker of the predictions has no vector or label.
    """
    kind = ClassCalibration if isinstance(predictions, ClassPredictions) else DimensionCalibration
    first = kind.fit(vectors, speakers, labels, names, settings)
    trained = first.neighbourhood.speakers
    if len(trained) < 3:
        raise InputError(f"{len(trained)} training speakers are too few to choose by their predictions; leave the choice to their labels")
    kept = [i for i, name in enumerate(predictions.speakers) if name in set(trained.ids)]
    predictions = predictions.take(kept)
    if set(predictions.speakers) != set(trained.ids):
        missing = sorted(set(trained.ids) - set(predictions.speakers))
        raise InputError(
            f"no predictions for the training speaker “{missing[0]}” ({len(missing)} missing); predict the whole training split"
        )
    values = values_of(predictions)
    seen = dict(zip(trained.ids, by_speaker(trained.ids, predictions.speakers, values), strict=True))
    tried, best = [], None
    for k in numbers_of_neighbours(len(trained) - 1) if settings.top_k is None else [settings.top_k]:
        candidate = kind.fit(vectors, speakers, labels, names, replace(settings, top_k=k))
        estimates = candidate.attend(trained, predictions.speakers, values, leave_one_out=True)
        for strength in STRENGTHS:
            candidate.strength = float(strength)
            moved = corrected(candidate.corrections(estimates, seen), predictions.speakers, values)
            reached = mean_score(with_values(predictions, moved))
            tried.append({"k": k, "strength": float(strength), "score": reached})
            if best is None or reached > best[0] + _TIE:
                best = (reached, candidate, float(strength))
    _, chosen, chosen.strength = best
    chosen.settings, chosen.tried = settings, tried
    return chosen


def mean_score(predictions):
    """The mean CCC over dimensions, or UA, over the utterances with a reference; NaN where that is not defined."""
    if isinstance(predictions, ClassPredictions):
        scored = np.flatnonzero(predictions.scored)
        return metrics.unweighted_accuracy([predictions.emotions[i] for i in scored], [predictions.predicted[i] for i in scored])
    pairs = zip(predictions.references.T, predictions.predicted.T, predictions.scored.T, strict=True)
    return metrics.mean_std([metrics.ccc(reference[ok], predicted[ok]) for reference, predicted, ok in pairs])[0]


class RunningSpeaker:
    """A speaker who is met one utterance at a time: each is calibrated by what was heard so far, itself included.

    Before the first utterance nothing is known and nothing is changed; after n utterances the correction is what `corrections`
    gives for all n.
    """

    def __init__(self, calibration):
        self.calibration = calibration
        self.n = 0
        self.vector = np.zeros(calibration.neighbourhood.speakers.vectors.shape[1])
        self._moments = Moments.of(np.zeros((0, len(calibration.names)))) if calibration.kind == "dimensions" else None
        self._posteriors = []

    def add(self, embedding, prediction):
        """Take in one utterance.

        Args:
            embedding: (width) as those behind the training speakers' vectors.
            prediction: (dims), or probabilities (classes).

        Returns:
            The utterance's calibrated prediction.

        Raises:
            InputError: of another width, or not finite.
        """
        embedding, prediction = np.asarray(embedding, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
        if embedding.shape != self.vector.shape or prediction.shape != (len(self.calibration.names),):
            raise InputError(
                f"an embedding {embedding.shape} and a prediction {prediction.shape} for a calibration of {self.vector.shape} and "
                f"({len(self.calibration.names)},); use the checkpoint the calibration was made with"
            )
        if not (np.isfinite(embedding).all() and np.isfinite(prediction).all()):
            raise InputError("an embedding or a prediction is not finite; leave the utterance out")
        self.n += 1
        self.vector = self.vector + (embedding - self.vector) / self.n
        if self._moments is not None:
            self._moments.add(prediction)
        elif self.calibration.settings.prior == "em":
            self._posteriors.append(prediction / prediction.sum())
        return self.correction()(prediction)

    def correction(self):
        """The correction by what was heard so far; it can be applied to earlier utterances too."""
        vectors = SpeakerVectors(["speaker"], self.vector[None], np.array([self.n]))
        seen = np.array(self._posteriors).reshape(-1, len(self.calibration.names)) if self._moments is None else self._moments
        if not self.n:
            return _nothing(self.calibration)
        return self.calibration.corrections(self.calibration.estimate(vectors), {"speaker": seen})["speaker"]


def _nothing(calibration):
    if calibration.kind == "classes":
        return PriorRatio(np.ones(len(calibration.names)), calibration.neighbourhood.centre)
    dims = len(calibration.names)
    return Shift(np.zeros(dims), np.zeros(dims), np.ones(dims), np.zeros(calibration.columns))


# --- files ------------------------------------------------------------------------------------------------------------

_HOOD_ARRAYS = ("ids", "vectors", "counts", "values", "centre", "trust", "spread")
_SHIFT_ARRAYS = ("error", "between", "heard", "within", "shifts")


def save(path, calibration):
    """Write a fitted calibration as .npz, atomically: plain arrays, and its settings as a JSON text."""
    hood = calibration.neighbourhood
    description = {
        "kind": calibration.kind,
        "settings": asdict(calibration.settings),
        "names": calibration.names,
        "strength": calibration.strength,
        "concentration": getattr(calibration, "concentration", 0.0),
        "k": hood.k,
        "kappa": hood.kappa,
        "within": hood.speakers.within,
    }
    arrays = {name: getattr(hood, name) for name in ("values", "centre", "trust", "spread")}
    arrays |= {"ids": np.array(hood.speakers.ids, dtype=np.str_), "vectors": hood.speakers.vectors, "counts": hood.speakers.counts}
    arrays |= {f"shift_{name}": getattr(calibration, name, np.zeros(0)) for name in _SHIFT_ARRAYS}
    with atomic(path, "wb") as f:
        np.savez(f, description=np.array(json.dumps(description)), **arrays)


def load(path):
    """Read what `save` wrote; nothing in the file can run.

    Raises:
        InputError: missing, or not a whole calibration.
    """
    names = ("description", *_HOOD_ARRAYS, *(f"shift_{name}" for name in _SHIFT_ARRAYS))
    arrays = speaker_vectors.read_arrays(path, names, "a calibration")
    try:
        description = json.loads(str(arrays["description"]))
        return _assemble(description, arrays)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{path}: not a whole calibration ({reason}); make it again with tools/calibrate.py") from error


def _assemble(description, arrays):
    floats = ("vectors", "values", "centre", "trust", "spread", *(f"shift_{name}" for name in _SHIFT_ARRAYS))
    for name in floats:
        if arrays[name].dtype.kind != "f" or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} are not finite numbers")
    speakers = SpeakerVectors(arrays["ids"].tolist(), arrays["vectors"], arrays["counts"], float(description["within"]))
    joint = description["kind"] == "classes"
    settings, names = Settings(**description["settings"]), list(description["names"])
    columns = len(names) * (2 if settings.match == "mean-std" else 1)
    width = 1 if joint else columns
    expected = {"counts": (len(speakers),), "values": (len(speakers), columns), "centre": (columns,), "trust": (width,), "spread": (width,)}
    if not joint:
        expected |= {f"shift_{name}": (columns,) for name in _SHIFT_ARRAYS} | {"shift_within": (len(names),)}
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has the shape {arrays[name].shape}, not {shape}")
    if arrays["vectors"].ndim != 2 or len(arrays["vectors"]) != len(speakers) or arrays["counts"].min(initial=1) < 1:
        raise ValueError("the training speakers and their vectors do not belong together")
    hood = Neighbourhood(
        speakers,
        arrays["values"],
        arrays["centre"],
        joint,
        int(description["k"]),
        settings.weighting,
        arrays["trust"],
        arrays["spread"],
        float(description["kappa"]),
    )
    strength = float(description["strength"])
    if joint:
        return ClassCalibration(settings, names, hood, float(description["concentration"]), strength)
    if description["kind"] != "dimensions":
        raise ValueError(f"the kind is {description['kind']!r}")
    return DimensionCalibration(settings, names, hood, *(arrays[f"shift_{name}"] for name in _SHIFT_ARRAYS), strength)


def check_calibration(calibration, task, model, where):
    """Raise InputError unless a calibration is for what a checkpoint predicts, and for embeddings of its width.

    Args:
        calibration: of `calibration.load`.
        task, model: from `checkpoints.load_trained`.
        where: file of the calibration, for messages.
    """
    kind, names = ("classes", task.classes) if task.classes else ("dimensions", task.dimensions)
    remedy = "use the checkpoint whose predictions and embeddings (tools/evaluate.py --embeddings) it was made from, or make it again"
    if calibration.kind != kind or list(calibration.names) != list(names):
        raise InputError(
            f"{where}: calibrates the {calibration.kind} {' '.join(calibration.names)}, and the checkpoint predicts the {kind} "
            f"{' '.join(names)}; {remedy}"
        )
    width = calibration.neighbourhood.speakers.vectors.shape[1]
    if width != model.pooling.width:
        raise InputError(f"{where}: speaker vectors of width {width}, and the checkpoint's embeddings have {model.pooling.width}; {remedy}")


def calibrated(predictions, calibration, speaker_of):
    """Calibrate each part of each file by what was heard of its speaker so far, itself included (`RunningSpeaker`).

    The speaker's vector is the mean of the pooled vectors, as `tools/evaluate.py --embeddings` writes them; a window of a
    time line counts as an utterance.

    Args:
        predictions: iterable of FilePrediction with embeddings, in the order in which the files were heard.
        calibration: of `calibration.load`, see `check_calibration`.
        speaker_of: path → name of the speaker.

    Yields:
        FilePrediction with calibrated values.
    """
    speakers = defaultdict(lambda: RunningSpeaker(calibration))
    for prediction in predictions:
        if prediction.error is not None:
            yield prediction
            continue
        name = speaker_of(prediction.path)
        running, values, heard = speakers[name], [], []
        for embedding, value in zip(prediction.embeddings, prediction.values, strict=True):
            values.append(running.add(embedding, value))
            heard.append(running.n)
        yield replace(prediction, values=np.stack(values), speaker=name, heard=heard)
