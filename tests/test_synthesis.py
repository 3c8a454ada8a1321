"""The synthesiser: its filters against scipy, its pitch and levels against their design, and what it is for: classes and
speakers that simple acoustic measures find, but not without error.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.signal import freqz, lfilter
from scipy.stats import spearmanr
from sklearn.metrics import recall_score
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from emohubert.core import programs
from emohubert.core.errors import InputError
from emohubert.corpus import synthetic

SCRIPT = programs.load("manifests", "synthetic")
LEXICON = synthetic.draw_lexicon(5)


def speak(voice, emotion=(0.5, 0.5, 0.5), seconds=2.0, stream=0):
    return synthetic.synthesise(voice, emotion, seconds, LEXICON, np.random.default_rng(stream))


def pitch(wave):
    """Pitch in Hz of the clearly voiced 40 ms frames, by normalised autocorrelation (Boersma 1993)."""
    window = np.hanning(640)
    frames = np.lib.stride_tricks.sliding_window_view(wave, 640)[::160] * window
    frames = frames[(frames**2).mean(1) > 0.05 * (frames**2).mean(1).max()]
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2048)) ** 2)[:, :300]
    of_window = np.fft.irfft(np.abs(np.fft.rfft(window, 2048)) ** 2)[:300]
    correlation = correlation / correlation[:, :1] / (of_window / of_window[0])
    lags = correlation[:, 32:].argmax(1) + 32
    return 16000 / lags[correlation[np.arange(len(lags)), lags] > 0.8]


def measures(wave):
    """Functionals of pitch, energy and a 12-band spectrum."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, 640)[::160] * np.hanning(640)
    energy = 10 * np.log10((frames**2).mean(1) + 1e-9)
    spectra = np.abs(np.fft.rfft(frames[energy > energy.max() - 25], 1024)) ** 2
    edges = np.geomspace(2, 512, 13).astype(int)
    bands = 10 * np.log10(np.stack([spectra[:, a:b].mean(1) for a, b in zip(edges, edges[1:], strict=False)], 1) + 1e-9)
    f0 = np.log2(pitch(wave))
    return np.r_[np.median(f0), f0.std(), energy.mean(), energy.std(), np.abs(np.diff(energy)).mean(), bands.mean(0), bands.std(0)]


@pytest.fixture(scope="module")
def corpus():
    rows = []
    for i, voice in enumerate(synthetic.draw_voices(8, 3)):
        for j in range(16):
            name = SCRIPT.CLASSES[j % 4]
            rng = np.random.default_rng([i, j])
            wave = synthetic.synthesise(voice, SCRIPT.draw_emotion(name, rng), 2.0, LEXICON, rng)
            rows.append((measures(wave), name, voice.id))
    features, classes, speakers = zip(*rows, strict=True)
    return np.array(features), np.array(classes), np.array(speakers)


def test_same_stream_same_samples_other_stream_other_words():
    voice = synthetic.draw_voices(8, 1)[0]
    assert np.array_equal(speak(voice, stream=1), speak(voice, stream=1))
    assert not np.allclose(speak(voice, stream=1), speak(voice, stream=2))
    assert synthetic.draw_voices(8, 1) == synthetic.draw_voices(8, 1) != synthetic.draw_voices(8, 2)


@settings(max_examples=25, deadline=None)
@given(
    emotion=st.tuples(*[st.floats(0, 1)] * 3),
    seconds=st.floats(0.3, 4),
    speaker=st.integers(0, 7),
    seed=st.integers(0, 1000),
)
def test_any_emotion_gives_clean_audio_of_the_asked_length(emotion, seconds, speaker, seed):
    wave = speak(synthetic.draw_voices(8, seed)[speaker], emotion, seconds, seed)
    assert wave.dtype == np.float32 and wave.shape == (round(seconds * 16000),)
    assert np.isfinite(wave).all() and 0.01 < np.abs(wave).max() < 1
    assert abs(wave.mean()) < 0.05 * wave.std()  # no offset
    assert abs(wave[0]) < 1e-3 and abs(wave[-1]) < 1e-3  # no click


def test_refuses_what_is_too_short():
    with pytest.raises(InputError, match="too short"):
        speak(synthetic.draw_voices(8, 1)[0], seconds=0.1)


def test_the_filter_is_the_cascade_of_resonators_it_claims_to_be():
    frequencies, bandwidths, corner = np.array([[500.0, 1500.0, 2500.0]]), np.array([60.0, 90.0, 120.0]), 1000.0
    expected = np.ones(513, dtype=complex)
    for f, b in zip(frequencies[0], bandwidths, strict=True):
        radius = np.exp(-np.pi * b / 16000)
        poles = [1, -2 * radius * np.cos(2 * np.pi * f / 16000), radius**2]
        expected *= freqz([sum(poles)], poles, worN=513, include_nyquist=True)[1]  # gain 1 at 0 Hz
    pole = np.exp(-2 * np.pi * corner / 16000)
    expected *= freqz([1 - pole], [1, -pole], worN=513, include_nyquist=True)[1]
    response = synthetic._filter(frequencies, bandwidths, corner)[0]
    np.testing.assert_allclose(response, expected, rtol=1e-9)
    peaks = np.flatnonzero((np.abs(response[1:-1]) > np.abs(response[:-2])) & (np.abs(response[1:-1]) > np.abs(response[2:]))) + 1
    np.testing.assert_allclose(peaks * 16000 / 1024, frequencies[0], atol=16)


