"""Reading speech, and the arithmetic between samples and frames (the only place that knows 400 and 320).

Every model here hears 16 kHz mono. Files of another rate or with several channels are converted while they are read.

A path may end in a part of an uncompressed tar, `shards/000003.tar:OFFSET:SIZE`: the bytes of one of its members, which are
read as if they were a file (fairseq writes parts of zip files so). Everything here takes such paths.
"""

import io
import math
import os
import re
import struct
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from ..core.errors import InputError

SAMPLE_RATE = 16_000
RECEPTIVE_FIELD = 400
"""Samples that one frame of the convolutional encoder sees (25 ms)."""
HOP = 320
"""Samples between two frames (20 ms): 50 frames a second."""
FRAME_RATE = SAMPLE_RATE / HOP
_PACKED = re.compile(r"(.+\.tar):(\d+):(\d+)", re.DOTALL)
_BUFFER = 1 << 16
"""Bytes of a tar that are read at once."""
EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".au", ".opus", ".sph", ".w64", ".rf64", ".caf"})


def n_frames(n_samples, hop=HOP):
    """Frames that `n_samples` samples give: `(n_samples - 400) // hop + 1`, 0 under 400 samples. Arrays and tensors work too.

    The default hop is HuBERT's. MFCCs have the same window every 160 samples.
    """
    frames = (n_samples - RECEPTIVE_FIELD) // hop + 1
    return max(frames, 0) if isinstance(frames, int) else frames.clip(min=0)


def n_samples_of(n_frames):
    """The fewest samples that give `n_frames` frames (n_frames >= 1)."""
    return (n_frames - 1) * HOP + RECEPTIVE_FIELD


