"""Predicting audio files outside of any manifest: whole, or as a time line of windows; and writing what was predicted."""

import contextlib
import csv
import functools
import itertools
import json
import logging
import os
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.parallel import cores, pool
from ..corpus import audio
from ..corpus.build import LeftOut, find_audio
from ..corpus.manifest import NO_EMOTION, UNKNOWN_SPEAKER, Split

logger = logging.getLogger("emohubert")

LONGEST_SECONDS = 120.0
"""A longer recording goes through the model in windows only: attention takes memory with the square of the length."""
_FILES, _PARTS = 512, 4096  # files and parts of files that are under way at once
_BLOCK = 300 * audio.SAMPLE_RATE  # of a recording that is cut into windows, what is decoded at once


@dataclass
class FilePrediction:
    """What a model says about one file."""

    index: int  # in the list of files
    path: str
    spans: np.ndarray | None = None  # int64 (parts, 2): first sample of each part and the one after its last, at 16 kHz
    values: np.ndarray | None = None  # float64 (parts, classes), probabilities, or (parts, dimensions)
    embeddings: np.ndarray | None = None  # float32 (parts, width), pooled vectors; None where they are not wanted
    error: InputError | None = None  # why there is nothing else
    speakers: list = field(default_factory=list)  # of `one_by_one`, as is, a part's each
    heard: list = field(default_factory=list)  # how many of the speaker's parts there were with each, itself included


def find_files(paths):
    """The audio files that paths name, each once: files as they are, folders with everything below them in the order of names. There, hidden
    files and those without the ending of an audio format are left out, and counted in the log; InputError for a folder without audio."""
    found = {}
    for path in map(str, paths):
        if not os.path.isdir(path):
            found[path] = None
            continue
        below = dict.fromkeys(find_audio(path, LeftOut()))
        others = Counter(p.suffix.lower() for p in Path(path).rglob("*") if p.is_file() and p.relative_to(path).as_posix() not in below)
        if others:
            counts = ", ".join(f"{n} {ending or 'without an ending'}" for ending, n in others.most_common())
            logger.info("%s: files that are hidden or not audio by their names are left out: %s", path, counts)
        if not below:
            raise InputError(f"{path}: holds no file with the ending of an audio format; name the files themselves, or another folder")
        found |= dict.fromkeys(os.path.join(path, name) for name in below)
    return list(found)


def windows(n_samples, window=None, hop=None):
    """Cut a recording into windows: int64 (parts, 2) of first sample and the one after the last. They begin every `hop` samples, but the
    last one, which ends with the recording; a recording no longer than a window is one part."""
    if window is None or n_samples <= window:
        return np.array([[0, n_samples]], dtype=np.int64)
    starts = np.arange(0, n_samples - window + hop, hop, dtype=np.int64)
    starts[-1] = n_samples - window
    return np.stack([starts, starts + window], axis=1)


def predict_files(
    task, model, paths, window=None, hop=None, longest=LONGEST_SECONDS, parts_of=None, embeddings=False, speaker=UNKNOWN_SPEAKER, **options
):
    """Predict audio files of any format, rate and length.

    Args:
        task, model: from `load_trained`.
        window, hop: of a time line, in seconds; by default files are predicted whole.
        longest: without a window, seconds of the longest file, or part of one, that is predicted.
        parts_of: (path, samples) → int64 (parts, 2), see `segments`: the parts that are predicted, in place of the whole file.
        embeddings: keep the pooled vectors.
        speaker: of all files, see `check_speaker`.
        options: batch_seconds, device, workers, padded of `inference.run`.

    Yields:
        A FilePrediction for every file, also for one that cannot be predicted; up to a few hundred files out of order (see `in_order`).
    """
    cut = _cutter(window, hop, longest, parts_of)

    def measure(index, path):
        try:
            return FilePrediction(index, path, cut(path, audio.probe(path)))
        except InputError as error:
            return FilePrediction(index, path, error=error)

    in_blocks = window is not None or parts_of is not None
    predict = functools.partial(_predict, task, model, in_blocks=in_blocks, embeddings=embeddings, speaker=speaker, **options)
    for first in range(0, len(paths), _FILES):
        group, parts = [], 0
        for prediction in pool(options.get("workers") or cores()).map(measure, range(first, first + _FILES), paths[first : first + _FILES]):
            if prediction.error is not None:
                yield prediction
                continue
            group.append(prediction)
            parts += len(prediction.spans)
            if parts >= _PARTS:
                yield from predict(group)
                group, parts = [], 0
        if group:
            yield from predict(group)


