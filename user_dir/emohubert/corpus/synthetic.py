"""Speech-like audio from a source-filter synthesiser: known speakers, known emotions, no download, no licence.

A glottal pulse train (Rosenberg 1971) and noise pass through time-varying formant resonators (Klatt 1980), for words of
a small invented language. Every speaker has a voice of their own (pitch, vocal-tract length, formant idiosyncrasies,
tilt, roughness, tempo, expressiveness); arousal, valence and dominance, each in 0..1, move pitch, energy, tempo, spectral
tilt, breath and formants smoothly (directions after Banse & Scherer 1996); the four classes are regions of that space.
"""

from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError
from .audio import SAMPLE_RATE

VERSION = 1
"""Changes whenever the same settings give other audio."""

_HOP = 128  # the filter changes every 8 ms
_FFT = 1024  # a frame of 16 ms and 48 ms for the resonators to ring out
_FORMANT_SMOOTHING, _LEVEL_SMOOTHING = 2.2, 1.1  # standard deviations of the transitions between phones, in hops
_HIGHER = (3400.0, 4500.0, 5500.0, 6500.0)  # F4 to F7 hardly depend on the phone
_BANDWIDTHS = np.array([70.0, 90.0, 130.0, 200.0, 280.0, 350.0, 420.0])

# Formants (Hz) are those of an adult man: vowels after Peterson & Barney 1952, loci of consonants after Klatt 1980.
_VOWELS = {
    "i": (270, 2290, 3010), "I": (390, 1990, 2550), "E": (530, 1840, 2480), "A": (730, 1090, 2440),
    "O": (570, 840, 2410), "U": (440, 1020, 2240), "u": (300, 870, 2240), "V": (640, 1190, 2390),
}  # fmt: skip
# phone: formants, voicing (dB), noise (dB), centre and bandwidth of the noise (Hz), duration (s)
_CONSONANTS = {
    "m": ((270, 1100, 2200), -9, -100, 3000, 2000, 0.075), "n": ((270, 1600, 2600), -9, -100, 3000, 2000, 0.070),
    "l": ((340, 1150, 2700), -5, -100, 3000, 2000, 0.065), "w": ((300, 700, 2200), -5, -100, 3000, 2000, 0.070),
    "j": ((270, 2150, 2950), -5, -100, 3000, 2000, 0.065), "z": ((270, 1700, 2600), -12, -27, 5600, 1800, 0.075),
    "s": ((320, 1700, 2600), -100, -20, 5800, 1100, 0.100), "S": ((320, 1900, 2600), -100, -19, 3300, 900, 0.105),
    "f": ((320, 1100, 2200), -100, -29, 4500, 5000, 0.085), "h": ((500, 1500, 2500), -100, -27, 1600, 2500, 0.060),
    "d": ((300, 1700, 2650), -18, -100, 3000, 2000, 0.050), "g": ((300, 1900, 2350), -18, -100, 3000, 2000, 0.055),
    "t": ((350, 1750, 2650), -100, -100, 4500, 2500, 0.055), "k": ((350, 1850, 2350), -100, -100, 2000, 1200, 0.060),
}  # fmt: skip
# the burst of a plosive: noise (dB), centre and bandwidth of the noise (Hz), duration (s)
_RELEASE = {"t": (-22, 4500, 2500, 0.022), "k": (-22, 2000, 1200, 0.026), "d": (-28, 3500, 2500, 0.012), "g": (-28, 3500, 2500, 0.014)}


@dataclass(frozen=True)
class Voice:
    """One speaker."""

    id: str
    sex: str
    f0: float  # habitual pitch, Hz
    tract: float  # factor on all formants; 1: adult man, larger: shorter vocal tract
    formants: tuple  # seven factors near 1, one per formant
    tilt: float  # factor on the corner frequency of the source's low-pass
    jitter: float  # standard deviation of the pitch from cycle to cycle, relative
    breath: float  # aspiration against voicing, dB
    tempo: float  # factor on the syllable rate
    level: float  # dB
    expressiveness: float  # factor on everything that emotion changes


