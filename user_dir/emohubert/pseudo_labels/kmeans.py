"""k-means of frame features.

Labels are the *exact* nearest centroids of the float32 features: distances are computed by a float32 matrix product, and
frames whose two nearest centroids are too close for its rounding are compared again in float64. So neither the number of
threads nor the size of a block decides about a label, here or in fitting.
"""

import numpy as np
import torch

from ..core.errors import InputError
from ..core.parallel import cores, one_thread, pool
from .centroids import KMeans

BLOCK = 4096  # frames in one matrix product
_ROUNDING = 2.0**-24
_INIT_FRAMES, _INIT_FRAMES_PER_CLUSTER = 4096, 16
_MOST_ITERATIONS = 100
_CONVERGED = 5e-3  # share of the frames that changes its cluster in Lloyd's last iteration, at most


class Assigner:
    """Nearest centroids of frames. The distance to centroid c is compared as `|c'|²/2 + μ·c' − x·c'`, with c' = c − μ and μ the mean of the
    centroids, which keeps numbers small where features share a large offset: half the squared distance, less a constant."""

    def __init__(self, centroids, device="cpu"):
        self.device = torch.device(device)
        self.exact = torch.as_tensor(centroids).to(self.device, torch.float64)
        mean = self.exact.mean(0)
        shifted = self.exact - mean
        bias = shifted.pow(2).sum(1) / 2 + shifted @ mean
        self._weight, self._bias = shifted.float().T.contiguous(), bias.float()  # (width, clusters), (clusters,)
        self._radius, self._offset = float(shifted.norm(dim=1).max()), float(bias.abs().max())
        self._rounding = 2 * (shifted.shape[1] + 8) * _ROUNDING

    def labels(self, frames):
        """Labels of (frames, width) float32 features: int64 tensor. Of equally near centroids, the first."""
        blocks = torch.as_tensor(frames).to(self.device, torch.float32).split(BLOCK)
        return torch.cat([self.label_block(block, block.norm(dim=1)) for block in blocks])

    def label_block(self, block, norms):
        """`labels` of one block of frames on the device, with their norms."""
        scores = torch.addmm(self._bias, block, self._weight, alpha=-1)
        best, nearest = scores.min(1)
        if len(self.exact) == 1:
            return nearest
        margin = scores.scatter_(1, nearest[:, None], float("inf")).amin(1) - best
        limit = self._rounding * (norms * self._radius + self._offset)
        if len(close := torch.nonzero(~(margin > limit))[:, 0]):
            scores[close, nearest[close]] = best[close]
            rows, candidates = torch.nonzero(~(scores[close] > (best + limit)[close][:, None]), as_tuple=True)
            nearest[close] = self._compare_exactly(block[close].double(), rows, candidates)
        return nearest

    def _compare_exactly(self, frames, rows, candidates):
        """The nearest of each frame's candidates in float64; (rows, candidates) are pairs."""
        pairs = zip(rows.split(BLOCK), candidates.split(BLOCK), strict=True)
        distances = torch.cat([(frames[r] - self.exact[c]).pow(2).sum(1) / 2 for r, c in pairs])
        least = torch.full((len(frames),), float("inf"), dtype=torch.float64, device=self.device).scatter_reduce(0, rows, distances, "amin")
        tied = distances == least[rows]
        nearest = torch.full((len(frames),), len(self.exact), device=self.device)
        return nearest.scatter_reduce(0, rows[tied], candidates[tied], "amin")