def resampled_length(n, rate):
    """Samples at 16 kHz that `n` samples at `rate` Hz become."""
    return -(-n * SAMPLE_RATE // rate)


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says. `n_samples` counts at 16 kHz, whatever the rate of the file."""

    frames: int
    rate: int
    channels: int

    @property
    def n_samples(self):
        """Length at 16 kHz."""
        return resampled_length(self.frames, self.rate)


@dataclass(frozen=True)
class Place:
    """Where the bytes of a recording are.

    Attributes:
        file: the file, or the tar that holds them.
        start, size: which bytes of the tar; None of a file of its own.
    """

    file: Path
    start: int | None = None
    size: int | None = None

    def stat(self):
        """(bytes, time of the last change in ns).

        Raises:
            OSError: no such file.
        """
        found = self.file.stat()
        return found.st_size if self.size is None else self.size, found.st_mtime_ns


def is_packed(path):
    """Whether a path is a part of a tar."""
    return _PACKED.fullmatch(str(path)) is not None


def locate(path):
    """The Place of a recording."""
    found = _PACKED.fullmatch(str(path))
    return Place(Path(found[1]), int(found[2]), int(found[3])) if found else Place(Path(path))


class _Part(io.RawIOBase):
    """A part of a file as a file of its own, for reading."""

    def __init__(self, place):
        self._file, self._place, self._position = place.file.open("rb", buffering=0), place, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._position

    def seek(self, offset, whence=os.SEEK_SET):
        self._position = max(offset + (0, self._position, self._place.size)[whence], 0)
        return self._position

    def readinto(self, buffer):
        wanted = max(min(len(buffer), self._place.size - self._position), 0)
        n = os.preadv(self._file.fileno(), [memoryview(buffer)[:wanted]], self._place.start + self._position)
        self._position += n
        return n

    def close(self):
        if not self.closed:
            self._file.close()
        super().close()


def _stream(place):
    return place.file.open("rb") if place.size is None else io.BufferedReader(_Part(place), _BUFFER)


def probe(path):
    """Read a file's header, and see that the audio reaches as far as the header of a WAV or FLAC says.

    Raises:
        InputError: the file is missing, not audio, or shorter than its header promises.
    """
    path = Path(path)
    with opened(path) as f:
        if f.format == "FLAC" and f.frames > 0:
            _decode(f, f.frames - 1, f.frames, path)
        return AudioInfo(f.frames, f.samplerate, f.channels)


def read(path, start=0, stop=None, n_samples=None):
    """Read a file, or only the part [start, stop), as mono at 16 kHz; only that part is decoded.

    A part equals the same slice of the whole file, also when the file is resampled. (An MP3 is decoded from its beginning,
    since seeking in it is inexact.)

    Args:
        path: any file that libsndfile reads, or a part of a tar.
        start, stop: in samples at 16 kHz; `stop=None` reads to the end.
        n_samples: if given, the length at 16 kHz that the file must have.

    Returns:
        float32 array of shape (stop - start,), full scale ±1. Channels are averaged.

    Raises:
        InputError: the file is missing, unreadable, truncated, or not of the expected length; it holds NaN or infinity; or
            it does not reach from `start` to `stop`.
    """
    path = Path(path)
    with opened(path) as f:
        length = resampled_length(f.frames, f.samplerate)
        if n_samples is not None and length != n_samples:
            raise InputError(
                f"{path}: {length} samples at 16 kHz ({f.frames} at {f.samplerate} Hz), but the manifest says {n_samples}; "
                "the file is damaged or changed: restore it, or make the manifest again"
            )
        stop = length if stop is None else min(stop, length)
        if not 0 <= start <= stop:
            raise InputError(f"{path}: there is no part from sample {start} to {stop}, the file has {length} at 16 kHz; correct the times")
        if f.samplerate == SAMPLE_RATE:
            return _decode(f, start, stop, path)
        return _read_resampled(f, start, stop, path)


def normalise(waveform):
    """Zero mean and unit variance over the waveform (HuBERT large expects it); a constant waveform becomes zeros.

    The same as `torch.nn.functional.layer_norm` over all samples, as fairseq does it. (The extractor of transformers adds 1e-7
    to the variance, not 1e-5: very quiet audio becomes louder there.)
    """
    mean = waveform.mean(dtype=np.float64)
    variance = waveform.var(dtype=np.float64)
    return ((waveform - mean) / math.sqrt(variance + 1e-5)).astype(np.float32)


def opened(path):
    """A recording as a `soundfile.SoundFile`.

    Raises:
        InputError: the file is missing, empty, not audio, or a WAV that is shorter than its header promises.
    """
    place = locate(path)
    if not place.file.is_file():
        raise InputError(f"{place.file}: no such audio file; restore it or remove it from the manifest")
    size = place.file.stat().st_size
    if place.size is not None and size < place.start + place.size:
        raise InputError(f"{path}: the tar ends at byte {size}; restore it, or pack the audio again with tools/pack_audio.py")
    if 0 in (size, place.size):
        raise InputError(f"{path}: the file is empty; restore it or remove it from the manifest")
    try:
        found = soundfile.SoundFile(path if place.size is None else _stream(place))
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: cannot be read as audio ({error.error_string}); restore it or remove it from the manifest") from error
    except TypeError as error:  # soundfile wants to be told the rate of a .raw file
        raise InputError(f"{path}: has no header that tells its sample rate; convert it to WAV or FLAC") from error
    except OSError as error:
        raise InputError(f"{place.file}: cannot be read ({error.strerror}); make it readable") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: the file name is not UTF-8; rename the file") from error
    if found.format in ("WAV", "WAVEX"):
        _refuse_truncated_wav(path, place, found.frames)
    return found


def _call_each_function_once():
    """cffi looks a function of libsndfile up at its first call, and aborts the process, rarely, where threads make that call at once."""
    with io.BytesIO() as memory:
        with wave.open(memory, "wb") as f:
            f.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            f.writeframes(bytes(2 * HOP))
        memory.seek(0)
        with soundfile.SoundFile(memory) as f:
            _decode(f, HOP // 2, HOP, "silence")
    try:
        soundfile.SoundFile(os.devnull)
    except soundfile.LibsndfileError as error:
        str(error)


def _decode(f, start, stop, path):
    skipped = start if f.format == "MP3" else 0
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
    divisor = math.gcd(SAMPLE_RATE, f.samplerate)
    up, down = SAMPLE_RATE // divisor, f.samplerate // divisor
    margin = math.ceil(20 * max(up, down) / (up * down)) + 1  # the filter of resample_poly reaches 10 × max(up, down) taps
    first = max(start // up - margin, 0)
    last = -(-stop // up) + margin
    source = _decode(f, first * down, min(last * down, f.frames), path)
    resampled = resample_poly(source, up, down).astype(np.float32, copy=False)
    return resampled[start - first * up : stop - first * up]


def _refuse_truncated_wav(path, place, frames):
    """libsndfile quietly shortens a WAV whose data chunk is cut off, down to `frames`: look at the chunk's own size."""
    with _stream(place) as f:
        head = f.read(12)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return
        size = place.stat()[0]
        while len(chunk := f.read(8)) == 8:
            name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
            if name == b"data":
                if length < 0x7FFF_0000 and f.tell() + length > size:  # streams write about 2³¹ or 2³² for "unknown"
                    raise InputError(f"{path}: truncated WAV, {size - f.tell()} of {length} bytes of audio are there; restore it")
                return
            f.seek(length + length % 2, 1)
    if frames == 0:
        raise InputError(f"{path}: truncated WAV, its audio is not there; restore it")


_call_each_function_once()
