"""Which parts of recordings are predicted: windows, segments of a table or an RTTM file, or where a voice activity detector hears speech."""

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.errors import InputError, need
from ..corpus import audio
from ..corpus.manifest import UNKNOWN_SPEAKER
from ..corpus.tables import read_delimited, read_text

_SHORTEST = audio.RECEPTIVE_FIELD / audio.SAMPLE_RATE
_RTTM = "SPEAKER FILE CHANNEL START DURATION <NA> <NA> NAME"


@dataclass
class Segments:
    """Parts of a recording, in order: `spans`, [first sample, the one after the last] at 16 kHz, None: the whole recording; `speakers`."""

    spans: list = field(default_factory=list)
    speakers: list = field(default_factory=list)

    def of(self, path, n_samples):
        """int64 (parts, 2) in a recording of so many samples; an end up to one frame beyond it is its end. InputError: beyond it, or under
        one frame is left."""
        spans = np.array([(0, n_samples) if span is None else span for span in self.spans], dtype=np.int64)
        first, last = spans.max(axis=0)
        if last > n_samples + audio.HOP or first > n_samples - audio.RECEPTIVE_FIELD:
            what, late = ("begins", first) if last <= n_samples + audio.HOP else ("ends", last)
            late, end = (f"{n / audio.SAMPLE_RATE:.3f} s" for n in (late, n_samples))
            raise InputError(f"{path}: a segment {what} at {late}, the recording ends at {end}; correct the times")
        return spans.clip(max=n_samples)


def read_segments(path, audio_files=()):
    """{audio file: Segments} of an RTTM file, whose file names are those of `audio_files` without folder and ending; or of a table with the
    columns path (or file; relative to the table's folder), and where there are any, start and end in seconds, and speaker. InputError names
    the line that makes no sense, or what has no audio."""
    path, found = Path(path), {}
    for line, name, start, end, speaker in _rttm(path, audio_files) if path.suffix.lower() == ".rttm" else _table(path):
        segments = found.setdefault(name, Segments())
        segments.spans.append(None if start is None else _span(f"{path}:{line}", start, end))
        segments.speakers.append(speaker)
    if not found:
        raise InputError(f"{path}: holds no segment; it should list lines of {_RTTM}")
    return found


def _rttm(path, audio_files):
    named = defaultdict(list)
    for name in audio_files:
        named[Path(name).stem].append(name)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        fields = line.split()
        if not fields or fields[0] != "SPEAKER":
            continue
        if len(fields) < 8:
            raise InputError(f"{path}:{number}: {len(fields)} fields; expected {_RTTM}")
        if len(found := named[fields[1]]) != 1:
            what = f"{found[0]} and {found[1]} are both" if found else "no audio file is"
            raise InputError(f"{path}:{number}: {what} named {fields[1]}; give its PATH, or its folder's{' alone' if found else ', too'}")
        start, duration = _seconds(path, number, fields[3]), _seconds(path, number, fields[4])
        yield number, found[0], start, start + duration, fields[7]


def _table(path):
    columns, rows = read_delimited(path)
    name = "path" if "path" in columns else "file"
    times = [c for c in ("start", "end") if c in columns]
    if name not in columns or len(times) == 1:
        raise InputError(f"{path}:1: has the columns {', '.join(columns)}; needed is path, and start and end together, or neither")
    for number, row in rows:
        start, end = (_seconds(path, number, row[c]) for c in times) if times else (None, None)
        yield number, str(path.parent / row[name]), start, end, row.get("speaker") or UNKNOWN_SPEAKER


def _seconds(path, line, text):
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise InputError(f"{path}:{line}: “{text}” is not a time in seconds; correct it")
    return value


def _span(where, start, end):
    if end - start < _SHORTEST:
        raise InputError(f"{where}: from {start:g} to {end:g} s, under one frame ({_SHORTEST} s); correct the times, or leave the line out")
    return [round(start * audio.SAMPLE_RATE), round(end * audio.SAMPLE_RATE)]


class VoiceActivity:
    """Speech in recordings, by Silero VAD (the extra `vad`): a function from a path and its number of samples to int64 (parts, 2). Speech
    of more than `longest` seconds is cut where it pauses."""

    def __init__(self, longest):
        silero = need("silero_vad", "vad", "--vad")
        self._model, self._stamps = silero.load_silero_vad(), silero.get_speech_timestamps
        self._longest, self._lock = longest, threading.Lock()  # the model has a state

    def __call__(self, path, n_samples):
        """The spans of speech in a file of so many samples; InputError where there is none."""
        import torch

        waveform = torch.from_numpy(audio.read(path))
        with self._lock, torch.inference_mode():
            found = self._stamps(waveform, self._model, sampling_rate=audio.SAMPLE_RATE, max_speech_duration_s=self._longest)
        spans = [(part["start"], min(part["end"], n_samples)) for part in found if part["end"] - part["start"] >= audio.RECEPTIVE_FIELD]
        if not spans:
            raise InputError(f"{path}: no speech was found in it; leave --vad out, or the file")
        return np.array(spans, dtype=np.int64)
