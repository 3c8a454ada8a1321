"""What rooms, microphones and lines do to speech: noise, reverberation, a narrow band, and a change of speed.

Functions of a float32 waveform at 16 kHz, (samples,), and of a numpy Generator where chance enters; they return a new float32
waveform, whose level nothing limits to ±1. They raise InputError for a value out of the range that they name.
"""

import functools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..corpus import audio
from ..corpus.audio import SAMPLE_RATE

VERSION = 1
"""Changes whenever the same settings give other audio."""
NOISES = ("white", "pink", "babble")
"""Noise that is generated: flat; falling by 3 dB an octave from 20 Hz; eight voices of `corpus.synthetic` that talk at once."""
LOW_PASS_ORDER = 8
_BABBLE_VOICES, _BABBLE_SECONDS = 8, 10.0


def power(samples):
    """Mean square of a waveform, as a float."""
    return float(np.mean(np.square(samples, dtype=np.float64)))


def add_noise(samples, noise, snr):
    """Add noise, (n,) of any level, at a signal-to-noise ratio in dB: of the power of the whole waveform, its pauses included, to
    that of the noise, which is not silent. Digital silence, which has no such ratio, stays as it is."""
    gain = math.sqrt(power(samples) / power(noise)) * 10 ** (-snr / 20)
    return (samples + gain * np.asarray(noise, dtype=np.float64)).astype(np.float32)


def make_noise(kind, n, rng):
    """Generated noise of a kind in `NOISES`: (n,) float64."""
    if kind == "white":
        return rng.standard_normal(n)
    if kind == "pink":
        size = 1 << max(n - 1, SAMPLE_RATE).bit_length()
        frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
        spectrum = np.fft.rfft(rng.standard_normal(size)) / np.sqrt(np.maximum(frequency, 20.0))
        spectrum[0] = 0
        return np.fft.irfft(spectrum, size)[:n]
    if kind == "babble":
        return np.resize(sum(np.roll(voice, int(rng.integers(len(voice)))) for voice in _talkers()), n)
    raise InputError(f"no noise is called “{kind}”; choose from {', '.join(NOISES)}")


@functools.cache
def _talkers():
    """The voices of the babble, equally loud: (voices, samples). They are always the same ones; who says what when is drawn."""
    from ..corpus import synthetic

    rng, lexicon = np.random.default_rng(0), synthetic.draw_lexicon(0)
    voices = [synthetic.synthesise(v, (0.45, 0.52, 0.50), _BABBLE_SECONDS, lexicon, rng) for v in synthetic.draw_voices(_BABBLE_VOICES, 0)]
    return np.stack([voice / math.sqrt(power(voice)) for voice in voices]).astype(np.float64)


def impulse_response(t60, ratio, rng):
    """The impulse response of a room: a direct path of height 1, then noise that decays exponentially (Polack 1988). `t60`: seconds in
    which the reverberation falls by 60 dB, where the response ends; at most 60. `ratio`: energy of the direct path to that of everything
    after it, in dB. Returns (1 + round(t60 × 16000),) float64."""
    if not 0 < t60 <= 60:
        raise InputError(f"a reverberation time of {t60} s; give more than 0 and at most 60")
    n = max(round(t60 * SAMPLE_RATE), 1)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(1, n + 1) / (t60 * SAMPLE_RATE))
    tail *= 10 ** (-ratio / 20) / np.linalg.norm(tail)
    return np.concatenate([[1.0], tail])


def reverberate(samples, response):
    """Convolve with an impulse response, (m,) of any level, nothing shifted: its largest value, taken as the direct path, is at time 0. The
    power stays as it was, and what rings on after the end is cut off."""
    from scipy.signal import fftconvolve

    direct = int(np.argmax(np.abs(response)))
    wet = fftconvolve(samples.astype(np.float64), response)[direct : direct + len(samples)]
    level = power(wet)
    return (wet * math.sqrt(power(samples) / level) if level else wet).astype(np.float32)


