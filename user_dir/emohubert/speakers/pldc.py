"""PLDC: calibrating predictions for unseen speakers by the label distributions of the most similar training speakers.

Personalised label distribution calibration (Tran, Yin & Soleymani 2023). A speaker's vector is the mean over utterances of the
pooled features. μ̄ and σ̄ are the averages of the label means and label standard deviations of the k training speakers whose vectors
have the highest cosine similarity, μ and σ the mean and standard deviation of the speaker's predictions ŷ:

    mean      ŷ' = ŷ − μ + μ̄
    std       ŷ' = (ŷ − μ) / σ · σ̄ + μ          the paper's best for the average over speakers
    mean-std  ŷ' = (ŷ − μ) / σ · σ̄ + μ̄

Classes: the average π of the similar speakers' class frequencies is the speaker's prior, and posteriors are rescaled by its ratio
to the training frequencies π₀ (Saerens, Latinne & Decaestecker 2002):

    prior     p'(c | x) ∝ p(c | x) · π(c) / π₀(c),   π(c) of one speaker with n labels: (n_c + π₀(c)) / (n + 1)

The guard: each training speaker is left out in turn, and unless the k most similar ones give that speaker's label statistics better
than the average of all others does, by more than chance, predictions stay as they are. k is chosen in the same way.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.distance import cdist

from ..core.errors import InputError
from ..corpus.manifest import UNKNOWN_SPEAKER
from ..data.speaker_vectors import SpeakerVectors

_CONSTANT = 1e-7  # predictions that vary by less than this share of their mean, the resolution of float32, are constant


def matched(predictions, match, target, base=None):
    """One speaker's predictions (n, dims), or posteriors (n, classes), with the label distribution of similar speakers. `match` is one of
    MATCHES, `target` μ̄ and σ̄ (2 × dims) or π (classes), `base` π₀ (classes): a class without training utterances keeps its posterior.
    Constant predictions (σ = 0) are not scaled."""
    if match == "prior":
        scaled = predictions * np.divide(target, base, out=np.ones_like(base), where=base > 0)
        return scaled / scaled.sum(1, keepdims=True)
    mean, std = predictions.mean(0), predictions.std(0)
    target_mean, target_std = np.split(target, 2)
    constant = std <= _CONSTANT * np.abs(mean)
    deviation = np.where(constant, 0.0, predictions - mean)
    if match != "mean":
        deviation = deviation / np.where(constant, 1.0, std) * target_std
    return deviation + (mean if match == "std" else target_mean)


@dataclass(frozen=True)
class Guard:
    """Whether calibrating helps left-out training speakers: the mean `gain` over `speakers`, and its standard `error`. A speaker's gain is how
    much smaller the squared error of the similar speakers' label statistics is than that of the average of all others, as a share of the
    latter (dimensions), or the KL divergence, in nats (classes)."""

    gain: float
    error: float
    speakers: int

    @property
    def helps(self):
        """Whether calibrating should be applied."""
        return self.gain > self.error


@dataclass(frozen=True)
class Calibration:
    """Training speakers and their label distributions. `fit` makes one; call it with a speaker's vector and predictions."""

    names: list  # of the dimensions or classes
    match: str  # of MATCHES
    k: int  # how many similar speakers are averaged
    speakers: SpeakerVectors  # of the training speakers
    values: np.ndarray  # label means and standard deviations (speakers, 2 × dims), or smoothed class frequencies (speakers, classes)
    base: np.ndarray  # π₀ (classes); all zero for dimensions
    applied: bool = True  # False leaves every prediction as it is

    def similar(self, vectors):
        """(similarities (n, speakers), rows (n, k) of the most similar training speakers) for vectors (n, width)."""
        similarities = cosine(vectors, self.speakers.vectors)
        return similarities, ranking(similarities)[:, : self.k]

    def __call__(self, vector, predictions):
        """Calibrate one speaker. vector: (width), predictions: (n, dims or classes) → the same shape."""
        if not self.applied:
            return predictions
        target = self.values[self.similar(vector[None])[1][0]].mean(0)
        return matched(predictions, self.match, target, self.base)


def label_statistics(speakers, labels):
    """Of labels (n, dims), NaN: none: (speakers with several in each dimension, their means and deviations (speakers, 2 × dims), zeros)."""
    import pandas as pd

    groups = pd.DataFrame(labels).groupby(np.asarray(speakers))
    several = (groups.count() > 1).all(axis=1).to_numpy()
    means, stds = groups.mean(), groups.std(ddof=0)
    return means.index[several].tolist(), np.hstack([means, stds])[several], np.zeros(means.shape[1])