def _cutter(window, hop, longest, parts_of):
    """A function from a path and its number of samples to spans; InputError for a recording that is too short or too long."""
    if window is None and hop is not None:
        raise InputError("--hop without --window; give both, or neither")
    if window is not None:
        window, hop = (round((window if seconds is None else seconds) * audio.SAMPLE_RATE) for seconds in (window, hop))
        if window < audio.RECEPTIVE_FIELD:
            raise InputError(f"--window: {window} samples are under one frame ({audio.RECEPTIVE_FIELD}); use 0.025 s or more")
        if not 0 < hop <= window:
            raise InputError(f"--hop: {hop} samples for windows of {window}; use from 1 to the window's, so that nothing is lost")

    def cut(path, n_samples):
        if n_samples < audio.RECEPTIVE_FIELD:
            raise InputError(f"{path}: {n_samples} samples at 16 kHz are under one frame ({audio.RECEPTIVE_FIELD}); leave the file out")
        spans = windows(n_samples, window, hop) if parts_of is None else parts_of(path, n_samples)
        seconds = np.diff(spans).max() / audio.SAMPLE_RATE
        if window is None and seconds > longest:
            raise InputError(f"{path}: {seconds:.1f} s are more than --longest {longest:g}; use --window for a time line, or raise it")
        return spans

    return cut


def _predict(task, model, files, in_blocks, embeddings, speaker, **options):
    """The predictions of files with spans; with `in_blocks`, a file is decoded in blocks that its parts share."""
    parts = [len(f.spans) for f in files]
    owner, part = np.repeat(np.arange(len(files)), parts), np.concatenate([np.arange(n) for n in parts])
    spans, missing = np.concatenate([f.spans for f in files]), parts.copy()
    read, paths = _Blocks() if in_blocks else audio.read, [files[i].path for i in owner]

    def samples_of(index):
        samples = read(paths[index], *map(int, spans[index]))
        if len(samples) != np.diff(spans[index]):
            raise InputError(f"{paths[index]}: became shorter while it was read; predict it again")
        return samples

    with contextlib.closing(predict_parts(task, model, paths, np.diff(spans)[:, 0], samples_of, speaker, **options)) as found:
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
                file.values[part[outcome.index]] = outcome.values
                if embeddings:
                    file.embeddings[part[outcome.index]] = outcome.embedding
            if not missing[which]:
                files[which] = None  # its memory is the receiver's
                yield file if file.error is None else FilePrediction(file.index, file.path, error=file.error)


def predict_parts(task, model, names, lengths, samples_of, speaker=UNKNOWN_SPEAKER, **options):
    """`inference.run` over recordings at 16 kHz that no manifest lists: an Outcome of each. `names`: for messages; `lengths`: int64 (n),
    samples; `samples_of`: index → float32 samples; `speaker`: of all of them."""
    import torch

    from .inference import run

    split = Split(Path("."), "files", Path(), names, lengths, speakers=[speaker] * len(names))
    dataset = task.make_dataset(split, training=False, targets=np.zeros(len(names), dtype=np.int64))

    def load(index):
        samples = samples_of(index)
        source = torch.from_numpy(audio.normalise(samples) if dataset.normalise else samples)
        return {"id": index, "source": source, "target": dataset.targets[index], **dataset.drawn(index, audio.n_frames(len(samples)))}

    return run(task, model, dataset, load, **options)


class _Blocks:
    """Reads parts of recordings, each block of a recording decoded once; the last blocks, of 80 minutes, are kept."""

    def __init__(self):
        self._read, self._lock = functools.lru_cache(16)(audio.read), threading.Lock()

    def __call__(self, path, start, stop):
        first = start // _BLOCK * _BLOCK
        with self._lock:  # parts come in order: a second thread nearly always wants the same block
            blocks = [self._read(path, begin, begin + _BLOCK) for begin in range(first, stop, _BLOCK)]
        return (blocks[0] if len(blocks) == 1 else np.concatenate(blocks))[start - first : stop - first]


def in_order(predictions):
    """Predictions of files in the order of their list."""
    waiting, expected = {}, 0
    for prediction in predictions:
        waiting[prediction.index] = prediction
        while expected in waiting:
            yield waiting.pop(expected)
            expected += 1


def one_by_one(predictions, speaker_of, new_speaker):
    """Yield each FilePrediction (with embeddings), its parts predicted by what was received of their speaker so far, in this order; parts of
    a recording are utterances. `speaker_of`: path → speaker, or a list of each part's; parts of the unknown speaker stay as they are.
    `new_speaker`: makes a speaker's function from an embedding to values."""
    known, heard = defaultdict(new_speaker), Counter()
    for prediction in predictions:
        if prediction.error is None:
            names = speaker_of(prediction.path)
            names = [names] * len(prediction.values) if isinstance(names, str) else names
            values, counts = [], []
            for name, embedding, alone in zip(names, prediction.embeddings, prediction.values, strict=True):
                heard[name] += 1
                counts.append(heard[name])
                values.append(alone if name == UNKNOWN_SPEAKER else known[name](embedding))
            prediction = replace(prediction, values=np.stack(values), speakers=names, heard=counts)
        yield prediction