def low_pass(samples, cutoff):
    """Remove what lies above a frequency: a Butterworth filter of order 8, forwards and backwards, so without delay. `cutoff`: in Hz, under
    8000, where the gain is −6 dB (−3 dB for each way); an octave above it is under −96 dB."""
    from scipy.signal import butter, sosfiltfilt

    if not 0 < cutoff < SAMPLE_RATE / 2:
        raise InputError(f"a cut-off of {cutoff} Hz; give more than 0 and less than {SAMPLE_RATE // 2}")
    sections = butter(LOW_PASS_ORDER, cutoff, fs=SAMPLE_RATE, output="sos")
    padding = min(round(4 * SAMPLE_RATE / cutoff), len(samples) - 1)  # some periods, for the filter to settle
    return sosfiltfilt(sections, samples.astype(np.float64), padlen=padding).astype(np.float32)


def change_speed(samples, factor):
    """Play faster (factor over 1, see `speed_ratio`) or slower, pitch and formants with it (Ko et al. 2015); `speed_length` samples."""
    from scipy.signal import resample_poly

    ratio = speed_ratio(factor)
    return resample_poly(samples, ratio.denominator, ratio.numerator).astype(np.float32, copy=False)


def speed_length(n, factor):
    """Samples that n become at a speed: n / factor, rounded up."""
    ratio = speed_ratio(factor)
    return -(-n * ratio.denominator // ratio.numerator)


def speed_ratio(factor):
    """A speed factor, 0.5 to 2 with at most two decimals, as an exact fraction: 0.9 is 9/10."""
    if 0.5 <= factor <= 2 and abs(round(factor, 2) - factor) < 1e-9:
        return Fraction(round(factor * 100), 100)
    raise InputError(f"a speed factor of {factor}; give numbers from 0.5 to 2 with at most two decimals, such as 0.9 and 1.1")


def check_speeds(factors, option):
    """InputError, with the name of the option that has them, if one of these is no speed (see `speed_ratio`)."""
    try:
        for factor in factors:
            speed_ratio(factor)
    except InputError as error:
        raise InputError(f"{option}={list(factors)}: {error}") from None


class Recordings:
    """Recordings of noise or of impulse responses in a folder and its subfolders, to draw from. InputError if there is no such folder or no
    recording in it, or one that is empty, silent or cannot be read."""

    def __init__(self, folder):
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give one that holds recordings")
        found = [p for p in folder.rglob("*") if p.suffix.lower() in audio.EXTENSIONS and p.is_file()]
        self.paths = sorted(found, key=lambda p: p.relative_to(folder).as_posix())
        if not self.paths:
            raise InputError(f"{folder}: holds no recording ({', '.join(sorted(audio.EXTENSIONS))}); give a folder that does")
        self.lengths = [audio.probe(path) for path in self.paths]
        if 0 in self.lengths:
            raise InputError(f"{self.paths[self.lengths.index(0)]}: holds no sample; remove it")

    def part(self, n, rng):
        """n samples, (n,) float32, of a recording drawn at random: from a random place, or looped from there if it is shorter; where
        that is digital silence, from the next sample that is not."""
        which = int(rng.integers(len(self.paths)))
        path, length = self.paths[which], self.lengths[which]
        start = int(rng.integers(length - n + 1 if length >= n else length))
        samples = audio.read(path, start, start + n) if length >= n else np.resize(np.roll(audio.read(path), -start), n)
        if not samples.any():
            whole = np.roll(audio.read(path), -start)
            samples = np.resize(np.roll(whole, -int(np.argmax(whole != 0))), n)
        return _audible(samples, path)

    def whole(self, rng):
        """A recording drawn at random: (samples,) float32."""
        path = self.paths[int(rng.integers(len(self.paths)))]
        return _audible(audio.read(path), path)


def _audible(samples, path):
    if not samples.any():
        raise InputError(f"{path}: holds nothing but silence; remove it")
    return samples
