"""Prosodic and voice-quality descriptors of 20 ms frames, to be clustered as a label set beside MFCCs or encoder layers.

Clusters of MFCCs say what is spoken and drop most of how. Level and pitch are relative to the recording, so that a frame's label does
not tell the speaker's usual voice or the microphone's gain; or `absolute`, so that it tells how high and loud this recording is beside
the speaker's others, which is what speaker normalisation compares. Kin: ProsodyBERT (Hu et al. 2023) clusters
speaker-normalised pitch and energy; GMP-TL (Pan et al. 2024) adds gender to multi-scale clusters.

Seven descriptors, those of the eGeMAPS (Eyben et al. 2016) that need nothing but a spectrum and an autocorrelation:

    level        log energy, dB, relative to the recording's 90th percentile; absolute: to full scale
    log F0       octaves relative to the median of the recording's voiced frames, absolute: to 200 Hz; interpolated where unvoiced
    voicing      peak of the normalised autocorrelation within 60 … 500 Hz (Boersma 1993)
    alpha ratio  energy of 1 … 5 kHz over that of 50 … 1000 Hz, dB
    Hammarberg   strongest peak of 0 … 2 kHz over that of 2 … 5 kHz, dB
    slope        of the spectrum in dB from 0 to 500 Hz, per 100 Hz
    centroid     of the spectrum's energy, octaves above 1 kHz

each smoothed over 5 frames, and its change from 5 frames before to 5 frames after: 14 numbers a frame, divided by `SCALE`.
"""

import math

import numpy as np
import torch

from ..corpus import audio
from .features import MfccFeatures, finite

