"""Predicting audio files outside of any manifest: whole, or as a time line of windows; optionally calibrated for a new speaker."""

import contextlib
import csv
import json
import logging
import os
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch

from ..core.errors import InputError
from ..core.parallel import cores, pool
from ..corpus import audio
from ..corpus.manifest import UNKNOWN_SPEAKER, Split
from .inference import run

logger = logging.getLogger("emohubert")

LONGEST_SECONDS = 120.0
"""A longer recording goes through the model in windows only: attention takes memory with the square of the length."""
_FILES, _PARTS = 512, 4096  # files and parts of files that are under way at once
_BLOCK = 300 * audio.SAMPLE_RATE  # of a recording that is cut into windows, what is decoded at once


@dataclass
class FilePrediction:
    """What a model says about one file.

    Attributes:
        index: place in the list of files.
        path: of the file.
        spans: int64 (parts, 2): first sample of each part and the one after its last, at 16 kHz.
        values: float64 (parts, classes), probabilities, or (parts, dimensions).
        embeddings: float32 (parts, width), pooled vectors, or None where they are not wanted.
        error: InputError that says why there is nothing else, or None.
        speaker, heard: with a calibration, the speaker's name, and how many of the speaker's parts each part's calibration
            comes from, itself included.
    """

    index: int
    path: str
    spans: np.ndarray | None = None
    values: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    error: InputError | None = None
    speaker: str | None = None
    heard: list = field(default_factory=list)


def find_files(paths):
    """The audio files that paths name: files as they are, folders with everything below them in the order of names.

    In folders, hidden files and those whose ending no audio format has are left out, and counted in the log.

    Args:
        paths: of files and folders.

    Returns:
        list of str, each file once.

    Raises:
        InputError: a folder holds no audio.
    """
    endings = audio.EXTENSIONS | {f".{name.lower()}" for name in soundfile.available_formats()} | {".aifc", ".oga", ".wave", ".snd"}
    found = {}
    for path in map(str, paths):
        if not os.path.isdir(path):
            found[path] = None
            continue
        below, other = [], Counter()
        for folder, folders, names in _walk(path):
            other["hidden folders"] += sum(name.startswith(".") for name in folders)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                ending = os.path.splitext(name)[1].lower()
                if name.startswith("."):
                    other["hidden"] += 1
                elif ending in endings:
                    below.append(os.path.join(folder, name))
                else:
                    other[ending or "without an ending"] += 1
        if other.total():
            counts = ", ".join(f"{n} {ending}" for ending, n in other.most_common() if n)
            logger.info("%s: files that are not audio by their names are left out: %s", path, counts)
        if not below:
            raise InputError(f"{path}: holds no file with the ending of an audio format; name the files themselves, or another folder")
        found |= dict.fromkeys(below)
    return list(found)


def _walk(folder):
    """os.walk that follows links, but into no folder twice."""
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield where, folders, names


def windows(n_samples, window=None, hop=None):
    """Cut a recording into windows: int64 (parts, 2) of first sample and the one after the last.

    Windows begin every `hop`; the last one ends with the recording, so it may begin sooner after its neighbour. A recording
    no longer than a window is one part.

    Args:
        n_samples: length of the recording.
        window, hop: in samples, hop ≤ window; without a window the recording is one part.
    """
    if window is None or n_samples <= window:
        return np.array([[0, n_samples]], dtype=np.int64)
    starts = np.arange(0, n_samples - window + hop, hop, dtype=np.int64)
    starts[-1] = n_samples - window
    return np.stack([starts, starts + window], axis=1)


def predict_files(
    task,
    model,
    paths,
    window=None,
    hop=None,
    longest=LONGEST_SECONDS,
    batch_seconds=100.0,
    device="cpu",
    workers=0,
    padded=None,
    embeddings=False,
    speaker=UNKNOWN_SPEAKER,
):
    """Predict audio files of any format, rate and length.

    Args:
        task, model: from `checkpoints.load_trained`.
        paths: list of str.
        window, hop: of a time line, in seconds; by default files are predicted whole.
        longest: without a window, seconds of the longest file that is predicted.
        batch_seconds, device, workers, padded: as for `inference.run`.
        embeddings: keep the pooled vectors.
        speaker: who is heard in all files, see `check_speaker`; by default the unknown speaker.

    Yields:
        A FilePrediction for every file, also for those that cannot be predicted; not in order (see `in_order`), but never
        more than a few hundred files ahead.

    Raises:
        InputError: window or hop make no sense.
    """
    cut = _cut(window, hop, longest)
    options = (window is not None, embeddings, batch_seconds, device, workers, padded, speaker)
    for first in range(0, len(paths), _FILES):
        measured = pool(workers or cores()).map(_measure, range(first, first + _FILES), paths[first : first + _FILES], [cut] * _FILES)
        group, parts = [], 0
        for prediction in measured:
            if prediction.error is not None:
                yield prediction
                continue
            group.append(prediction)
            parts += len(prediction.spans)
            if parts >= _PARTS:
                yield from _predict(task, model, group, *options)
                group, parts = [], 0
        if group:
            yield from _predict(task, model, group, *options)