def class_frequencies(speakers, emotions, names):
    """(ids of the speakers with a label among `names`, their smoothed class frequencies (speakers, classes), π₀ (classes))."""
    import pandas as pd

    counts = pd.crosstab(np.asarray(speakers), np.asarray(emotions)).reindex(columns=names, fill_value=0)
    counts = counts[counts.sum(axis=1) > 0]
    base = counts.sum().to_numpy() / max(counts.to_numpy().sum(), 1)
    values = (counts.to_numpy() + base) / (counts.to_numpy().sum(1, keepdims=True) + 1)
    return counts.index.tolist(), values, base


def fit(vectors, speakers, labels, names, match, k=None, always=False):
    """A calibration from training speakers, and whether it helps them when each is left out: (Calibration, Guard).

    Args:
        vectors: SpeakerVectors of training speakers.
        speakers: n ids, of training utterances; utterances of the unknown speaker are nobody's.
        labels: (n, dims), NaN where there is none; for `prior` n classes, those not among `names` are not counted.
        names: of the dimensions or classes.
        match: one of MATCHES.
        k: number of similar speakers; None chooses it.
        always: apply the calibration even if it does not help.

    Raises:
        InputError: no training speaker has a vector and labels.
    """
    ids, values, base = class_frequencies(speakers, labels, names) if match == "prior" else label_statistics(speakers, labels)
    row = {name: i for i, name in enumerate(ids) if name != UNKNOWN_SPEAKER}
    if not (kept := [name for name in vectors.ids if name in row]):
        needed = "a label" if match == "prior" else "two labels"
        raise InputError(f"no training speaker has both embeddings and {needed} in {' '.join(names)}; give both of the same training split")
    fitted = Calibration(list(names), match, k or 1, vectors.take(kept), values[[row[name] for name in kept]], base)
    if len(kept) < 2:
        return replace(fitted, applied=always), Guard(0.0, 0.0, len(kept))
    ks = [min(k, len(kept) - 1)] if k else numbers_of_neighbours(len(kept) - 1)
    order = ranking(cosine(fitted.speakers.vectors, fitted.speakers.vectors), leave_one_out=True)
    targets = (fitted.values[order[:, :k]].mean(1) for k in ks)  # each training speaker's by the others: (speakers, columns)
    losses, usual = _losses(fitted, targets)
    rest = (losses.sum(1, keepdims=True) - losses).round(12)  # of all other speakers: by these each one's k is chosen; equals are equal
    gain = (usual - np.take_along_axis(losses, rest.argmin(0)[None], axis=0)[0]).round(12)
    guard = Guard(float(gain.mean()), float(gain.std(ddof=1)) / math.sqrt(len(gain)), len(gain))
    return replace(fitted, k=k or ks[losses.sum(1).round(12).argmin()], applied=always or guard.helps), guard


def _losses(fitted, targets):
    """Errors (ks, speakers) of the similar speakers' label distribution, and (speakers) of that of all other speakers."""
    own, dims = fitted.values, len(fitted.names)
    others = (own.sum(0) - own) / (len(own) - 1)
    if fitted.match == "prior":

        def loss(target):  # KL divergence
            return (own * np.log(np.divide(own, target, out=np.ones_like(own), where=own > 0))).sum(1)
    else:
        columns = {"mean": slice(dims), "std": slice(dims, None), "mean-std": slice(None)}[fitted.match]
        usual = ((others - own) ** 2).mean(0)

        def loss(target):
            return ((target - own) ** 2 / np.where(usual > 0, usual, 1.0))[:, columns].mean(1)

    return np.stack([loss(target) for target in targets]), loss(others)


def cosine(vectors, training):
    """Cosine similarities (n, speakers) of vectors (n, width) with training vectors (speakers, width); 0 with a zero vector."""
    return np.nan_to_num(1 - cdist(vectors, training, "cosine"))


def ranking(similarities, leave_one_out=False):
    """Columns of similarities (n, speakers) by falling value, equals in their order: (n, speakers). With `leave_one_out` rows are the same
    speakers as columns, and nobody is similar to themselves: (n, speakers − 1)."""
    similarities = np.round(similarities, 12)  # the order of summation cannot decide between equals
    if leave_one_out:
        np.fill_diagonal(similarities, -np.inf)
    return np.argsort(-similarities, axis=1, kind="stable")[:, : similarities.shape[1] - leave_one_out]


def numbers_of_neighbours(most):
    """Values of k to try: 1, 2, 3, 4, then each half as many again, up to all `most`; the largest first."""
    ks, k = [], 1
    while k < most:
        ks.append(k)
        k = max(k + 1, int(k * 1.5))
    return [most, *reversed(ks)]
