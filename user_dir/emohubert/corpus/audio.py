"""Reading speech as 16 kHz mono, and the arithmetic between samples and frames (the only place that knows 400 and 320).

A path may name a member of an uncompressed tar, `shards/000003.tar:OFFSET:SIZE`: those bytes are read as if they were a file.
"""

import hashlib
import io
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ..core.errors import InputError
from . import containers

SAMPLE_RATE = 16_000
RECEPTIVE_FIELD = 400  # samples that one frame of the convolutional encoder sees (25 ms)
HOP = 320  # samples between two frames (20 ms)
FRAME_RATE = SAMPLE_RATE / HOP
_PACKED = re.compile(r"(.+\.tar):(\d+):(\d+)", re.DOTALL)
_BUFFER = 1 << 16  # bytes of a tar that are read at once
_BLOCK = 1 << 18  # samples that `content_of` decodes at a time
EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".au", ".opus", ".sph", ".w64", ".rf64", ".caf"})


def n_frames(n_samples, hop=HOP):
    """Frames of `n_samples` samples (or of an array or tensor of them): `(n_samples - 400) // hop + 1`, 0 under 400 samples."""
    frames = (n_samples - RECEPTIVE_FIELD) // hop + 1
    return max(frames, 0) if isinstance(frames, int) else frames.clip(min=0)