def fit(frames, clusters, seed=1, device="cpu", workers=None):
    """k-means++ on a sample of the (frames, width) float32 array, then Lloyd's iterations on all of it; a KMeans without `features`. An
    empty cluster moves to the frame farthest from its centroid. On a CPU the result does not depend on the number of threads, `workers`
    (default: one for each core). InputError: fewer (distinct) frames than clusters, or frames that are not finite."""
    if len(frames) < clusters:
        raise InputError(f"{len(frames)} frames cannot make {clusters} clusters; ask for fewer clusters or give more audio")
    with one_thread():
        data = _Frames(frames, device, workers or cores())
        centroids, labels, done = _lloyd(data, _plus_plus(data, clusters, np.random.default_rng([seed, 0])))
        inertia = float(data.distances(centroids, labels).sum()) / len(frames)
    sizes = torch.bincount(labels, minlength=clusters).cpu().numpy()
    return KMeans(centroids.cpu().numpy(), sizes=sizes, fit={"inertia": inertia, "iterations": done, "frames": len(frames), "seed": seed})


class _Frames:
    """The frames of a fit, taken block by block in threads."""

    def __init__(self, frames, device="cpu", workers=1):
        self.frames, self.device = torch.as_tensor(frames), torch.device(device)
        self._map = pool(workers).map if workers > 1 else map
        self._parts = [slice(start, start + BLOCK) for start in range(0, len(self.frames), BLOCK)]
        self._norms = list(self._map(lambda part: self.take(part).norm(dim=1), self._parts))
        if not all(torch.isfinite(norms).all() for norms in self._norms):
            raise InputError("features hold values that are not finite numbers; look for damaged audio or a damaged checkpoint")

    def __len__(self):
        return len(self.frames)

    def take(self, index):
        """Frames by slice or index tensor, in float32 on the device."""
        return self.frames[index].to(self.device)

    def labels(self, centroids):
        """The nearest centroid of every frame."""
        assigner = Assigner(centroids, self.device)
        return torch.cat(list(self._map(lambda part, norms: assigner.label_block(self.take(part), norms), self._parts, self._norms)))

    def distances(self, centroids, labels):
        """Squared distance of each frame to its centroid, float64."""
        return torch.cat(list(self._map(lambda part: (self.take(part) - centroids[labels[part]]).double().pow(2).sum(1), self._parts)))

    def add(self, sums, labels, rows=None, sign=1):
        """Add frames (all, or those of an index tensor) to the float64 sum of their cluster, in place and in order."""
        for start in range(0, len(labels) if rows is None else len(rows), BLOCK):
            index = slice(start, start + BLOCK) if rows is None else rows[start : start + BLOCK]
            block = self.take(index if rows is None else index.to(self.frames.device))
            sums.index_add_(0, labels[index], block.double(), alpha=sign)


def _plus_plus(data, clusters, rng):
    """Greedy k-means++ (Arthur & Vassilvitskii 2007) on a sample of the frames: the best of as many candidates as scikit-learn takes."""
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


def _lloyd(data, centroids):
    """Lloyd's iterations; cluster sums are kept in float64 and follow the frames that change their cluster."""
    labels, sums = None, torch.zeros_like(centroids)
    done, changed = 0, len(data)
    while done < _MOST_ITERATIONS and changed > _CONVERGED * len(data):
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
    centroids = centroids.float()
    return centroids, data.labels(centroids), done


def _fill_empty(data, centroids, labels, sums):
    """Give each empty cluster the frame that is farthest from its centroid, in place; returns how many."""
    sizes = torch.bincount(labels, minlength=len(centroids))
    if not (empty := torch.nonzero(sizes == 0)[:, 0].tolist()):
        return 0
    distances = data.distances(centroids, labels)
    farthest = iter(torch.argsort(distances, descending=True, stable=True).tolist())
    for cluster in empty:
        if (row := next((r for r in farthest if sizes[labels[r]] > 1 and distances[r] > 0), None)) is None:
            raise InputError(f"fewer than {len(centroids)} distinct frames; ask for fewer clusters or give more audio")
        frame = data.take(torch.tensor([row]))[0].double()
        sums[labels[row]] -= frame
        sums[cluster] = frame
        sizes[labels[row]] -= 1
        sizes[cluster] = 1
        labels[row] = cluster
    return len(empty)