def draw_voices(n, seed):
    """`n` voices, women and men in turn; pitches are spread over the range of each sex, so that no two coincide."""
    rng = np.random.default_rng([seed, 0])
    place = {}
    for sex, count in (("female", -(-n // 2)), ("male", n // 2)):
        grid = lambda count=count: (rng.permutation(count) + rng.uniform(0.2, 0.8, count)) / max(count, 1)  # noqa: E731
        place[sex] = iter(zip(grid(), grid(), strict=True))
    voices = []
    for i in range(n):
        sex = "male" if i % 2 else "female"
        pitch, length = next(place[sex])
        voices.append(
            Voice(
                id=f"s{i + 1:02d}",
                sex=sex,
                f0=float((165 if sex == "female" else 92) * 2 ** (pitch * 0.5)),
                tract=float((1.10 if sex == "female" else 0.96) + 0.11 * length),
                formants=tuple(float(f) for f in np.exp(rng.normal(0, [0.05, 0.05, 0.05, 0.04, 0.04, 0.04, 0.04]))),
                tilt=float(2 ** rng.uniform(-0.7, 0.7)),
                jitter=float(rng.uniform(0.004, 0.016)),
                breath=float(rng.uniform(-34, -22)),
                tempo=float(2 ** rng.uniform(-0.18, 0.18)),
                level=float(rng.uniform(-2.5, 2.5)),
                expressiveness=float(rng.uniform(0.95, 1.3)),
            )
        )
    return voices


def draw_lexicon(seed, words=48):
    """Words of the invented language: lists of syllables, each a list of phones, stress on the first."""
    rng = np.random.default_rng([seed, 2])
    vowels, consonants = list(_VOWELS), list(_CONSONANTS)
    lexicon = []
    for i in range(words):
        syllables = []
        for _ in range(1 + i % 3):
            syllable = [rng.choice(consonants)] if rng.random() < 0.85 else []
            syllable.append(rng.choice(vowels))
            if rng.random() < 0.3:
                syllable.append(rng.choice(["m", "n", "l", "s", "f"]))
            syllables.append([str(p) for p in syllable])
        lexicon.append(syllables)
    return lexicon


def synthesise(voice, emotion, seconds, lexicon, rng):
    """One utterance of a Voice: float32, round(seconds × 16000) samples, peak below 1; `emotion`: (arousal, valence, dominance) in 0..1."""
    if seconds < 0.3:
        raise InputError(f"{seconds} s is too short for an utterance; give 0.3 s or more")
    n = round(seconds * SAMPLE_RATE)
    style = _style(voice, emotion, rng)
    frames = -(-n // _HOP) + 1
    track = _articulation(style, lexicon, frames, rng)
    f0, voicing, frication = (np.interp(np.arange(n), np.arange(frames) * _HOP, track[name]) for name in ("f0", "voicing", "noise"))
    flow, gate = _glottal_pulses(f0, style["jitter"], rng)
    noise = rng.standard_normal((2, n))
    breath = 10 ** (style["breath"] / 20) * noise[0] * (0.35 + 0.65 * gate)
    voiced = voicing * (flow / np.sqrt(np.mean(flow**2)) + breath) + 10 ** (-64 / 20) * noise[0]
    vocal_tract = _filter(track["formants"], style["bandwidths"], style["corner"])
    friction = _filter(track["noise_centre"][:, None], track["noise_bandwidth"][:, None], None)
    wave = _overlap_add(_spectra(voiced, frames) * vocal_tract + _spectra(frication * noise[1], frames) * friction, n)
    wave *= np.sin(np.pi / 2 * np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / 160)) ** 2  # no click at the ends
    wave *= 10 ** (style["level"] / 20) / np.sqrt(np.mean(wave**2))
    return _limit(wave).astype(np.float32)


def _style(voice, emotion, rng):
    """What a voice does to show an emotion, with the chance variation of any two utterances."""
    a, v, d = voice.expressiveness * (2 * np.asarray(emotion, dtype=float) - 1)
    chance = rng.normal(size=6)
    return {
        "f0": voice.f0 * 2 ** ((4.2 * a + 0.9 * v - 1.0 * d + 0.6 * chance[0]) / 12),
        "range": 2.4 * 2 ** (0.9 * a + 0.9 * v + 0.15 * chance[1]),  # semitones
        "rise": 3.0 * v + 0.5 * a - 1.5 * d,  # semitones at the end of the utterance
        "rate": 4.4 * voice.tempo * 2 ** (0.34 * a + 0.12 * v + 0.06 * chance[2]),  # syllables a second
        "level": np.clip(-26 + voice.level + 4.5 * a + 1.5 * d + 0.8 * chance[3], -40, -16),  # dB against full scale
        "corner": np.clip(1100 * voice.tilt * 2 ** (0.9 * a + 0.6 * d - 0.55 * v + 0.15 * chance[4]), 200, 6000),  # Hz
        "breath": voice.breath - 6 * a - 4 * d + 2 * v + 1.5 * chance[5],
        "jitter": np.clip(voice.jitter * 2 ** (0.6 * a - 1.1 * v), 0.001, 0.05),
        "formants": voice.tract * np.array(voice.formants) * [1 + 0.07 * a, 1 + 0.06 * v, 1 + 0.04 * v, 1, 1, 1, 1] * (1 - 0.02 * d),
        "bandwidths": np.minimum(_BANDWIDTHS * voice.tract * 2 ** (-0.25 * a), 600),
    }


def _articulation(style, lexicon, frames, rng):
    """Control tracks at the rate of the filter: formants (frames, 7), f0, voicing, noise, its centre and bandwidth."""
    from scipy.ndimage import gaussian_filter1d  # slow to import

    phones, accents = _phones(style, lexicon, frames * _HOP / SAMPLE_RATE, rng)
    durations = np.array([p[-1] for p in phones])
    ends = np.round(np.cumsum(durations) / durations.sum() * frames).astype(int)
    counts = np.diff(ends, prepend=0)
    spread = lambda i: np.repeat(np.array([p[i] for p in phones], dtype=float), counts, axis=0)  # noqa: E731
    voicing = 10 ** (gaussian_filter1d(spread(1), _LEVEL_SMOOTHING) / 20)
    noise = 10 ** (gaussian_filter1d(spread(2), 0.7 * _LEVEL_SMOOTHING) / 20)
    time = np.linspace(0, 1, frames)
    semitones = -1.6 * (time - 0.5) + style["rise"] * np.clip((time - 0.8) / 0.2, 0, 1) ** 2
    for phone, height in accents:
        middle = (ends[phone] - counts[phone] / 2) / frames
        semitones += height * np.exp(-0.5 * ((time - middle) * frames * _HOP / SAMPLE_RATE / 0.09) ** 2)
    semitones += gaussian_filter1d(rng.standard_normal(frames), 6) * 0.5
    formants = np.hstack([spread(0), np.tile(_HIGHER, (frames, 1))])
    formants = gaussian_filter1d(formants, _FORMANT_SMOOTHING, axis=0) * style["formants"]
    return {
        "formants": np.clip(formants, 150, 7600),
        "f0": np.clip(style["f0"] * 2 ** (semitones / 12), 50, 700),
        "voicing": np.where(voicing < 1e-2, 0, voicing),
        "noise": np.where(noise < 1e-4, 0, noise),
        "noise_centre": spread(3),
        "noise_bandwidth": spread(4),
    }


def _phones(style, lexicon, seconds, rng):
    """Phones (formants, voicing dB, noise dB, centre, bandwidth, duration) that last about `seconds`, and pitch accents on them."""
    rest = ((500, 1500, 2500), -100, -100, 3000, 2000)
    phones, accents, spent = [(*rest, rng.uniform(0.04, 0.09))], [], 0.15
    while spent < seconds - 0.5 / style["rate"]:
        if len(phones) > 1 and rng.random() < 0.12:
            phones.append((*rest, rng.uniform(0.06, 0.14)))
            spent += phones[-1][-1]
        for stress, syllable in enumerate(lexicon[rng.integers(len(lexicon))]):
            natural = sum(0.13 if p in _VOWELS else _CONSONANTS[p][-1] for p in syllable)
            stretch = (1.12 if stress == 0 else 0.92) / style["rate"] / natural
            for phone in syllable:
                if phone in _VOWELS:
                    if stress == 0:
                        accents.append((len(phones), style["range"] * rng.uniform(0.5, 1.2)))
                    level, duration = 0.0 if stress == 0 else -2.0, 0.13 * stretch * rng.uniform(0.85, 1.15)
                    phones.append((_VOWELS[phone], level, -100, 3000, 2000, duration))
                else:
                    *sound, duration = _CONSONANTS[phone]
                    phones.append((*sound, duration * stretch))
                    if phone in _RELEASE:
                        phones.append((sound[0], -25, *_RELEASE[phone]))
            spent += natural * stretch
    phones.append((*rest, rng.uniform(0.05, 0.10)))
    return phones, accents


def _glottal_pulses(f0, jitter, rng):
    """Derivative of Rosenberg's glottal flow (1971, pulse C), as differences of samples against aliasing, and the flow itself (0..1)."""
    cycles = np.cumsum(f0) / SAMPLE_RATE
    per_cycle = rng.standard_normal((2, int(cycles[-1]) + 2))
    cycles = np.cumsum(f0 * (1 + jitter * per_cycle[0][cycles.astype(int)])) / SAMPLE_RATE
    phase = cycles % 1
    opening, closing = 0.42, 0.18
    falling = np.where(phase < opening + closing, np.cos(np.pi / 2 * (phase - opening) / closing), 0)
    flow = np.where(phase < opening, 0.5 - 0.5 * np.cos(np.pi * phase / opening), falling)
    shimmer = 1 + 2 * jitter * per_cycle[1][np.minimum(cycles.astype(int), per_cycle.shape[1] - 1)]
    return np.diff(flow, prepend=0) * shimmer, flow


def _filter(frequencies, bandwidths, corner):
    """Frequency responses (frames, _FFT/2 + 1) of cascaded resonators and of a one-pole low-pass at `corner` Hz."""
    radius = np.broadcast_to(np.exp(-np.pi * bandwidths / SAMPLE_RATE), frequencies.shape)
    linear = -2 * radius * np.cos(2 * np.pi * frequencies / SAMPLE_RATE)
    polynomial = np.zeros((len(frequencies), 2 * frequencies.shape[1] + 2))  # of all poles: its Fourier transform is the denominator
    polynomial[:, 0] = 1
    gain = np.ones(len(frequencies))
    for k in range(frequencies.shape[1]):
        shifted = np.zeros_like(polynomial)
        shifted[:, 1:] = linear[:, k, None] * polynomial[:, :-1]
        shifted[:, 2:] += radius[:, k, None] ** 2 * polynomial[:, :-2]
        polynomial += shifted
        gain *= 1 + linear[:, k] + radius[:, k] ** 2 if corner is not None else (1 - radius[:, k])
    if corner is not None:
        pole = np.exp(-2 * np.pi * corner / SAMPLE_RATE)
        polynomial[:, 1:] -= pole * polynomial[:, :-1].copy()
        gain *= 1 - pole
    return gain[:, None] / np.fft.rfft(polynomial, _FFT)


def _spectra(wave, frames):
    """Spectra of Hann-windowed frames that add up to the waveform: frame i is centred on sample i × _HOP."""
    padded = np.zeros((frames + 1) * _HOP)
    padded[_HOP : _HOP + len(wave)] = wave
    blocks = np.lib.stride_tricks.sliding_window_view(padded, 2 * _HOP)[::_HOP]
    return np.fft.rfft(blocks * np.hanning(2 * _HOP + 1)[:-1], _FFT)


def _overlap_add(spectra, n):
    blocks = np.fft.irfft(spectra, _FFT).reshape(len(spectra), _FFT // _HOP, _HOP)
    total = np.zeros((len(spectra) + _FFT // _HOP, _HOP))
    for shift in range(_FFT // _HOP):
        total[shift : shift + len(spectra)] += blocks[:, shift]
    return total.reshape(-1)[_HOP : _HOP + n]


def _limit(wave, knee=0.7):
    """Leave everything under the knee as it is and bend the rest smoothly below full scale."""
    excess = np.maximum(np.abs(wave) - knee, 0)
    return np.sign(wave) * (np.minimum(np.abs(wave), knee) + (1 - knee) * np.tanh(excess / (1 - knee)) * 0.98)