def _cut(window, hop, longest):
    """A function from a number of samples to spans; it raises InputError for a recording that is too short or too long."""
    if window is None:
        if hop is not None:
            raise InputError("--hop without --window; give both, or neither")
        most = int(longest * audio.SAMPLE_RATE)
    else:
        hop = window if hop is None else hop
        window, hop = round(window * audio.SAMPLE_RATE), round(hop * audio.SAMPLE_RATE)
        if window < audio.RECEPTIVE_FIELD:
            raise InputError(f"--window: {window} samples are under one frame ({audio.RECEPTIVE_FIELD}); use 0.025 s or more")
        if not 0 < hop <= window:
            raise InputError(
                f"--hop: {hop} samples for windows of {window}; use more than 0, and no more than the window: nothing is lost then"
            )
        most = None

    def cut(n_samples):
        if n_samples < audio.RECEPTIVE_FIELD:
            raise InputError(f"{n_samples} samples at 16 kHz are under one frame ({audio.RECEPTIVE_FIELD}); leave the file out")
        if most is not None and n_samples > most:
            raise InputError(
                f"{n_samples / audio.SAMPLE_RATE:.1f} s are more than --longest {longest:g}; use --window for a time line, or a larger --longest"
            )
        return windows(n_samples, window, hop)

    return cut


def _measure(index, path, cut):
    try:
        n_samples = audio.probe(path).n_samples
    except InputError as error:
        return FilePrediction(index, path, error=error)
    except OSError as error:
        return FilePrediction(index, path, error=InputError(f"{path}: cannot be read ({error.strerror}); look at its permissions"))
    try:
        return FilePrediction(index, path, cut(n_samples))
    except InputError as error:
        return FilePrediction(index, path, error=InputError(f"{path}: {error}"))


def _predict(task, model, files, cached, embeddings, batch_seconds, device, workers, padded, speaker):
    """The predictions of files with spans; with `cached`, a file is decoded in blocks that its windows share."""
    owner = np.repeat(np.arange(len(files)), [len(f.spans) for f in files])
    spans = np.concatenate([f.spans for f in files])
    row = np.concatenate([np.arange(len(f.spans)) for f in files])
    paths = [files[i].path for i in owner]
    split = Split(Path("."), "files", Path(), paths, spans[:, 1] - spans[:, 0], speakers=[speaker] * len(paths))
    dataset = task.make_dataset(split, training=False, targets=np.zeros(len(paths), dtype=np.int64))
    read = _Blocks() if cached else audio.read

    def load(index):
        start, stop = map(int, spans[index])
        samples = _read(read, paths[index], start, stop)
        source = torch.from_numpy(audio.normalise(samples) if dataset.normalise else samples)
        return {"id": index, "source": source, "target": dataset.targets[index], **dataset.drawn(index, audio.n_frames(len(samples)))}

    missing = [len(f.spans) for f in files]
    with contextlib.closing(run(task, model, dataset, load, batch_seconds, device, workers, padded)) as found:
        for outcome in found:
            which = owner[outcome.index]
            file = files[which]
            missing[which] -= 1
            if outcome.error is not None:
                file.error = file.error or outcome.error
            else:
                if file.values is None:
                    file.values = np.empty((len(file.spans), len(outcome.values)))
                    file.embeddings = np.empty((len(file.spans), len(outcome.embedding)), np.float32) if embeddings else None
                file.values[row[outcome.index]] = outcome.values
                if embeddings:
                    file.embeddings[row[outcome.index]] = outcome.embedding
            if not missing[which]:
                files[which] = None
                yield file if file.error is None else FilePrediction(file.index, file.path, error=file.error)


def _read(read, path, start, stop):
    try:
        samples = read(path, start, stop)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); restore it") from error
    if len(samples) != stop - start:
        raise InputError(f"{path}: became shorter while it was read; predict it again")
    return samples


