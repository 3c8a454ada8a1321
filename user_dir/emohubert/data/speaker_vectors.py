"""One vector per speaker, wherever it comes from, and which training speakers are near it.

Three sources, one interface: the mean over utterances of an utterance embedding (Tran, Yin & Soleymani 2023), the learned
table of a speaker-conditioned model, and mean MFCCs. Dimensions of unlike size (MFCCs) must first be standardised on the
training speakers; otherwise the largest decide, and a network fed with them does not learn.
"""

import zipfile
from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError
from ..core.files import atomic
from ..pseudo_labels.features import MFCC, MfccFeatures

MFCC_COEFFICIENTS = 13
WEIGHTINGS = ("hard", "similarity")
_DECIMALS = 12
"""Similarities are compared after rounding, so that the order of summation cannot decide between equals."""


@dataclass(frozen=True)
class SpeakerVectors:
    """Vectors of a set of speakers, sorted by id.

    Attributes:
        ids: list of str, sorted.
        vectors: float64 (speakers, width).
        counts: int64 (speakers): how many utterances are behind each vector.
        within: variance of an utterance's vector around its speaker's, summed over dimensions (unbiased, pooled over
            speakers); 0 where it is not known, as for a learned table.
    """

    ids: list
    vectors: np.ndarray
    counts: np.ndarray
    within: float = 0.0

    def __len__(self):
        return len(self.ids)

    def take(self, ids):
        """The vectors of some of the speakers.

        Raises:
            InputError: one of the ids has no vector.
        """
        row = {name: i for i, name in enumerate(self.ids)}
        missing = [name for name in ids if name not in row]
        if missing:
            raise InputError(f"no vector for the speaker “{missing[0]}” ({len(missing)} of {len(ids)} missing); make the vectors again")
        rows = sorted(row[name] for name in ids)
        return SpeakerVectors([self.ids[i] for i in rows], self.vectors[rows], self.counts[rows], self.within)


def from_utterances(speakers, embeddings):
    """The mean over each speaker's utterances.

    Args:
        speakers: n ids.
        embeddings: (n, width), such as the `embeddings` of `embeddings.npz`, or `mfcc_means`.

    Raises:
        InputError: no utterance, unequal lengths, or a value that is not finite.
    """
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 2 or len(embeddings) != len(speakers) or not len(embeddings):
        raise InputError(f"{len(speakers)} speakers for embeddings of shape {embeddings.shape}; expected one row for each utterance")
    if not np.isfinite(embeddings).all():
        row = int(np.argwhere(~np.isfinite(embeddings))[0][0])
        raise InputError(f"utterance {row} of speaker “{speakers[row]}” has an embedding that is not finite; compute it again")
    ids, index = np.unique(np.asarray(speakers, dtype=np.str_), return_inverse=True)
    counts = np.bincount(index)
    vectors = np.zeros((len(ids), embeddings.shape[1]))
    np.add.at(vectors, index, embeddings)
    vectors /= counts[:, None]
    freedom = len(embeddings) - len(ids)
    within = float(((embeddings - vectors[index]) ** 2).sum() / freedom) if freedom else 0.0
    return SpeakerVectors(ids.tolist(), vectors, counts.astype(np.int64), within)


def standardise(values, training):
    """Values whose dimensions are scaled alike: minus the mean, over the standard deviation, of the training speakers' vectors.

    Args:
        values: (n, width), of utterances or of speakers, in training or not.
        training: SpeakerVectors of the training speakers, and of no other.

    Returns:
        float64 (n, width); a dimension that is constant over the training speakers is only centred.
    """
    std = training.vectors.std(0)
    return (np.asarray(values, dtype=np.float64) - training.vectors.mean(0)) / np.where(std > 0, std, 1.0)


def from_table(table):
    """A learned table, {speaker id: vector}; each vector counts as one utterance, whose variance is not known.

    Raises:
        InputError: the table is empty, its vectors differ in width, or one is not finite.
    """
    if len({np.shape(v) for v in table.values()}) != 1:
        raise InputError(f"a table of {len(table)} speakers whose vectors are not all of one width; read it from one model")
    ids = sorted(table)
    return from_utterances(ids, np.stack([np.asarray(table[name], dtype=np.float64) for name in ids]))


def mfcc_means(split, workers=None, indices=None):
    """Mean over frames of the 13 MFCCs of every utterance of a split.

    `standardise` them before speakers are compared, then give them to `from_utterances` with `split.speakers`.

    Args:
        split: a manifest `Split`.
        workers: threads; by default one for each core.
        indices: of the utterances; by default all.

    Returns:
        float64 (utterances, 13).

    Raises:
        InputError: audio that cannot be read, or is shorter than one frame.
    """
    indices = np.arange(len(split)) if indices is None else np.asarray(indices)
    means = np.full((len(split), MFCC_COEFFICIENTS), np.nan)

    def consume(extracted):
        frames = extracted.features[MFCC][:, :MFCC_COEFFICIENTS]  # without deltas
        means[extracted.piece.utterance] = frames.double().mean(0).numpy()

    for _ in MfccFeatures(workers).extract(split, indices, consume):
        pass
    means = means[indices]
    if np.isnan(means).any():
        short = int(indices[np.argwhere(np.isnan(means))[0][0]])
        raise InputError(f"{split.where(short)}: {split.n_samples[short]} samples are less than one frame; remove the utterance")
    return means


