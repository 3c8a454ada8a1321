"""Frame labels of a split: reading `.km` files, and the one rule that ties label lines to audio frames.

A label comes every 320 samples (HuBERT's own frames) or every 160 (MFCCs). Model frame t takes label t (hop 320) or 2t (hop 160), as
fairseq's `forward_targets` does. `frames.km.json` beside `*.km` states the hop; without it, it is the one that fits the audio.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import read_json, reading_text, write_json
from .audio import HOP, SAMPLE_RATE, n_frames

LABEL_HOPS = (HOP, HOP // 2)
NO_LABEL = -100  # target of a frame without a label (`ignore_index` of torch's cross-entropy)
_STOCK_CHUNK = 1_600_000  # fairseq's feature dump cuts recordings into chunks of 100 s and loses a frame at each cut
_MOST_EXTRA = 2  # tools that pad the last window give up to two labels more than there are frames


@dataclass
class FrameLabels:
    """The labels of a split. They stay in their file, which was checked as a whole: a line is parsed whenever it is asked for."""

    path: Path
    offsets: np.ndarray  # int64; utterance i has the labels from offsets[i] to offsets[i + 1] of the file
    hop: int  # samples between two labels
    _starts: np.ndarray  # where the lines start, in bytes, and the end
    _table: dict
    _state: tuple

    def __len__(self):
        return len(self.offsets) - 1

    @property
    def labels(self):
        """Every label as an index into the dictionary, utterance after utterance; parsed anew."""
        with self._opened() as f:
            return np.concatenate([self._indices(line) for line in f])

    def line(self, index):
        """The labels of an utterance, as indices into the dictionary; InputError if the file has changed."""
        with self._opened() as f:
            f.seek(self._starts[index])
            return self._indices(f.read(self._starts[index + 1] - self._starts[index]))

    def _opened(self):
        with reading_text(self.path, "restore it, and start again"):
            f = self.path.open("rb")
        if _state(f) != self._state:
            f.close()
            raise InputError(f"{self.path}: was changed while it was in use; start again")
        return f

    def _indices(self, text):
        kind = np.int16 if len(self._table) <= np.iinfo(np.int16).max else np.int32
        return np.fromiter(map(self._table.__getitem__, text.split()), dtype=kind)

    def targets(self, index, first_frame, frames):
        """Targets of `frames` model frames from `first_frame` on: int64 array, NO_LABEL where the line has ended."""
        step = HOP // self.hop
        taken = self.line(index)[first_frame * step : (first_frame + frames) * step : step].astype(np.int64)
        return np.pad(taken, (0, frames - len(taken)), constant_values=NO_LABEL)


def read_frame_labels(path, symbols, n_samples):
    """Open and check a label file, whose dictionary has these `symbols` and whose utterances are `n_samples` long; returns FrameLabels.
    InputError if lines are not as many as utterances, a label is not in the dictionary, or a line does not fit its audio."""
    path, table, counts, sizes, seen = Path(path), {s.encode(): i for i, s in enumerate(symbols)}, [0], [0], set()
    with reading_text(path, "make it with tools/make_labels.py, or correct task.label_dir and task.labels"), path.open("rb") as f:
        state = _state(f)
        for line in f:
            tokens = line.split()
            seen.update(tokens)
            counts.append(len(tokens))
            sizes.append(len(line))
    if len(counts) - 1 != len(n_samples):
        raise InputError(f"{path}: {len(counts) - 1} lines for {len(n_samples)} utterances; make the labels again for this manifest")
    if not seen <= table.keys():
        with path.open("rb") as f:
            unknown = [(number, token) for number, line in enumerate(f, 1) for token in line.split() if token not in table]
        line, token = unknown[0]
        what = f"the label “{token.decode('utf-8', 'replace')}” is not among the {len(symbols)} of the dictionary"
        raise InputError(f"{path}:{line}: {what} ({len(unknown)} such labels in all); make labels and dictionary again together")
    hop = _hop(path, np.array(counts[1:]), np.asarray(n_samples))
    return FrameLabels(path, np.cumsum(counts), hop, np.cumsum(sizes), table, state)


def _state(f):
    """Size and time of change of an open file."""
    found = os.fstat(f.fileno())
    return found.st_size, found.st_mtime_ns


def state_hop(folder, hop):
    """Write the hop of the `.km` files of a folder beside them, unless it stands there."""
    path, content = Path(folder) / "frames.km.json", {"sample_rate": SAMPLE_RATE, "hop": hop}
    if not path.is_file() or read_json(path) != content:
        write_json(path, content)


def _hop(path, counts, n_samples):
    """The label hop, stated or found; InputError if a line does not fit its audio."""
    stated = path.with_name(f"frames{path.suffix}.json")
    if stated.is_file():
        content = read_json(stated)
        hop = next((hop for hop in LABEL_HOPS if content == {"sample_rate": SAMPLE_RATE, "hop": hop}), None)
        if hop is None:
            hops = " or ".join(map(str, LABEL_HOPS))
            raise InputError(f"{stated}: must say sample_rate {SAMPLE_RATE} and hop {hops}; make the labels again")
    else:
        audible = n_samples >= HOP + HOP  # shorter ones fit several hops
        hop = min(LABEL_HOPS, key=lambda hop: np.abs(counts - n_frames(n_samples, hop))[audible].sum())
    expected = n_frames(n_samples, hop)
    wrong = (counts < expected - n_samples // _STOCK_CHUNK) | (counts > expected + _MOST_EXTRA)
    if wrong.any():
        i = int(np.argmax(wrong))
        what = f"{counts[i]} labels, but the audio ({n_samples[i]} samples) has {expected[i]} frames at a hop of {hop}"
        what += f", which {stated.name} states" if stated.is_file() else ""
        raise InputError(f"{path}:{i + 1}: {what}; {wrong.sum()} of {len(counts)} lines do not fit; make labels again from this manifest")
    return hop
