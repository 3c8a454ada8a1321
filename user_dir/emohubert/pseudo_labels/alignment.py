"""Frame labels of a split: reading `.km` files, and the one rule that ties label lines to audio frames.

A label file has one line per utterance and one label per label frame; label frames come every 320 samples (HuBERT's own
frames) or every 160 (MFCCs). Model frame t takes label t (hop 320) or 2t (hop 160), as fairseq's `forward_targets` does.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..audio import HOP, n_frames
from ..errors import InputError

LABEL_HOPS = (HOP, HOP // 2)
NO_LABEL = -100
"""Target of a frame without a label (`ignore_index` of torch's cross-entropy)."""
_STOCK_CHUNK = 1_600_000
"""fairseq's feature dump cuts recordings into chunks of 100 s and loses a frame at each cut."""
_MOST_EXTRA = 2
"""Tools that pad the last window give up to two labels more than there are frames."""
_BLOCK = 1 << 23
"""Bytes of a label file that are parsed at once: what parsing needs besides the file and its labels stays small."""


@dataclass
class FrameLabels:
    """The labels of a split, flat.

    Attributes:
        path: the label file.
        labels: every label as an index into the dictionary, utterance after utterance.
        offsets: int64 array; utterance i has `labels[offsets[i]:offsets[i + 1]]`.
        hop: samples between two labels.
    """

    path: Path
    labels: np.ndarray
    offsets: np.ndarray
    hop: int

    def __len__(self):
        return len(self.offsets) - 1

    def targets(self, index, first_frame, frames):
        """Targets of `frames` model frames from `first_frame` on: int64 array, NO_LABEL where the line has ended."""
        line = self.labels[self.offsets[index] : self.offsets[index + 1]]
        step = HOP // self.hop
        taken = line[first_frame * step : (first_frame + frames) * step : step].astype(np.int64)
        return np.pad(taken, (0, frames - len(taken)), constant_values=NO_LABEL)


def read_frame_labels(path, symbols, n_samples):
    """Read and check a label file.

    Args:
        path: of the `.km` file.
        symbols: the dictionary's symbols, in order.
        n_samples: samples of each utterance at 16 kHz, in the order of the lines.

    Returns:
        FrameLabels.

    Raises:
        InputError: missing file, another number of lines than utterances, a label that the dictionary does not know, or
            a line that does not fit its audio.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such label file; make it with tools/make_labels.py, or correct task.label_dir and task.labels"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct task.label_dir and task.labels") from error
    blocks = list(_blocks(data))
    counts = np.concatenate([_labels_per_line(data[block]) for block in blocks]) if blocks else np.zeros(0, dtype=np.int64)
    if len(counts) != len(n_samples):
        raise InputError(f"{path}: {len(counts)} lines for {len(n_samples)} utterances; make the labels again for this manifest")
    offsets = np.concatenate([[0], np.cumsum(counts)])
    to_indices = _parser(symbols)
    labels = np.concatenate([to_indices(data[block]) for block in blocks])
    _refuse_unknown(path, labels < 0, data, offsets, symbols)
    return FrameLabels(path, labels, offsets, _hop(path, counts, np.asarray(n_samples)))


def _blocks(data):
    """Slices of whole lines that make up a file."""
    start = 0
    while start < len(data):
        stop = data.find(b"\n", start + _BLOCK) + 1 or len(data)
        yield slice(start, stop)
        start = stop


def _labels_per_line(data):
    codes = np.frombuffer(data if data.endswith(b"\n") else data + b"\n", dtype=np.uint8)
    separator = (codes == 32) | ((codes >= 9) & (codes <= 13))  # what bytes.split() takes for space
    starts = ~separator
    starts[1:] &= separator[:-1]
    return np.diff(np.cumsum(starts)[codes == 10], prepend=0)


def _parser(symbols):
    """A function from text to indices into the dictionary, -1 for unknown labels, in the smallest integer type that holds them."""
    kind = np.int16 if len(symbols) <= np.iinfo(np.int16).max else np.int32
    table = {symbol.encode(): i for i, symbol in enumerate(symbols)}

    def by_token(text):
        return np.array([table.get(token, -1) for token in text.split()], dtype=kind)

    if not symbols or not all(s.isdecimal() and len(s) < 8 and str(int(s)) == s for s in symbols):
        return by_token
    values = np.array(symbols, dtype=np.int64)
    lookup = np.full(values.max() + 2, -1, dtype=kind)
    lookup[values] = np.arange(len(values))

    def by_number(text):
        """Cluster numbers: ten times as fast, parsed by numpy and looked up in an array."""
        if not text.strip() or text.translate(None, b"0123456789 \t\n\v\f\r"):  # numpy finds a number even in blanks
            return by_token(text)
        return lookup[np.minimum(np.fromstring(text, dtype=np.int64, sep=" "), len(lookup) - 1)]

    return by_number


def _refuse_unknown(path, unknown, data, offsets, symbols):
    if unknown.any():
        first = int(np.argmax(unknown))
        line = int(np.searchsorted(offsets, first, side="right"))
        token = data.split()[first].decode("utf-8", "replace")
        raise InputError(
            f"{path}:{line}: the label “{token}” is not among the {len(symbols)} of the dictionary "
            f"({int(unknown.sum())} such labels in all); make labels and dictionary again together"
        )


def _hop(path, counts, n_samples):
    """The label hop under which every line fits its audio."""
    audible = n_samples >= HOP + HOP  # shorter ones fit several hops
    scores = {hop: np.abs(counts - n_frames(n_samples, hop))[audible].sum() for hop in LABEL_HOPS}
    hop = min(scores, key=scores.get)
    expected = n_frames(n_samples, hop)
    short = counts < expected - n_samples // _STOCK_CHUNK
    long = counts > expected + _MOST_EXTRA
    if (short | long).any():
        i = int(np.argmax(short | long))
        raise InputError(
            f"{path}:{i + 1}: {counts[i]} labels, but the audio ({n_samples[i]} samples) has {expected[i]} frames at a hop of {hop}; "
            f"{int((short | long).sum())} of {len(counts)} lines do not fit; make the labels again from this manifest"
        )
    return hop
