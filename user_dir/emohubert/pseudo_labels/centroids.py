"""Centroids, and the file that holds them (`kmeans.npz`)."""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import atomic

METRICS = ("euclidean", "cosine")


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
        """Raise InputError for features of another kind or width; `features` is their description, or None if unknown."""
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
            raise InputError(f"{path}: not a kmeans.npz of emohubert, or a damaged one ({first_line(error)}); make it again") from error
        if (
            centroids.dtype != np.float32 or centroids.ndim != 2 or not centroids.size or not np.isfinite(centroids).all()
            or model.metric not in METRICS or not isinstance(model.features, dict | None) or not isinstance(model.fit, dict)
            or not (model.sizes is None or (sizes.shape == (len(centroids),) and sizes.dtype == np.int64))
        ):  # fmt: skip
            raise InputError(f"{path}: does not hold centroids as emohubert writes them; make it again")
        return model


def first_line(error):
    """An error's message as far as it fits into one of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
