"""One vector per speaker: the mean over utterances of an utterance embedding (Tran, Yin & Soleymani 2023) or of MFCCs, which must first be
standardised on the training speakers: otherwise the largest decide, and a network fed with them does not learn."""

import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError
from ..core.files import atomic

MFCC_COEFFICIENTS = 13


@dataclass(frozen=True)
class SpeakerVectors:
    """Vectors of a set of speakers."""

    ids: list  # sorted
    vectors: np.ndarray  # float64 (speakers, width)
    counts: np.ndarray  # int64 (speakers,): how many utterances are behind each vector

    def __len__(self):
        return len(self.ids)

    def take(self, ids):
        """The vectors of some of the speakers, all of whom are there, in the order of `self`."""
        rows = np.flatnonzero(np.isin(self.ids, list(ids)))
        return SpeakerVectors([self.ids[i] for i in rows], self.vectors[rows], self.counts[rows])


def from_utterances(speakers, embeddings):
    """The mean over each speaker's utterances, of which there are n `speakers` (ids) and (n, width) `embeddings`, as SpeakerVectors."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    ids, index = np.unique(np.asarray(speakers, dtype=np.str_), return_inverse=True)
    counts = np.bincount(index)
    vectors = np.zeros((len(ids), embeddings.shape[1]))
    np.add.at(vectors, index, embeddings)
    return SpeakerVectors(ids.tolist(), vectors / counts[:, None], counts.astype(np.int64))


def standardise(values, training):
    """Values (n, width) minus mean, over standard deviation, of the training SpeakerVectors; a dimension constant there is only centred."""
    std = training.vectors.std(0)
    return (np.asarray(values, dtype=np.float64) - training.vectors.mean(0)) / np.where(std > 0, std, 1.0)


def mfcc_means(split, workers=None, indices=None):
    """Mean over frames of the 13 MFCCs of the utterances of a Split (by default all): float64 (utterances, 13). `standardise` them before
    speakers are compared. InputError if audio cannot be read, or is shorter than one frame."""
    from ..pseudo_labels.features import MFCC, MfccFeatures  # imports torch

    indices = np.arange(len(split)) if indices is None else np.asarray(indices)
    means = np.full((len(split), MFCC_COEFFICIENTS), np.nan)

    def consume(piece, features):
        means[piece.utterance] = features[MFCC][:, :MFCC_COEFFICIENTS].double().mean(0).numpy()  # without deltas

    for _ in MfccFeatures(workers).extract(split, indices, consume):
        pass
    means = means[indices]
    if np.isnan(means).any():
        short = int(indices[np.argwhere(np.isnan(means))[0][0]])
        raise InputError(f"{split.where(short)}: {split.n_samples[short]} samples are less than one frame; remove the utterance")
    return means


def write(path, speakers, **more):
    """Write speaker vectors as .npz atomically: `ids` (unicode), `vectors`, `counts`, and more arrays by name."""
    with atomic(path, "wb") as f:
        np.savez(f, ids=np.array(speakers.ids, dtype=np.str_), vectors=speakers.vectors, counts=speakers.counts, **more)


def read(path):
    """Read what `write` wrote; InputError if the file is missing or does not hold whole speaker vectors."""
    ids, vectors, counts = read_arrays(path, ("ids", "vectors", "counts"), "speaker vectors").values()
    whole = vectors.ndim == 2 and ids.shape == counts.shape == vectors.shape[:1] and len(ids)
    if not whole or ids.dtype.kind != "U" or vectors.dtype.kind != "f" or counts.dtype.kind != "i" or not np.isfinite(vectors).all():
        raise InputError(f"{path}: {ids.size} ids, vectors {vectors.shape} and counts {counts.shape} do not belong together; make it again")
    return SpeakerVectors(ids.tolist(), vectors.astype(np.float64), counts.astype(np.int64))


def read_arrays(path, names, what):
    """{name: plain array} of an .npz file, in which nothing can run; InputError if it lacks one, or holds Python objects there."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (KeyError, ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: does not hold {what} ({reason}); expected an .npz with plain arrays {', '.join(names)}") from error