def test_filtering_frame_by_frame_equals_a_recursive_filter():
    noise = np.random.default_rng(0).standard_normal(5000)
    frames = -(-5000 // 128) + 1
    radius = np.exp(-np.pi * 90 / 16000)
    poles = [1, -2 * radius * np.cos(2 * np.pi * 700 / 16000), radius**2]
    response = synthetic._filter(np.full((frames, 1), 700.0), np.full((frames, 1), 90.0), None)
    wave = synthetic._overlap_add(synthetic._spectra(noise, frames) * response, 5000)
    expected = lfilter([1 - radius], poles, noise)
    assert np.abs(wave - expected).max() < 2e-3 * np.abs(expected).max()


def test_pitch_is_the_designed_one():
    for voice in synthetic.draw_voices(8, 2):
        semitones = [12 * np.log2(np.median(pitch(speak(voice, stream=i))) / voice.f0) for i in range(6)]
        assert abs(np.mean(semitones)) < 1.5, voice  # neutral: the habitual pitch, with accents above it
        assert np.std(semitones) < 2, voice


def test_vocal_tract_length_stretches_the_spectrum():
    voice = synthetic.draw_voices(8, 2)[1]
    grid = np.geomspace(400, 7000, 600)  # equal steps of log frequency: a stretched spectrum is a shifted one

    def envelope(tract):
        power = np.mean([np.abs(np.fft.rfft(speak(replace(voice, tract=tract), stream=i))) ** 2 for i in range(6)], axis=0)
        return np.interp(grid, np.fft.rfftfreq(32000, 1 / 16000), gaussian_filter1d(np.log(power), 250))

    long, short = envelope(0.95), envelope(1.15)
    shifts = np.arange(-100, 101)
    match = [np.corrcoef(long[100:-100], short[100 + s : 500 + s])[0, 1] for s in shifts]
    assert (grid[1] / grid[0]) ** shifts[np.argmax(match)] == pytest.approx(1.15 / 0.95, rel=0.06)


def test_arousal_raises_pitch_energy_and_high_frequencies_step_by_step():
    steps = np.linspace(0, 1, 6)
    voices = synthetic.draw_voices(8, 4)
    pitches, levels, slopes = [], [], []
    for arousal in steps:
        waves = [speak(v, (arousal, 0.5, 0.5), 1.5, [i, j]) for i, v in enumerate(voices[:4]) for j in range(2)]
        pitches.append(np.mean([np.log2(np.median(pitch(w))) for w in waves]))
        levels.append(np.mean([10 * np.log10(np.mean(w**2)) for w in waves]))
        spectra = [np.abs(np.fft.rfft(w)) ** 2 for w in waves]
        slopes.append(np.mean([10 * np.log10(s[3000:9000].sum() / s[:3000].sum()) for s in spectra]))  # over 2 kHz against below
    for values in (pitches, levels, slopes):
        assert (np.diff(values) > 0).all(), values


@settings(max_examples=50, deadline=None)
@given(name=st.sampled_from(SCRIPT.CLASSES), seed=st.integers(0, 10**6))
def test_classes_are_regions(name, seed):
    emotion = SCRIPT.draw_emotion(name, np.random.default_rng(seed))
    assert SCRIPT.class_of(emotion) == name and ((emotion >= 0) & (emotion <= 1)).all()


@pytest.mark.parametrize("n", [8, 9, 12, 40])
def test_voices_differ_and_are_half_women(n):
    voices = synthetic.draw_voices(n, 7)
    assert len({v.id for v in voices}) == n
    assert sum(v.sex == "female" for v in voices) == -(-n // 2)
    traits = np.stack([SCRIPT.traits(v) for v in voices])
    distances = np.linalg.norm(traits[:, None] - traits[None], axis=-1) + np.eye(n)
    assert distances.min() > 0.01 and np.abs(traits).max() < 2
    assert max(v.f0 for v in voices if v.sex == "male") < min(v.f0 for v in voices if v.sex == "female")


@pytest.mark.slow
def test_emotion_is_recognised_in_unseen_speakers_but_not_trivially(corpus):
    features, classes, speakers = corpus
    model = make_pipeline(StandardScaler(), SVC(C=3))
    predicted = cross_val_predict(model, features, classes, groups=speakers, cv=GroupKFold(8))
    assert 0.5 < recall_score(classes, predicted, average="macro") < 0.97  # chance: 0.25


@pytest.mark.slow
def test_speakers_are_recognised(corpus):
    features, _, speakers = corpus
    model = make_pipeline(StandardScaler(), SVC(C=3))
    predicted = cross_val_predict(model, features, speakers, cv=StratifiedKFold(4, shuffle=True, random_state=0))
    assert np.mean(predicted == speakers) > 0.5  # chance: 0.125


@pytest.mark.parametrize("seed", range(5))
def test_listeners_misjudge_similar_voices_in_similar_ways(seed):
    voices = synthetic.draw_voices(30, seed)
    bias = SCRIPT.listener_bias(voices, seed)
    assert bias.shape == (30, 3) and np.abs(bias).max() <= 1 and bias.std(axis=0).max() > 0.3
    traits = np.stack([SCRIPT.traits(v) for v in voices])
    pairs = np.triu_indices(30, 1)
    distance = np.linalg.norm(traits[:, None] - traits[None], axis=-1)[pairs]
    difference = np.linalg.norm(bias[:, None] - bias[None], axis=-1)[pairs]
    assert spearmanr(distance, difference).statistic > 0.5
