"""Frame labels of a split: reading `.km` files, and the one rule that ties label lines to audio frames.

A label comes every 320 samples (HuBERT's own frames) or every 160 (MFCCs). Model frame t takes label t (hop 320) or 2t (hop 160), as
fairseq's `forward_targets` does. `frames.km.json` beside `*.km` states the hop; without it, it is the one that fits the audio.
"""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import read_json, reading_text, write_json
from .audio import HOP, SAMPLE_RATE, n_frames
from .string_columns import KeptFile, offsets_of

LABEL_HOPS = (HOP, HOP // 2)
NO_LABEL = -100  # target of a frame without a label (`ignore_index` of torch's cross-entropy)
_STOCK_CHUNK = 1_600_000  # fairseq's feature dump cuts recordings into chunks of 100 s and loses a frame at each cut
_MOST_EXTRA = 2  # tools that pad the last window give up to two labels more than there are frames
_BLOCK = 1 << 18  # bytes of a label file that are parsed at once


@dataclass
class FrameLabels:
    """The labels of a split. They stay in their file, which was checked as a whole: a line is parsed whenever it is asked for."""

    path: Path
    offsets: np.ndarray  # int64; utterance i has the labels from offsets[i] to offsets[i + 1] of the file
    hop: int  # samples between two labels
    _file: KeptFile
    _starts: np.ndarray
    _table: dict

    def __len__(self):
        return len(self.offsets) - 1

    @property
    def labels(self):
        """Every label as an index into the dictionary, utterance after utterance; parsed anew."""
        blocks = [self._indices(block) for block in self._file.blocks(_BLOCK)]
        return np.concatenate(blocks) if blocks else self._indices(b"")

    def line(self, index):
        """The labels of an utterance, as indices into the dictionary; InputError if the file has changed."""
        return self._indices(self._file.read(int(self._starts[index]), int(self._starts[index + 1])))

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

    InputError if lines are not as many as utterances, a label is not in the dictionary, or a line does not fit its audio.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such label file; make it with tools/make_labels.py, or correct task.label_dir and task.labels")
    with reading_text(path, ""):
        file = KeptFile(path)
    table, counts, lengths, unknown = _Table({s.encode(): i for i, s in enumerate(symbols)}), [], [], []
    for block in file.blocks(_BLOCK):
        lines = block.removesuffix(b"\n").split(b"\n")
        tokens = [line.split() for line in lines]
        if min(map(table.__getitem__, chain(*tokens)), default=0) < 0:
            done = sum(map(len, counts))
            unknown += [(number, token) for number, line in enumerate(tokens, done + 1) for token in line if table[token] < 0]
        counts.append([len(line) for line in tokens])
        lengths.append([len(line) + 1 for line in lines])
        lengths[-1][-1] -= not block.endswith(b"\n")
    lines = sum(map(len, counts))
    if lines != len(n_samples):
        raise InputError(f"{path}: {lines} lines for {len(n_samples)} utterances; make the labels again for this manifest")
    if unknown:
        line, token = unknown[0]
        raise InputError(
            f"{path}:{line}: the label “{token.decode('utf-8', 'replace')}” is not among the {len(symbols)} of the dictionary "
            f"({len(unknown)} such labels in all); make labels and dictionary again together"
        )
    offsets, starts = offsets_of(counts), offsets_of(lengths)
    return FrameLabels(path, offsets, _hop(path, np.diff(offsets), np.asarray(n_samples)), file, starts, table)


class _Table(dict):
    """From labels as bytes to their index in the dictionary, -1 for unknown ones; 05 is taken for 5."""

    def __missing__(self, label):
        plain = label.lstrip(b"0") or b"0"
        return self[plain] if label.isdigit() and plain != label and plain in self else -1


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
        raise InputError(
            f"{path}:{i + 1}: {counts[i]} labels, but the audio ({n_samples[i]} samples) has {expected[i]} frames at a hop of {hop}"
            f"{f', which {stated.name} states' if stated.is_file() else ''}; "
            f"{int(wrong.sum())} of {len(counts)} lines do not fit; make the labels again from this manifest"
        )
    return hop