def check_speaker(task, speaker):
    """Raise InputError unless a model has an embedding of a speaker; `task` has the speakers of `NewSpeakers.add_to`."""
    if speaker not in task.speakers:
        known = f"{', '.join(task.speakers[:5])}, … ({len(task.speakers)})" if task.speakers else "nobody"
        raise InputError(f"--speaker-id {speaker}: the model has no embedding of this speaker, it knows {known}; give --speaker-vectors")
    if str(task.model_cfg.head_speaker) == "mfcc" and speaker not in task.state.training_voices["ids"]:
        what = "the model's head wants a speaker's mean MFCCs, which are known of training speakers only"
        raise InputError(f"--speaker-id {speaker}: {what}; leave it out, or use tools/evaluate.py on a manifest")


@dataclass(frozen=True)
class Layout:
    """What a line of output holds: `classes`, `dimensions`, `others` (column → values), names (any may be empty), with a `timeline` start and
    end in seconds, with `speakers` speaker and heard. `width`: characters of the longest path, for tables. Under `min_confidence` the
    emotion is “-”."""

    classes: list
    dimensions: list
    timeline: bool = False
    speakers: bool = False
    width: int = 20
    min_confidence: float = 0.0
    others: dict = field(default_factory=dict)

    @property
    def columns(self):
        """Columns before the numbers that the model predicts."""
        return ["file", *["start", "end"] * self.timeline, *["speaker", "heard"] * self.speakers, *["emotion"] * bool(self.classes)]

    @property
    def numbers(self):
        """Names of the model's outputs."""
        return [*self.classes, *self.dimensions, *(f"{column}_{value}" for column, values in self.others.items() for value in values)]

    def rows(self, predictions):
        """(the values of `columns`, those of `numbers`) for each part of each file."""
        for file in predictions:
            for part, values in enumerate(file.values):
                times = [round(int(n) / audio.SAMPLE_RATE, 6) for n in file.spans[part]] if self.timeline else []
                speaker = [file.speakers[part], file.heard[part]] if self.speakers else []
                yield [file.path, *times, *speaker, *([self.decided(values)] if self.classes else [])], values

    def decided(self, probabilities):
        """The most probable class, or “-”, an abstention."""
        best = int(np.argmax(probabilities[: len(self.classes)]))
        return self.classes[best] if probabilities[best] >= self.min_confidence else NO_EMOTION


def write_table(f, predictions, layout):
    """Aligned columns for reading; numbers have three digits."""
    emotion = max(map(len, [*layout.classes, "emotion"]))
    places = {"file": f"<{layout.width}", "start": ">9", "end": ">9", "speaker": "<8", "heard": ">5", "emotion": f"<{emotion}"}
    places = [places[name] for name in layout.columns] + [f">{max(len(name), 6)}" for name in layout.numbers]
    rows = ([*row, *map(float, values)] for row, values in layout.rows(predictions))
    for cells in itertools.chain([[*layout.columns, *layout.numbers]], rows):
        texts = (f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells)
        f.write("  ".join(map(format, texts, places)).rstrip() + "\n")


def write_json_lines(f, predictions, layout):
    """One JSON object a line: `file`, `start`, `end`, `speaker`, `heard`, `emotion`, `probabilities`, `dimensions` as they apply, and an
    object for each column of `others`."""
    names = {"probabilities": layout.classes, "dimensions": layout.dimensions, **layout.others}
    for row, values in layout.rows(predictions):
        numbers = iter([round(float(v), 8) for v in values])
        parts = {key: {name: next(numbers) for name in own} for key, own in names.items() if own}
        f.write(json.dumps({**dict(zip(layout.columns, row, strict=True)), **parts}, ensure_ascii=False) + "\n")


def write_csv(f, predictions, layout):
    """CSV with a header; probabilities of classes are the columns `p_CLASS`."""
    writer = csv.writer(f, lineterminator="\n")
    writer.writerow([*layout.columns, *(f"p_{name}" for name in layout.classes), *layout.numbers[len(layout.classes) :]])
    writer.writerows([*row, *(f"{v:.8g}" for v in values)] for row, values in layout.rows(predictions))


FORMATS = {"table": write_table, "json": write_json_lines, "csv": write_csv}