class _Blocks:
    """Reads parts of recordings, each block of a recording decoded once; the last few blocks are kept."""

    _KEPT = 4

    def __init__(self):
        self._blocks, self._lock = OrderedDict(), threading.Lock()

    def __call__(self, path, start, stop):
        key = (path, start // _BLOCK)
        first = start // _BLOCK * _BLOCK
        with self._lock:  # windows come in order: a second thread nearly always wants the same block
            block = self._blocks.get(key)
            if block is None or first + len(block) < stop:
                block = audio.read(path, first, max(first + _BLOCK, stop) + stop - start)
                self._blocks[key] = block
            self._blocks.move_to_end(key)
            while len(self._blocks) > self._KEPT:
                self._blocks.popitem(last=False)
        return block[start - first : stop - first]


def in_order(predictions):
    """Predictions of files in the order of their list."""
    waiting, expected = {}, 0
    for prediction in predictions:
        waiting[prediction.index] = prediction
        while expected in waiting:
            yield waiting.pop(expected)
            expected += 1


# --- a new speaker ----------------------------------------------------------------------------------------------------


def check_speaker(task, speaker):
    """Raise InputError unless a model has an embedding of a speaker.

    Args:
        task: from `checkpoints.load_trained`, with the speakers of `adaptation.NewSpeakers.add_to`.
        speaker: id.
    """
    if speaker not in task.speakers:
        known = f"{', '.join(task.speakers[:5])}, … ({len(task.speakers)})" if task.speakers else "nobody"
        raise InputError(f"--speaker-id {speaker}: the model has no embedding of this speaker, it knows {known}; give --speaker-vectors")
    if str(task.model_cfg.head_speaker) == "mfcc" and speaker not in task.state.training_voices["ids"]:
        raise InputError(
            f"--speaker-id {speaker}: the model's head wants the speaker's mean MFCCs, which are known of training speakers only; "
            "leave it out, or use tools/evaluate.py on a manifest"
        )


# --- output -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """What a line of output holds.

    Attributes:
        classes: names, or empty for dimensions.
        dimensions: names, or empty for classes.
        timeline: with start and end in seconds.
        calibrated: with speaker and heard.
        width: characters of the longest path, for tables.
    """

    classes: list
    dimensions: list
    timeline: bool = False
    calibrated: bool = False
    width: int = 20

    @property
    def texts(self):
        """Columns before the numbers that the model predicts."""
        columns = ["file"] + ["start", "end"] * self.timeline + ["speaker", "heard"] * self.calibrated
        return columns + ["emotion"] * bool(self.classes)

    @property
    def numbers(self):
        """Names of the model's outputs."""
        return list(self.classes or self.dimensions)

    def rows(self, prediction):
        """(texts and times of a part, its values) for each part of a file."""
        for part, values in enumerate(prediction.values):
            row = [prediction.path]
            if self.timeline:
                row += [round(int(n) / audio.SAMPLE_RATE, 6) for n in prediction.spans[part]]
            if self.calibrated:
                row += [prediction.speaker, prediction.heard[part]]
            if self.classes:
                row.append(self.classes[int(np.argmax(values))])
            yield row, values


def write_table(f, predictions, layout):
    """Aligned columns for reading; numbers have three digits."""
    columns = [*layout.texts, *layout.numbers]
    longest = {"file": layout.width, "start": 9, "end": 9, "speaker": 8, "heard": 5, "emotion": max(map(len, [*layout.classes, "emotion"]))}
    widths = [longest.get(name, 0) for name in layout.texts] + [max(len(name), 6) for name in layout.numbers]

    def line(cells):
        aligned = [
            c.ljust(w) if name in ("file", "speaker", "emotion") else c.rjust(w) for c, w, name in zip(cells, widths, columns, strict=True)
        ]
        f.write("  ".join(aligned).rstrip() + "\n")

    line(columns)
    for prediction in predictions:
        for row, values in layout.rows(prediction):
            line([f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] + [f"{v:.3f}" for v in values])


def write_json_lines(f, predictions, layout):
    """One JSON object a line: `file`, `start`, `end`, `speaker`, `heard`, `emotion` as they apply, `probabilities` or `dimensions`."""
    key = "probabilities" if layout.classes else "dimensions"
    for prediction in predictions:
        for row, values in layout.rows(prediction):
            numbers = {name: round(float(v), 8) for name, v in zip(layout.numbers, values, strict=True)}
            f.write(json.dumps({**dict(zip(layout.texts, row, strict=True)), key: numbers}, ensure_ascii=False) + "\n")


def write_csv(f, predictions, layout):
    """CSV with a header; probabilities are the columns `p_CLASS`."""
    writer = csv.writer(f, lineterminator="\n")
    writer.writerow([*layout.texts, *(f"p_{name}" if layout.classes else name for name in layout.numbers)])
    for prediction in predictions:
        writer.writerows([*row, *(f"{v:.8g}" for v in values)] for row, values in layout.rows(prediction))


FORMATS = {"table": write_table, "json": write_json_lines, "csv": write_csv}