def _length(f, path, wanted=None):
    """Samples at 16 kHz of an open recording; InputError if they are not as many as wanted."""
    length = -(-f.frames * SAMPLE_RATE // f.samplerate)
    if wanted not in (None, length):
        found = f"{length} samples at 16 kHz ({f.frames} at {f.samplerate} Hz)"
        raise InputError(f"{path} has {found}, the manifest says {wanted}; restore the file, or make the manifest again")
    return length


@dataclass(frozen=True)
class Location:
    """Where the bytes of a recording are: in a file of its own, or from `start` on in a tar."""

    file: Path
    start: int | None = None
    size: int | None = None

    def stat(self):
        """(bytes, time of the last change in ns); OSError if there is no such file."""
        found = self.file.stat()
        return found.st_size if self.size is None else self.size, found.st_mtime_ns


def locate(path):
    """The Location of a recording."""
    found = _PACKED.fullmatch(str(path))
    return Location(Path(found[1]), int(found[2]), int(found[3])) if found else Location(Path(path))


def is_packed(path):
    """Whether a path names a member of a tar."""
    return locate(path).size is not None


class _Part(io.FileIO):
    """A part of a file as a file of its own, for reading."""

    def __init__(self, location):
        super().__init__(location.file)
        self._start, self._size = location.start, location.size
        self.seek(0)

    def tell(self):
        return super().tell() - self._start

    def seek(self, offset, whence=os.SEEK_SET):
        base = (0, self.tell() if whence == os.SEEK_CUR else 0, self._size)[whence]
        return super().seek(self._start + max(base + offset, 0)) - self._start

    def readinto(self, buffer):
        return super().readinto(memoryview(buffer)[: max(self._size - self.tell(), 0)])


def _stream(location):
    return location.file.open("rb") if location.size is None else io.BufferedReader(_Part(location), _BUFFER)


def probe(path, n_samples=None):
    """Samples at 16 kHz by a file's header; InputError if it is missing, not audio, shorter than that (WAV, FLAC), or not `n_samples`."""
    path = Path(path)
    with opened(path) as f:
        if f.format == "FLAC" and f.frames > 0:
            _decode(f, f.frames - 1, f.frames, path)
        return _length(f, path, n_samples)


def read(path, start=0, stop=None, n_samples=None):
    """Read a file, or the part [start, stop) of it, as mono at 16 kHz: float32 (stop - start,), full scale ±1, channels averaged. `start`,
    `stop` and `n_samples`, the length that the file must have, are in samples at 16 kHz. A part equals the same slice of the whole file,
    also when it is resampled. InputError if it is missing, unreadable, truncated, not finite, or of another length."""
    path = Path(path)
    with opened(path) as f:
        length = _length(f, path, n_samples)
        stop = length if stop is None else min(stop, length)
        if not 0 <= start <= stop:
            raise InputError(f"{path}: there is no part from sample {start} to {stop}, the file has {length} at 16 kHz; correct the times")
        if f.samplerate == SAMPLE_RATE:
            return _decode(f, start, stop, path)
        return _read_resampled(f, start, stop, path)


def normalise(waveform):
    """Zero mean and unit variance over the waveform, as fairseq's `layer_norm`; HuBERT large expects it."""
    mean = waveform.mean(dtype=np.float64)
    variance = waveform.var(dtype=np.float64)
    return ((waveform - mean) / math.sqrt(variance + 1e-5)).astype(np.float32)


def content_of(path):
    """(hash of the decoded samples at 16 bits, or "" for digital silence; length at 16 kHz): the same for a WAV file and its FLAC copy.
    InputError if it cannot all be read."""
    digest, frames, silent = hashlib.sha256(), 0, True
    try:
        with opened(path) as f:
            while len(block := f.read(_BLOCK, dtype="float32", always_2d=True)):
                if not np.isfinite(block).all():
                    raise InputError(f"{path}: holds samples that are not numbers (NaN or infinite); restore it")
                digest.update(np.rint(np.clip(block, -1, 1) * 32768).clip(max=32767).astype("<i2").tobytes())
                frames += len(block)
                silent = silent and not block.any()
            if frames != f.frames:
                raise InputError(f"{path}: truncated, {frames} of {f.frames} samples can be read; restore it")
            return "" if silent else digest.hexdigest(), _length(f, path)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: damaged after sample {frames} ({error.error_string}); restore it") from error


def opened(path):
    """A recording as a `soundfile.SoundFile`; InputError if it is missing, empty, not audio, or not all there (see `containers`)."""
    location = locate(path)
    if not os.path.isfile(location.file):
        raise InputError(f"{location.file}: no such audio file, or its folder is closed; restore it or remove it from the manifest")
    size = location.file.stat().st_size
    if location.size is not None and size < location.start + location.size:
        raise InputError(f"{path}: the tar ends at byte {size}; restore it, or pack the audio again with tools/pack_audio.py")
    if 0 in (size, location.size):
        raise InputError(f"{path}: the file is empty; restore it or remove it from the manifest")
    try:
        found = soundfile.SoundFile(path if location.size is None else _stream(location))
    except soundfile.LibsndfileError as error:
        with _stream(location) as f:
            if f.read(20).startswith(b"version https://git-"):
                raise InputError(f"{path}: a pointer of git-lfs, not the audio itself; get it with: git lfs pull") from None
        raise InputError(f"{path}: cannot be read as audio ({error.error_string}); restore it or remove it from the manifest") from error
    except TypeError as error:  # soundfile wants to be told the rate of a .raw file
        raise InputError(f"{path}: has no header that tells its sample rate; convert it to WAV or FLAC") from error
    except OSError as error:
        raise InputError(f"{location.file}: cannot be read ({error.strerror}); make it readable") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: the file name is not UTF-8; rename the file") from error
    containers.check(lambda: _stream(location), size if location.size is None else location.size, found, path)
    return found


def _call_each_function_once():
    """cffi looks a function of libsndfile up at its first call, and aborts the process, rarely, where threads make that call at once."""
    soundfile.write(memory := io.BytesIO(), np.zeros(2), SAMPLE_RATE, format="WAV")
    memory.seek(0)
    with soundfile.SoundFile(memory) as f:
        _decode(f, 1, 2, f.extra_info)
    try:
        soundfile.SoundFile(os.devnull)
    except soundfile.LibsndfileError as error:
        str(error)


def _decode(f, start, stop, path):
    skipped = start if f.format in ("MP3", "OGG") else 0  # decoders that, after a seek, give other samples for a while
    try:
        f.seek(start - skipped)
        samples = f.read(stop - start + skipped, dtype="float32", always_2d=True)[skipped:]
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: damaged at sample {start} or after ({error.error_string}); restore it") from error
    if len(samples) != stop - start:
        raise InputError(f"{path}: truncated, {start + len(samples)} of {f.frames} samples can be read; restore it")
    if not np.isfinite(samples).all():
        raise InputError(f"{path}: holds samples that are not finite numbers (NaN or infinity); restore it or remove it from the manifest")
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)


def _read_resampled(f, start, stop, path):
    """Resample just [start, stop): whole periods of the polyphase filter, with its support on both sides, then a slice."""
    up, down = _ratio(f.samplerate)
    margin = math.ceil(20 * max(up, down) / (up * down)) + 1  # the filter of resample_poly reaches 10 × max(up, down) taps
    first = max(start // up - margin, 0)
    last = -(-stop // up) + margin
    source = _decode(f, first * down, min(last * down, f.frames), path)
    return resampled(source, f.samplerate)[start - first * up : stop - first * up]


def resampled(waveform, rate):
    """float32 samples of some rate (n) at 16 kHz, as `read` gives them: (⌈n · 16 000 / rate⌉)."""
    from scipy.signal import resample_poly  # takes half a second to import

    return resample_poly(waveform, *_ratio(rate)).astype(np.float32, copy=False)


def _ratio(rate):
    divisor = math.gcd(SAMPLE_RATE, rate)
    return SAMPLE_RATE // divisor, rate // divisor


_call_each_function_once()
