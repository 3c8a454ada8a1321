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


class PartialLabels:
    """The labels of one set and split on their way to `{split}.km`: in parts, one for each window of recordings.

    `settings` are what labels depend on; parts of windows of other `window_seconds` are not used.
    """

    def __init__(self, label_set, split, settings, window_seconds):
        self.set, self._path = label_set, label_set.folder / f"{split.name}.km"
        self._stamp = Stamp(label_set.folder / f".{split.name}.stamp", settings, [self._path])
        self._folder = label_set.folder / f".{split.name}.{fingerprint([settings, window_seconds])}.parts"

    def is_wanted(self, overwrite):
        """Whether labels are missing, of other settings, or to be made again; removes what killed runs left, but for parts to go on with."""
        current = not overwrite and self._stamp.is_current()
        for parts in self.set.folder.glob(f".{self._path.stem}.*.parts"):
            if overwrite or current or parts != self._folder:
                shutil.rmtree(parts)
        for unfinished in self.set.folder.rglob(".*.tmp"):
            unfinished.unlink()
        if not current:
            self._stamp.clear()
            self._folder.mkdir(exist_ok=True)
        return not current

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
        with atomic(self._path, "wb") as out:
            for number in range(parts):
                with self.part(number).open("rb") as f:
                    shutil.copyfileobj(f, out, 1 << 20)
        self._stamp.write()
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
    write_lines(folder / "dict.km.txt", [f"{i} {n}" for i, n in enumerate(counts)])
