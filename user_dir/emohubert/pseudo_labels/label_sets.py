"""Sets of labels while they are made: their folders and files."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.files import Stamp, fingerprint, read_json, write_lines
from ..corpus.frame_labels import state_hop
from .centroids import KMeans

logger = logging.getLogger("emohubert")


@dataclass(eq=False)
class LabelSet:
    """Labels to be made: one kind of features, one set of centroids."""

    feature: str  # such as "L9"
    clusters: int
    folder: Path  # such as OUT_DIR/L9/km50
    fit_stamp: Stamp  # of its centroids
    model: KMeans | None = None  # once there

    @property
    def name(self):
        """Such as "L9/km50"."""
        return f"{self.feature}/{self.folder.name}"

    @property
    def centroids(self):
        """Path of the centroids."""
        return self.folder / "kmeans.npz"

    def save(self, hop):
        """Write the centroids, the dictionary and the hop; labels of other centroids go."""
        self.fit_stamp.clear()
        remove_stale(self.folder, "fit", self.fit_stamp.settings)
        write_dictionary(self.folder, self.model.sizes, len(self.model))
        state_hop(self.folder, hop)
        self.model.save(self.centroids)
        self.fit_stamp.write()


def remove_stale(folder, key, settings):
    """Remove label files of other centroids or pieces than are about to be written: they would not fit the dictionary."""
    for labels in folder.glob("*.km"):
        stamp = folder / f".{labels.stem}.stamp"
        made = read_json(stamp).get("settings", {}).get(key) if stamp.is_file() else None
        if fingerprint(made) != fingerprint(settings):
            stamp.unlink(missing_ok=True)
            labels.unlink()
            logger.info("%s: removed, it was made with other centroids", labels)


def label_line(labels):
    """A line of a `.km` file, without its end."""
    return " ".join(map(str, labels.tolist()))


def read_label_lines(path):
    """The labels of each line."""
    with path.open(encoding="utf-8") as f:
        for line in f:
            yield np.array(line.split(), dtype=np.int64)


def write_dictionary(folder, counts, symbols):
    """`dict.km.txt`: each of the symbols with its frames in the fit, or 1 where there are none or they are unknown."""
    counts = np.ones(symbols, dtype=np.int64) if counts is None else np.maximum(counts, 1)
    write_lines(folder / "dict.km.txt", [f"{i} {n}" for i, n in enumerate(counts)])
