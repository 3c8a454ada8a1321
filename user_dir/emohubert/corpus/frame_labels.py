"""Frame labels of a split: reading `.km` files, and the one rule that ties label lines to audio frames.

A label file has one line per utterance and one label per label frame; label frames come every 320 samples (HuBERT's own
frames) or every 160 (MFCCs). Model frame t takes label t (hop 320) or 2t (hop 160), as fairseq's `forward_targets` does.

The hop is stated in a file beside the labels, `frames.km.json` for `*.km`: `{"sample_rate": 16000, "hop": 320}`. Labels of fairseq's
scripts come without it; their hop is the one that fits the numbers of labels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import read_json, write_json
from .audio import HOP, SAMPLE_RATE, n_frames
from .string_columns import KeptFile, offsets_of

LABEL_HOPS = (HOP, HOP // 2)
NO_LABEL = -100
"""Target of a frame without a label (`ignore_index` of torch's cross-entropy)."""
_STOCK_CHUNK = 1_600_000
"""fairseq's feature dump cuts recordings into chunks of 100 s and loses a frame at each cut."""
_MOST_EXTRA = 2
"""Tools that pad the last window give up to two labels more than there are frames."""
_BLOCK = 1 << 20
"""Bytes of a label file that are parsed at once: they and what becomes of them stay in the processor's cache."""
_DIGITS = 9
"""Longer numbers are parsed one by one."""


@dataclass
class FrameLabels:
    """The labels of a split. They stay in their file, which was checked as a whole: a line is parsed whenever it is asked for.

    Attributes:
        path: the label file.
        offsets: int64 array; utterance i has the labels from `offsets[i]` to `offsets[i + 1]` of the file.
        hop: samples between two labels.
    """

    path: Path
    offsets: np.ndarray
    hop: int
    _file: KeptFile
    _starts: np.ndarray
    _parse: "_Parser"

    def __len__(self):
        return len(self.offsets) - 1

    @property
    def labels(self):
        """Every label as an index into the dictionary, utterance after utterance; parsed anew."""
        found = np.empty(self.offsets[-1], dtype=self._parse.kind)
        done = 0
        for block in self._file.blocks(_BLOCK):
            labels = self._parse(block)
            found[done : done + len(labels)] = labels
            done += len(labels)
        return found

    def line(self, index):
        """The labels of an utterance, as indices into the dictionary.

        Raises:
            InputError: the file has changed.
        """
        text = self._file.read(int(self._starts[index]), int(self._starts[index + 1]))
        labels = self._parse.by_token(text)
        return labels if labels.min(initial=0) >= 0 else self._parse(text)  # such as 05 for 5

    def targets(self, index, first_frame, frames):
        """Targets of `frames` model frames from `first_frame` on: int64 array, NO_LABEL where the line has ended."""
        step = HOP // self.hop
        taken = self.line(index)[first_frame * step : (first_frame + frames) * step : step].astype(np.int64)
        return np.pad(taken, (0, frames - len(taken)), constant_values=NO_LABEL)


def read_frame_labels(path, symbols, n_samples):
    """Open and check a label file.

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
        file = KeptFile(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such label file; make it with tools/make_labels.py, or correct task.label_dir and task.labels"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct task.label_dir and task.labels") from error
    parse, counts, lengths, unknown, example = _Parser(symbols), [], [], 0, None
    for block in file.blocks(_BLOCK):
        tokens = _Tokens(block)
        labels = parse(block, tokens)
        bad = np.flatnonzero(labels < 0)
        if len(bad) and not unknown:
            example = sum(map(len, counts)) + tokens.line(bad[0]), block.split()[bad[0]].decode("utf-8", "replace")
        unknown += len(bad)
        counts.append(tokens.per_line)
        lengths.append(tokens.line_lengths)
    lines = sum(map(len, counts))
    if lines != len(n_samples):
        raise InputError(f"{path}: {lines} lines for {len(n_samples)} utterances; make the labels again for this manifest")
    if unknown:
        line, token = example
        raise InputError(
            f"{path}:{line + 1}: the label “{token}” is not among the {len(symbols)} of the dictionary "
            f"({unknown} such labels in all); make labels and dictionary again together"
        )
    offsets, starts = offsets_of(counts), offsets_of(lengths)
    return FrameLabels(path, offsets, _hop(path, np.diff(offsets), np.asarray(n_samples)), file, starts, parse)


class _Tokens:
    """Where the labels of whole lines are.

    Attributes:
        codes: the bytes, uint8.
        inside: bool, which of them belong to labels.
        starts, ends: of every label in the text.
        per_line: labels of each line.
        line_lengths: bytes of each line, its end included.
    """

    def __init__(self, text):
        codes = np.frombuffer(text if text.endswith(b"\n") else text + b"\n", dtype=np.uint8)
        inside = np.zeros(len(codes) + 1, dtype=bool)
        inside[1:] = (codes != 32) & ((codes < 9) | (codes > 13))  # what bytes.split() does not take for space
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        self.codes, self.inside, self.starts, self.ends = codes, inside[1:], edges[::2], edges[1::2]
        self._line_ends = np.flatnonzero(codes == 10)
        self.per_line = np.diff(np.searchsorted(self.starts, self._line_ends), prepend=0)
        self.line_lengths = np.diff(self._line_ends, prepend=-1)
        self.line_lengths[-1] -= len(codes) - len(text)

    def line(self, token):
        """The line of a label, from 0."""
        return int(np.searchsorted(self._line_ends, self.starts[token]))


class _Parser:
    """From text to indices into the dictionary, -1 for unknown labels, in the smallest integer type that holds them.

    Args:
        symbols: the dictionary's symbols, in order.
    """

    def __init__(self, symbols):
        self.kind = np.int16 if len(symbols) <= np.iinfo(np.int16).max else np.int32
        self._table = {symbol.encode(): i for i, symbol in enumerate(symbols)}
        self._lookup = None
        if symbols and all(s.isdecimal() and len(s) < 8 and str(int(s)) == s for s in symbols):
            values = np.array(symbols, dtype=np.int64)
            self._lookup = np.full(values.max() + 2, -1, dtype=self.kind)
            self._lookup[values] = np.arange(len(values))

    def __call__(self, text, tokens=None):
        """Parse whole lines; `tokens`, if known, say where their labels are.

        Cluster numbers are parsed by numpy and looked up in an array, twenty times as fast as one by one.
        """
        if self._lookup is None or not text.strip() or text.translate(None, b"0123456789 \t\n\v\f\r"):
            return self.by_token(text)
        tokens = tokens or _Tokens(text)
        longest = int((tokens.ends - tokens.starts).max())
        if longest > _DIGITS:
            values = np.fromstring(text, dtype=np.int64, sep=" ")
        else:
            kind = np.int16 if longest < 5 else np.int32
            digits = tokens.codes.astype(kind) - kind(ord("0"))
            values, within = digits.copy(), tokens.inside.copy()
            for place in range(1, longest):  # at every byte, the number that ends there
                within[place:] &= tokens.inside[:-place]
                values[place:] += digits[:-place] * within[place:] * kind(10**place)
            values = values[tokens.ends - 1]
        return self._lookup[np.minimum(values, len(self._lookup) - 1)]

    def by_token(self, text):
        """Look up one label after the other: the fastest way for a line."""
        return np.array([self._table.get(token, -1) for token in text.split()], dtype=self.kind)


def state_hop(folder, hop):
    """Write the hop of the `.km` files of a folder beside them, unless it stands there."""
    path, content = _hop_file(Path(folder) / "train.km"), {"sample_rate": SAMPLE_RATE, "hop": hop}
    if not path.is_file() or read_json(path) != content:
        write_json(path, content)


def _hop_file(path):
    return path.with_name(f"frames{path.suffix}.json")


def _hop(path, counts, n_samples):
    """The label hop, stated or found; InputError if a line does not fit its audio."""
    stated = _hop_file(path)
    if stated.is_file():
        content = read_json(stated)
        hops = [hop for hop in LABEL_HOPS if content == {"sample_rate": SAMPLE_RATE, "hop": hop}]
        if not hops:
            raise InputError(
                f"{stated}: must say sample_rate {SAMPLE_RATE} and hop {' or '.join(map(str, LABEL_HOPS))}; make the labels again"
            )
        (hop,) = hops
    else:
        audible = n_samples >= HOP + HOP  # shorter ones fit several hops
        hop = min(LABEL_HOPS, key=lambda hop: np.abs(counts - n_frames(n_samples, hop))[audible].sum())
    expected = n_frames(n_samples, hop)
    wrong = (counts < expected - n_samples // _STOCK_CHUNK) | (counts > expected + _MOST_EXTRA)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise InputError(
            f"{path}:{i + 1}: {counts[i]} labels, but the audio ({n_samples[i]} samples) has {expected[i]} frames at a hop of {hop}"
            f"{f', which {stated.name} states' if stated.is_file() else ''}; "
            f"{int(wrong.sum())} of {len(counts)} lines do not fit; make the labels again from this manifest"
        )
    return hop
