"""k-means of frame features, and the file that holds it (`kmeans.npz`).

Labels are the *exact* nearest centroids of the float32 features: distances are computed by a float32 matrix product, and
frames whose two nearest centroids are too close for its rounding are compared again in float64. So neither the number of
threads nor the size of a block decides about a label, here or in fitting.
"""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..core.errors import InputError
from ..core.files import atomic
from ..core.parallel import cores, one_thread, pool

METRICS = ("euclidean", "cosine")
BLOCK = 4096
"""Frames in one matrix product."""
_ROUNDING = 2.0**-24
_INIT_FRAMES = 4096
_INIT_FRAMES_PER_CLUSTER = 16
_CONVERGED = 5e-3
"""Lloyd's iterations end when no more than this share of the frames changes its cluster."""


@dataclass
class KMeans:
    """Centroids and how they came about.

    Attributes:
        centroids: (clusters, width) float32 array; unit vectors where the metric is cosine.
        metric: "euclidean" or "cosine".
        features: what they were fitted on (kind, layer, checkpoint SHA-256, sample rate, …), or None if unknown.
        sizes: frames of each cluster in the fit, or None if unknown.
        fit: inertia per frame, iterations, frames, seed and so on.
    """

    centroids: np.ndarray
    metric: str = "euclidean"
    features: dict | None = None
    sizes: np.ndarray | None = None
    fit: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.centroids)

    @property
    def width(self):
        """Width of the features."""
        return self.centroids.shape[1]

    def check(self, features, width, path):
        """Refuse features of another kind than the centroids were fitted on.

        Args:
            features: description of the features, or None if unknown: then only the width is compared.
            width: of the features.
            path: of the centroids, for the message.

        Raises:
            InputError: they are of another kind.
        """
        if self.features is not None and features is not None and self.features != features:
            name = next(k for k in [*self.features, *features] if self.features.get(k) != features.get(k))
            raise InputError(
                f"{path}: these centroids were fitted on features with {name} = {self.features.get(name)}, "
                f"but these have {name} = {features.get(name)}; fit centroids on these features, or use the others"
            )
        if width != self.width:
            raise InputError(
                f"{path}: centroids of width {self.width} cannot label features of width {width}; use the features they were fitted on"
            )

    def save(self, path):
        """Write `kmeans.npz`: arrays and JSON text, nothing that needs pickle."""
        info = {"metric": self.metric, "features": self.features, "fit": self.fit}
        sizes = np.zeros(0, dtype=np.int64) if self.sizes is None else np.asarray(self.sizes, dtype=np.int64)
        with atomic(path, "wb") as f:
            np.savez(f, centroids=self.centroids, sizes=sizes, info=np.array(json.dumps(info, sort_keys=True)))

    @classmethod
    def load(cls, path):
        """Read `kmeans.npz` without running anything in it.

        Raises:
            InputError: missing, damaged, or not such a file.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file of centroids; make it with tools/make_labels.py or tools/learn_kmeans.py")
        try:
            with np.load(path, allow_pickle=False) as archive:
                centroids, sizes, info = archive["centroids"], archive["sizes"], json.loads(str(archive["info"]))
            model = cls(centroids, info["metric"], info["features"], sizes if len(sizes) else None, info["fit"])
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
            raise InputError(f"{path}: not a kmeans.npz of emohubert, or a damaged one ({_first_line(error)}); make it again") from error
        if (
            centroids.dtype != np.float32 or centroids.ndim != 2 or not centroids.size or not np.isfinite(centroids).all()
            or model.metric not in METRICS or not isinstance(model.features, dict | None) or not isinstance(model.fit, dict)
            or not (model.sizes is None or (sizes.shape == (len(centroids),) and sizes.dtype == np.int64))
        ):  # fmt: skip
            raise InputError(f"{path}: does not hold centroids as emohubert writes them; make it again")
        return model


class Assigner:
    """Nearest centroids of frames.

    The distance to centroid c is compared as `|c'|²/2 + μ·c' − x·c'`, with c' = c − μ and μ the mean of the centroids: the
    squared distance, halved and less a constant of the frame. Taking μ off keeps the numbers small where features share
    a large offset. With the cosine metric `−x·c'`.
    """

    def __init__(self, centroids, metric="euclidean", device="cpu"):
        self.metric, self.device = metric, torch.device(device)
        self.exact = torch.as_tensor(centroids).to(self.device, torch.float64)
        mean = self.exact.mean(0)
        shifted = self.exact - mean
        bias = shifted.pow(2).sum(1) / 2 + shifted @ mean if metric == "euclidean" else torch.zeros_like(shifted[:, 0])
        self._weight, self._bias = shifted.float().T.contiguous(), bias.float()  # (width, clusters), (clusters,)
        self._radius, self._offset = float(shifted.norm(dim=1).max()), float(bias.abs().max())
        self._rounding = 2 * (shifted.shape[1] + 8) * _ROUNDING

    def labels(self, frames):
        """Labels of (frames, width) float32 features: int64 tensor. Of equally near centroids, the first."""
        return self._labels(frames, 0.0)[0]

    def labels_and_doubt(self, frames, noise):
        """Labels, and whether features known to a relative precision of `noise` leave any of them in doubt.

        A label is in doubt if some features x + δ with |δ| <= noise · |x| have another nearest centroid.
        """
        labels, doubtful = self._labels(frames, noise)
        return labels, bool(doubtful)

    def _labels(self, frames, noise):
        frames = torch.as_tensor(frames).to(self.device, torch.float32)
        labels = torch.empty(len(frames), dtype=torch.int64, device=self.device)
        doubtful = False
        for start in range(0, len(frames), BLOCK):
            block = frames[start : start + BLOCK]
            labels[start : start + len(block)], doubt = self.label_block(block, block.norm(dim=1), noise)
            doubtful = doubtful or doubt
        return labels, doubtful

    def label_block(self, block, norms, noise=0.0):
        """`labels_and_doubt` of one block of frames on the device, with their norms."""
        scores = torch.addmm(self._bias, block, self._weight, alpha=-1)
        best, nearest = scores.min(1)
        if len(self.exact) == 1:
            return nearest, False
        margin = scores.scatter_(1, nearest[:, None], float("inf")).amin(1) - best
        limit = self._rounding * (norms * self._radius + self._offset) + 2 * noise * norms * self._radius
        close = torch.nonzero(~(margin > limit))[:, 0]
        if not len(close):
            return nearest, False
        scores[close, nearest[close]] = best[close]
        rows, candidates = torch.nonzero(~(scores[close] > (best + limit)[close][:, None]), as_tuple=True)
        nearest[close], doubtful = self._compare_exactly(block[close].double(), rows, candidates, noise)
        return nearest, doubtful

    def _compare_exactly(self, frames, rows, candidates, noise):
        """The nearest of the candidates of each frame in float64, and whether noise could make it another.

        Args:
            frames: the frames.
            rows, candidates: pairs of a frame and one of its candidates, in order.
            noise: relative precision of the frames.
        """
        pairs = list(zip(rows.split(BLOCK), candidates.split(BLOCK), strict=True))
        distances = torch.cat([self._half_distances(frames[r], self.exact[c]) for r, c in pairs])
        least = torch.full((len(frames),), float("inf"), dtype=torch.float64, device=self.device).scatter_reduce(0, rows, distances, "amin")
        tied = distances == least[rows]
        nearest = torch.full((len(frames),), len(self.exact), device=self.device)
        nearest = nearest.scatter_reduce(0, rows[tied], candidates[tied], "amin")
        if not noise:
            return nearest, False
        apart = torch.cat([(self.exact[c] - self.exact[nearest[r]]).norm(dim=1) for r, c in pairs])
        within = distances - least[rows] <= noise * frames.norm(dim=1)[rows] * apart
        return nearest, bool((within & (candidates != nearest[rows])).any())

    def _half_distances(self, frames, centroids):
        return (frames - centroids).pow(2).sum(1) / 2 if self.metric == "euclidean" else -(frames * centroids).sum(1)


def fit(frames, clusters, seed=1, metric="euclidean", restarts=1, iterations=100, device="cpu", workers=None):
    """k-means++ on a sample of the frames, then Lloyd's iterations on all of them.

    An empty cluster moves to the frame that is farthest from its centroid. On a CPU the result depends on the frames,
    their order and the seed only, not on the number of threads.

    Args:
        frames: (frames, width) float32 array; not copied.
        clusters: number of clusters.
        metric: "euclidean"; or "cosine": spherical k-means of the unit vectors.
        restarts: number of seeds; the result of least inertia is kept.
        iterations: most iterations of Lloyd's.
        device: where distances are computed.
        workers: threads; by default one for each core.

    Returns:
        KMeans without `features`.

    Raises:
        InputError: fewer (distinct) frames than clusters, or frames that are not finite.
    """
    if len(frames) < clusters:
        raise InputError(f"{len(frames)} frames cannot make {clusters} clusters; ask for fewer clusters or give more audio")
    best = None
    with one_thread():
        data = _Frames(frames, metric, device, workers or cores())
        for restart in range(restarts):
            centroids, labels, done = _lloyd(data, _plus_plus(data, clusters, np.random.default_rng([seed, restart])), iterations)
            inertia = float(data.distances(centroids, labels).sum()) / len(frames)
            if best is None or inertia < best[0]:
                best = inertia, centroids, labels, done
    inertia, centroids, labels, done = best
    return KMeans(
        centroids.cpu().numpy(),
        metric,
        sizes=torch.bincount(labels, minlength=clusters).cpu().numpy(),
        fit={"inertia": inertia, "iterations": done, "frames": len(frames), "seed": seed, "restarts": restarts},
    )


class _Frames:
    """The frames of a fit, taken block by block in threads; unit vectors where the metric is cosine."""

    def __init__(self, frames, metric, device, workers=1):
        self.frames, self.metric, self.device = torch.as_tensor(frames), metric, torch.device(device)
        self._map = pool(workers).map if workers > 1 else map
        self._parts = [slice(start, start + BLOCK) for start in range(0, len(self.frames), BLOCK)]
        self._norms = list(self._map(lambda part: self.take(part).norm(dim=1), self._parts))
        if not all(torch.isfinite(norms).all() for norms in self._norms):
            raise InputError("features hold values that are not finite numbers; look for damaged audio or a damaged checkpoint")

    def __len__(self):
        return len(self.frames)

    def take(self, index):
        """Frames by slice or index tensor, in float32 on the device."""
        block = self.frames[index].to(self.device)
        return torch.nn.functional.normalize(block, dim=1) if self.metric == "cosine" else block

    def labels(self, centroids):
        """The nearest centroid of every frame."""
        assigner = Assigner(centroids, self.metric, self.device)
        found = self._map(lambda part, norms: assigner.label_block(self.take(part), norms)[0], self._parts, self._norms)
        return torch.cat(list(found))

    def distances(self, centroids, labels):
        """Squared distance of each frame to its centroid, float64."""
        found = self._map(lambda part: (self.take(part) - centroids[labels[part]]).double().pow(2).sum(1), self._parts)
        return torch.cat(list(found))

    def add(self, sums, labels, rows=None, sign=1):
        """Add frames (all, or those of an index tensor) to the float64 sum of their cluster, in place and in order."""
        for start in range(0, len(labels) if rows is None else len(rows), BLOCK):
            index = slice(start, start + BLOCK) if rows is None else rows[start : start + BLOCK]
            block = self.take(index if rows is None else index.to(self.frames.device))
            sums.index_add_(0, labels[index], block.double(), alpha=sign)


def _plus_plus(data, clusters, rng):
    """Greedy k-means++ on a sample of the frames: the best of several candidates per step.

    Arthur & Vassilvitskii 2007; as many candidates as scikit-learn takes.
    """
    size = min(len(data), max(_INIT_FRAMES, _INIT_FRAMES_PER_CLUSTER * clusters))
    rows = torch.from_numpy(np.sort(rng.choice(len(data), size, replace=False)))
    sample = data.take(rows)
    sample = sample - sample.mean(0)
    squares = sample.pow(2).sum(1)
    chosen, nearest = [], torch.full_like(squares, float("inf"))
    candidates = torch.from_numpy(rng.integers(size, size=1)).to(data.device)
    while True:
        distances = (squares - 2 * (sample[candidates] @ sample.T) + squares[candidates][:, None]).clamp(min=0)  # (candidates, size)
        distances = torch.minimum(distances, nearest)
        best = int(distances.double().sum(1).argmin())
        nearest = distances[best]
        chosen.append(int(candidates[best]))
        nearest[chosen[-1]] = 0
        if len(chosen) == clusters:
            return data.take(rows[chosen]).double()
        cumulative = nearest.double().cumsum(0).cpu().numpy()
        drawn = np.searchsorted(cumulative, rng.random(2 + int(np.log(clusters))) * cumulative[-1], side="right")
        candidates = torch.from_numpy(drawn.clip(max=size - 1)).to(data.device)


def _lloyd(data, centroids, iterations):
    """Lloyd's iterations; cluster sums are kept in float64 and follow the frames that change their cluster."""
    labels, sums = None, torch.zeros_like(centroids)
    done, changed = 0, len(data)
    while done < iterations and changed > _CONVERGED * len(data):
        done += 1
        previous, labels = labels, data.labels(centroids.float())
        if previous is None:
            data.add(sums, labels)
        else:
            rows = torch.nonzero(labels != previous)[:, 0]
            changed = len(rows)
            data.add(sums, labels, rows)
            data.add(sums, previous, rows, sign=-1)
        changed += _fill_empty(data, centroids.float(), labels, sums)
        centroids = sums / torch.bincount(labels, minlength=len(sums))[:, None]
        if data.metric == "cosine":
            centroids = torch.nn.functional.normalize(centroids, dim=1)
    centroids = centroids.float()
    return centroids, data.labels(centroids), done


def _fill_empty(data, centroids, labels, sums):
    """Give each empty cluster the frame that is farthest from its centroid, in place; returns how many."""
    sizes = torch.bincount(labels, minlength=len(centroids))
    empty = torch.nonzero(sizes == 0)[:, 0].tolist()
    if not empty:
        return 0
    distances = data.distances(centroids, labels)
    farthest = iter(torch.argsort(distances, descending=True, stable=True).tolist())
    for cluster in empty:
        row = next((r for r in farthest if sizes[labels[r]] > 1 and distances[r] > 0), None)
        if row is None:
            raise InputError(f"fewer than {len(centroids)} distinct frames; ask for fewer clusters or give more audio")
        frame = data.take(torch.tensor([row]))[0].double()
        sums[labels[row]] -= frame
        sums[cluster] = frame
        sizes[labels[row]] -= 1
        sizes[cluster] = 1
        labels[row] = cluster
    return len(empty)


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