PROSODY, ABSOLUTE = "prosody", "prosody_absolute"
DESCRIPTORS = ("level", "log F0", "voicing", "alpha ratio", "Hammarberg", "slope", "centroid")
SCALE = (19, 0.53, 0.24, 9.8, 12, 3.1, 1.4, 15, 0.34, 0.25, 9.7, 11.6, 2.6, 1.2)
"""Standard deviations over ten hours of general speech: constants, so that nothing is fitted and labels mean the same everywhere."""
_WINDOW, _FFT = 800, 2048  # 50 ms: three periods of 60 Hz
_LAGS = (audio.SAMPLE_RATE // 500, audio.SAMPLE_RATE // 60)
_VOICED = 0.6
_SILENCE = -30  # dB: no F0 is taken from frames below it
_OCTAVE_COST = 0.02  # of half the frequency, so that of equal peaks the highest F0 is taken
_FLOOR = 1e-10
_REFERENCE = math.log2(200)  # Hz
_FULL_SCALE = 52  # dB of a full-scale sine in these windows' spectra
_BLOCK = 3000  # frames that are transformed at once


def descriptors(waveform):
    """Raw descriptors of a recording's frames: (samples,) float32 at 16 kHz → (frames, 7) float32, columns as `DESCRIPTORS`. Level in dB
    and F0 in log2 Hz (0: unvoiced) are not yet relative to the recording."""
    frames = audio.n_frames(len(waveform))
    before = (_WINDOW - audio.RECEPTIVE_FIELD) // 2
    padded = torch.nn.functional.pad(waveform, (before, before + audio.HOP))
    windows = padded.unfold(0, _WINDOW, audio.HOP)[:frames]  # centred on the encoder's frames
    return torch.cat([_of_windows(block) for block in windows.split(_BLOCK)])


def _of_windows(windows):
    hann = torch.hann_window(_WINDOW, periodic=False)
    power = torch.fft.rfft((windows - windows.mean(1, keepdim=True)) * hann, n=_FFT).abs().square()  # (frames, bins)
    hertz = torch.arange(power.size(1)) * (audio.SAMPLE_RATE / _FFT)
    decibels = 10 * torch.log10(power + _FLOOR)

    def band(low, high):
        return (hertz >= low) & (hertz < high)

    def energy(low, high):
        return 10 * torch.log10(power[:, band(low, high)].sum(1) + _FLOOR)

    f0, voicing = _pitch(power, hann)
    low = band(0, 500)
    x = hertz[low] - hertz[low].mean()
    return torch.stack(
        [
            energy(0, audio.SAMPLE_RATE),
            f0,
            voicing,
            energy(1000, 5000) - energy(50, 1000),
            decibels[:, band(0, 2000)].amax(1) - decibels[:, band(2000, 5000)].amax(1),
            100 * (decibels[:, low] * x).sum(1) / x.square().sum(),
            torch.log2((power * hertz).sum(1) / (power.sum(1) + _FLOOR) / 1000 + 0.01),
        ],
        dim=1,
    )


def _pitch(power, window):
    """log2 F0 (0 where unvoiced) and voicing strength: the autocorrelation over that of the window (Boersma 1993)."""
    shortest, longest = _LAGS
    shape = torch.fft.irfft(torch.fft.rfft(window, n=_FFT).abs().square())[: longest + 2]
    correlation = torch.fft.irfft(power)[:, : longest + 2]
    normalised = correlation / (correlation[:, :1] + _FLOOR) / (shape / shape[0])
    lags = torch.arange(shortest, longest + 1)
    left, here, right = (normalised[:, shortest + i : longest + 1 + i] for i in (-1, 0, 1))
    strength = torch.where((here >= left) & (here >= right), here - _OCTAVE_COST * torch.log2(lags / shortest), 0)
    chosen = strength.argmax(1, keepdim=True)
    left, peak, right = (x.gather(1, chosen)[:, 0] for x in (left, here, right))
    bend = left - 2 * peak + right
    offset = torch.where(bend < 0, 0.5 * (left - right) / bend.clamp(max=-1e-6), 0).clamp(-0.5, 0.5)  # top of the parabola
    voicing = torch.where(strength.gather(1, chosen)[:, 0] > 0, peak.clamp(0, 1), 0)
    f0 = torch.log2(audio.SAMPLE_RATE / (lags[chosen[:, 0]] + offset))
    return torch.where(voicing >= _VOICED, f0, 0), voicing


def features(waveform, absolute=False):
    """The 14 scaled features of a recording's frames, (frames, 14) float32; a recording without a voiced frame has F0 0."""
    x = descriptors(waveform)
    relative = x[:, 0] - x[:, 0].quantile(0.9)
    f0 = torch.where(relative > _SILENCE, x[:, 1], 0)
    if len(voiced := f0.nonzero()[:, 0]):
        between = np.interp(np.arange(len(f0)), voiced, f0[voiced])  # constant before the first voiced frame and after the last
        f0 = torch.from_numpy(between).float() - (_REFERENCE if absolute else f0[voiced].median())
    x[:, 0] = x[:, 0] - _FULL_SCALE if absolute else relative.clamp(min=-60)
    x[:, 1] = f0.clamp(-2, 2) if absolute else f0.clamp(-1, 1)
    smooth = _extended(x, 2).unfold(0, 5, 1).mean(2)
    change = _extended(smooth, 5)[10:] - _extended(smooth, 5)[:-10]
    return torch.cat([smooth, change], 1) / torch.tensor(SCALE)


def _extended(x, frames):
    """The first and the last row repeated."""
    return torch.cat([x[:1].expand(frames, -1), x, x[-1:].expand(frames, -1)])


class ProsodyFeatures(MfccFeatures):
    """`features` of whole recordings, 50 frames a second: what `make_labels --prosody` clusters."""

    hop = audio.HOP

    def __init__(self, *args, absolute=False):
        super().__init__(*args)
        self.absolute, self.names = absolute, (ABSOLUTE if absolute else PROSODY,)
        self.widths = {self.names[0]: len(SCALE)}

    def describe(self, name):
        """What the features are, for `kmeans.npz`."""
        return {"kind": name, "width": len(SCALE), "sample_rate": audio.SAMPLE_RATE, "hop": self.hop, "scale": list(SCALE)}

    def _features(self, split, piece):
        path, total = split.audio(piece.utterance), int(split.n_samples[piece.utterance])
        return finite(features(torch.from_numpy(audio.read(path, 0, total, total)), self.absolute), path)