def write(path, speakers):
    """Write speaker vectors as .npz atomically: `ids` (unicode), `vectors`, `counts`, `within`."""
    with atomic(path, "wb") as f:
        np.savez(f, ids=np.array(speakers.ids, dtype=np.str_), vectors=speakers.vectors, counts=speakers.counts, within=speakers.within)


def read(path):
    """Read what `write` wrote; nothing in the file can run (`allow_pickle=False`).

    Raises:
        InputError: missing, or not a whole file of speaker vectors.
    """
    arrays = read_arrays(path, ("ids", "vectors", "counts", "within"), "speaker vectors")
    ids, vectors, counts, within = (arrays[name] for name in ("ids", "vectors", "counts", "within"))
    whole = vectors.ndim == 2 and ids.shape == counts.shape == vectors.shape[:1] and within.shape == () and len(ids)
    if not whole or ids.dtype.kind != "U" or vectors.dtype.kind != "f" or counts.dtype.kind != "i" or not np.isfinite(vectors).all():
        raise InputError(f"{path}: {len(ids)} ids, vectors {vectors.shape} and counts {counts.shape} do not belong together; make it again")
    return SpeakerVectors(ids.tolist(), vectors.astype(np.float64), counts.astype(np.int64), float(within))


def read_arrays(path, names, what):
    """Plain arrays of an .npz file, by name; nothing in the file can run.

    Raises:
        InputError: missing, not an .npz file, an array is not there, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (KeyError, ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: does not hold {what} ({reason}); expected an .npz with plain arrays {', '.join(names)}") from error


def cosine(vectors, training):
    """Cosine similarities (n, speakers) of vectors (n, width) with training vectors (speakers, width); 0 with a zero vector."""

    def unit(x):
        x = np.asarray(x, dtype=np.float64)
        largest = np.abs(x).max(1, keepdims=True)  # first to a largest value of 1: squares neither overflow nor vanish
        x = np.divide(x, largest, out=np.zeros_like(x), where=largest > 0)
        length = np.linalg.norm(x, axis=1, keepdims=True)
        return np.divide(x, length, out=np.zeros_like(x), where=length > 0)

    return np.clip(unit(vectors) @ unit(training).T, -1.0, 1.0)


def neighbour_weights(similarities, k, weighting="hard"):
    """Weights of the k most similar training speakers; each row sums to 1, and all others weigh 0.

    `hard`: 1/k each. `similarity`: w_j ∝ c_j − c_(k+1), the similarity beyond that of the first speaker left out (−1 where
    none is left out): a triangular kernel as wide as the neighbourhood (Hechenbichler & Schliep 2004), so that weights do
    not depend on how close to 1 all similarities are, and a speaker at the border weighs nothing. Where all k are as similar
    as the first one left out, they weigh the same. Equal similarities are taken in the order of the columns.

    Args:
        similarities: (n, speakers); a column at −inf is never taken.
        k: at least 1; more than there are speakers means all of them.
        weighting: `hard` or `similarity`.

    Returns:
        float64 (n, speakers).
    """
    if k < 1 or weighting not in WEIGHTINGS:
        raise InputError(f"k is {k} and the weighting “{weighting}”; expected 1 or more and one of {' '.join(WEIGHTINGS)}")
    similarities = np.atleast_2d(np.round(np.asarray(similarities, dtype=np.float64), _DECIMALS))
    order = np.argsort(-similarities, axis=1, kind="stable")
    ranked = np.take_along_axis(similarities, order, axis=1)  # (n, speakers), best first
    taken = (np.arange(ranked.shape[1]) < k) & np.isfinite(ranked)
    if weighting == "hard":
        weights = taken.astype(np.float64)
    else:
        border = ranked[:, k : k + 1] if k < ranked.shape[1] else np.full((len(ranked), 1), -1.0)
        border = np.where(np.isfinite(border), border, -1.0)
        weights = np.where(taken, np.where(taken, ranked, border) - border, 0.0)
        weights = np.where(weights.sum(1, keepdims=True) > 0, weights, taken)
    scattered = np.zeros_like(weights)
    np.put_along_axis(scattered, order, weights / weights.sum(1, keepdims=True), axis=1)
    return scattered


def nearest_speaker_weights(vector, train_vectors, k, weighting="similarity"):
    """How a speaker outside the table is made of training speakers: weights for averaging their learned embeddings.

    Args:
        vector: (width) of the new speaker.
        train_vectors: SpeakerVectors of the training speakers, or an array (speakers, width).
        k: how many speakers to average.
        weighting: `similarity` or `hard`, see `neighbour_weights`.

    Returns:
        float64 (speakers), k of them positive at most, summing to 1.
    """
    vectors = train_vectors.vectors if isinstance(train_vectors, SpeakerVectors) else np.asarray(train_vectors, dtype=np.float64)
    return neighbour_weights(cosine(np.asarray(vector, dtype=np.float64)[None], vectors), k, weighting)[0]
