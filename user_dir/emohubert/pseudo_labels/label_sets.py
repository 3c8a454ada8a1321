"""Sets of labels while they are made: their folders, and label files that grow in parts, so that a killed run can go on."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.files import Stamp, atomic, fingerprint, read_json, write_lines
from ..corpus.frame_labels import state_hop
from .centroids import KMeans

logger = logging.getLogger("emohubert")


@dataclass
class LabelSet:
    """Labels to be made: one kind of features, one set of centroids.

    Attributes:
        feature: name of the features, such as "L9".
        clusters: their number.
        folder: where the labels go, such as OUT_DIR/L9/km50.
        fit_stamp: the Stamp of its centroids.
        model: the centroids, once there.
    """

    feature: str
    clusters: int
    folder: Path
    fit_stamp: Stamp
    model: KMeans | None = None

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
        remove_stale(self.folder, "fit", self.fit_stamp.settings)
        write_dictionary(self.folder, self.model.sizes, len(self.model))
        state_hop(self.folder, hop)
        self.model.save(self.centroids)
        self.fit_stamp.write()


class PartialLabels:
    """The labels of one set and split on their way to `{split}.km`: in parts, one for each window of recordings.

    Args:
        label_set, split: whose labels.
        stamp: of the label file.
        window_seconds: length of a window; parts of other windows are not used.
    """

    def __init__(self, label_set, split, stamp, window_seconds):
        self.set, self.split, self.stamp = label_set, split, stamp
        self._folder = label_set.folder / f".{split.name}.{fingerprint([stamp.settings, window_seconds])}.parts"

    def clear(self, keep_parts):
        """Remove what killed runs left behind; parts made with these settings stay if `keep_parts`."""
        for parts in self.set.folder.glob(f".{self.split.name}.*.parts"):
            if not keep_parts or parts != self._folder:
                shutil.rmtree(parts)
        for unfinished in [*self.set.folder.glob(".*.tmp"), *self.set.folder.glob(".*.parts/.*.tmp")]:
            unfinished.unlink()

    def open(self):
        """Get ready for parts."""
        self.stamp.clear()
        self._folder.mkdir(exist_ok=True)

    def part(self, number):
        """Path of a part."""
        return self._folder / f"{number:06d}.km"

    def start(self, window, frames):
        """Begin a part: a range of utterances, and the frames of each."""
        self._first, self._ends, self._frames = int(window[0]), np.cumsum(frames), frames
        self._labels = np.zeros(int(self._ends[-1]), dtype=np.int32)

    def put(self, utterance, first_frame, labels):
        """Take the labels of an utterance's frames from `first_frame` on; safe in several threads."""
        i = utterance - self._first
        row = int(self._ends[i] - self._frames[i]) + first_frame
        self._labels[row : row + len(labels)] = labels

    def save(self, number):
        """Write the part."""
        write_lines(self.part(number), (label_line(self._labels[end - n : end]) for end, n in zip(self._ends, self._frames, strict=True)))

    def finish(self, parts):
        """Join the parts."""
        with atomic(self.set.folder / f"{self.split.name}.km", "wb") as out:
            for number in range(parts):
                with self.part(number).open("rb") as f:
                    shutil.copyfileobj(f, out, 1 << 20)
        self.stamp.write()
        shutil.rmtree(self._folder)


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
    write_lines(Path(folder) / "dict.km.txt", [f"{i} {n}" for i, n in enumerate(counts)])
