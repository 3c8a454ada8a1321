"""Centroids, and the file that holds them (`kmeans.npz`)."""

import json
from dataclasses import dataclass, field

import numpy as np

from ..core.errors import InputError, taken_apart
from ..core.files import atomic


@dataclass
class KMeans:
    """Centroids and how they came about."""

    centroids: np.ndarray  # (clusters, width) float32
    features: dict | None = None  # what they were fitted on (kind, layer, checkpoint SHA-256, sample rate, …); None: unknown
    sizes: np.ndarray | None = None  # frames of each cluster in the fit; None: unknown
    fit: dict = field(default_factory=dict)  # inertia per frame, iterations, frames, seed and so on

    def __len__(self):
        return len(self.centroids)

    def check(self, features, width, path):
        """Raise InputError for features of another kind or width; `features` is their description, or None if unknown."""
        if self.features is not None and features is not None and self.features != features:
            name = next(k for k in [*self.features, *features] if self.features.get(k) != features.get(k))
            what = f"fitted on features with {name} = {self.features.get(name)}, but these have {name} = {features.get(name)}"
            raise InputError(f"{path}: these centroids were {what}; fit centroids on these features, or use the others")
        if width != self.centroids.shape[1]:
            what = f"centroids of width {self.centroids.shape[1]} cannot label features of width {width}"
            raise InputError(f"{path}: {what}; use the features they were fitted on")

    def save(self, path):
        """Write `kmeans.npz`: arrays and JSON text, nothing that needs pickle."""
        info = {"features": self.features, "fit": self.fit}
        sizes = np.zeros(0, dtype=np.int64) if self.sizes is None else np.asarray(self.sizes, dtype=np.int64)
        with atomic(path, "wb") as f:
            np.savez(f, centroids=self.centroids, sizes=sizes, info=np.array(json.dumps(info, sort_keys=True)))

    @classmethod
    def load(cls, path):
        """Read `kmeans.npz` without running anything in it; InputError if it is missing, damaged, or not such a file."""
        with taken_apart(path, "a kmeans.npz of emohubert"):
            with np.load(path, allow_pickle=False) as archive:
                centroids, sizes, info = archive["centroids"], archive["sizes"], json.loads(str(archive["info"]))
            model = cls(centroids, info["features"], sizes if len(sizes) else None, info["fit"])
            if (
                centroids.dtype != np.float32
                or centroids.ndim != 2
                or not centroids.size
                or not np.isfinite(centroids).all()
                or not isinstance(model.features, dict | None)
                or not isinstance(model.fit, dict)
                or not (model.sizes is None or (sizes.shape == (len(centroids),) and sizes.dtype == np.int64))
            ):
                raise InputError(
                    f"{path}: not a kmeans.npz of emohubert, or a damaged one (it holds something else than centroids); make it again"
                )
        return model


def first_line(error):
    """An error's message as far as it fits into one of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
