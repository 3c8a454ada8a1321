"""Degradation: what was asked for is what is measured."""

import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from emohubert.core.errors import InputError
from emohubert.corpus import audio
from emohubert.data.degradations import (
    NOISES,
    Recordings,
    add_noise,
    change_speed,
    impulse_response,
    low_pass,
    make_noise,
    reverberate,
    speed_length,
    speed_ratio,
)

RATE = 16_000


def speech(n=32_000, seed=0):
    """Something with pauses and a spectrum: noise through a resonance, switched on and off."""
    rng = np.random.default_rng(seed)
    wave = scipy.signal.lfilter([1], [1, -1.6, 0.9], rng.standard_normal(n))
    return (0.05 * wave * (np.sin(2 * np.pi * 3 * np.arange(n) / RATE) > -0.3)).astype(np.float32)


def tone(frequency, n=RATE):
    return np.sin(2 * np.pi * frequency * np.arange(n) / RATE).astype(np.float32)


def decibels(ratio):
    return 10 * np.log10(ratio)


# ----------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("snr", [-10, 0, 12.5, 30, 60])
def test_the_measured_ratio_is_the_one_asked_for(kind, snr):
    clean = speech()
    noisy = add_noise(clean, make_noise(kind, len(clean), np.random.default_rng(1)), snr)
    added = noisy.astype(np.float64) - clean
    assert noisy.dtype == np.float32 and noisy.shape == clean.shape
    assert abs(decibels(np.mean(clean.astype(np.float64) ** 2) / np.mean(added**2)) - snr) < 0.01


def test_silence_stays_silent():
    assert not add_noise(np.zeros(1000, dtype=np.float32), np.ones(1000), 10).any()


def octave_levels(noise):
    """Welch's density in dB at the octaves from 125 to 4000 Hz."""
    frequency, density = scipy.signal.welch(noise, RATE, nperseg=4096)
    centres = 125 * 2.0 ** np.arange(6)
    return np.array([decibels(density[(frequency > c / 1.4) & (frequency < c * 1.4)].mean()) for c in centres])


def test_colours_of_noise():
    white, pink = (octave_levels(make_noise(kind, 20 * RATE, np.random.default_rng(0))) for kind in ("white", "pink"))
    assert np.abs(np.diff(white)).max() < 0.5
    assert np.abs(np.diff(pink) + 3.01).max() < 0.5


def test_babble_sounds_like_many_voices():
    """Speech has most of its energy below 4 kHz; eight voices leave fewer pauses than one; and it is never twice the same."""
    first, second = (make_noise("babble", 12 * RATE, np.random.default_rng(i)) for i in (0, 1))
    frequency, density = scipy.signal.welch(first, RATE, nperseg=1024)
    assert density[frequency < 4000].sum() > 0.9 * density.sum()
    levels = np.sqrt((first.reshape(-1, 800) ** 2).mean(1))
    assert np.quantile(levels, 0.05) > 0.1 * np.quantile(levels, 0.95)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, make_noise("babble", 12 * RATE, np.random.default_rng(0)))


@pytest.mark.parametrize("n", [1, 2, 400, 16_001])
@pytest.mark.parametrize("kind", NOISES)
def test_noise_of_any_length(kind, n):
    noise = make_noise(kind, n, np.random.default_rng(0))
    assert noise.shape == (n,) and np.isfinite(noise).all()


def test_unknown_noise():
    with pytest.raises(InputError, match="no noise is called “brown”; choose from white, pink, babble"):
        make_noise("brown", 10, np.random.default_rng(0))


# --------------------------------------------------------------------------------------------------------- reverberation


def measured_t60(response):
    """Schroeder 1965: backward integration, a line through −5 to −35 dB of what follows the direct path (ISO 3382's T30)."""
    energy = np.cumsum(np.square(response[1:])[::-1])[::-1]
    level = decibels(energy / energy[0])
    chosen = np.flatnonzero((level < -5) & (level > -35))
    slope = np.polyfit(chosen / RATE, level[chosen], 1)[0]
    return -60 / slope


@pytest.mark.parametrize("t60", [0.2, 0.5, 0.8, 2.0])
def test_reverberation_time(t60):
    measured = [measured_t60(impulse_response(t60, 0, np.random.default_rng(seed))) for seed in range(8)]
    assert np.mean(measured) == pytest.approx(t60, rel=0.03)
    assert np.abs(np.array(measured) / t60 - 1).max() < 0.12


@pytest.mark.parametrize("ratio", [-10, 0, 15])
def test_direct_to_reverberant_ratio(ratio):
    response = impulse_response(0.4, ratio, np.random.default_rng(0))
    assert len(response) == 1 + 0.4 * RATE
    assert decibels(response[0] ** 2 / np.sum(response[1:] ** 2)) == pytest.approx(ratio, abs=1e-9)


def test_reverberation_is_a_convolution_that_keeps_power_and_shifts_nothing():
    clean = speech()
    late = np.concatenate([0.3 * np.random.default_rng(1).uniform(-1, 1, 50), impulse_response(0.3, 6, np.random.default_rng(0))])
    wet = reverberate(clean, late)
    expected = scipy.signal.fftconvolve(clean.astype(np.float64), late)[50 : 50 + len(clean)]
    expected *= np.sqrt(np.mean(clean.astype(np.float64) ** 2) / np.mean(expected**2))
    np.testing.assert_allclose(wet, expected, atol=1e-6)
    assert wet.dtype == np.float32
    by_hand = [sum(late[k] * clean[i + 50 - k] for k in range(min(len(late), i + 51))) for i in (0, 700)]
    assert by_hand[0] / by_hand[1] == pytest.approx(wet[0] / wet[700], rel=1e-3)
    white = np.random.default_rng(2).standard_normal(RATE).astype(np.float32)
    lags = scipy.signal.correlation_lags(RATE, RATE)
    assert lags[np.argmax(scipy.signal.correlate(reverberate(white, late), white))] == 0


def test_a_single_path_changes_nothing():
    clean = speech()
    np.testing.assert_allclose(reverberate(clean, np.array([0.0, 0.0, -0.5])), -clean, atol=1e-7)
    with pytest.raises(InputError, match="reverberation time of 0 s"):
        impulse_response(0, 0, np.random.default_rng(0))


# -------------------------------------------------------------------------------------------------------------- low-pass


@pytest.mark.parametrize("cutoff", [500, 1000, 4000])
def test_frequency_response(cutoff):
    impulse = np.zeros(RATE, dtype=np.float32)
    impulse[RATE // 2] = 1
    gain = 20 * np.log10(np.abs(np.fft.rfft(low_pass(impulse, cutoff))) + 1e-12)  # 1 Hz a bin
    assert gain[cutoff] == pytest.approx(-6.02, abs=0.01)
    assert np.abs(gain[: int(0.7 * cutoff)]).max() < 0.1
    assert gain[int(1.5 * cutoff)] < -50
    assert gain[min(2 * cutoff, 7999) :].max() < -90


def test_nothing_is_delayed():
    wave = tone(300) * np.hanning(RATE).astype(np.float32)
    np.testing.assert_allclose(low_pass(wave, 2000), wave, atol=1e-4)
    assert np.abs(low_pass(tone(6000), 2000)[1000:-1000]).max() < 1e-4


@pytest.mark.parametrize("n", [1, 5, 400])
def test_short_waveforms_can_be_filtered(n):
    assert low_pass(speech(n), 100).shape == (n,)


@pytest.mark.parametrize("cutoff", [0, -1, 8000, float("nan")])
def test_impossible_cutoffs(cutoff):
    with pytest.raises(InputError, match="cut-off"):
        low_pass(speech(), cutoff)


# ----------------------------------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 1.25, 2])
def test_frequencies_and_lengths_scale(factor):
    wave = change_speed(tone(1000), factor)
    assert wave.dtype == np.float32
    assert len(wave) == speed_length(RATE, factor) == int(np.ceil(round(RATE / factor, 6)))
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 20 * RATE))
    assert np.argmax(spectrum) / 20 == pytest.approx(1000 * factor, abs=0.1)
    middle = wave[1000:-1000]
    assert np.sqrt(2 * np.mean(middle.astype(np.float64) ** 2)) == pytest.approx(1, abs=0.01)
    steady = np.sin(2 * np.pi * 1000 * factor * np.arange(len(wave)) / RATE)
    assert np.abs(middle - steady[1000:-1000]).max() < 0.01


def test_what_would_be_above_half_the_rate_is_gone():
    assert np.abs(change_speed(tone(6000), 2)[500:-500]).max() < 0.01


@given(st.integers(1, 3000), st.integers(50, 200))
def test_lengths_are_exact(n, hundredths):
    factor = hundredths / 100
    assert len(change_speed(np.ones(n, dtype=np.float32), factor)) == speed_length(n, factor)
    assert speed_length(n, factor) == -(-n * 100 // hundredths)


@pytest.mark.parametrize("factor", [0, 0.49, 2.01, 1.005, float("nan")])
def test_impossible_speeds(factor):
    with pytest.raises(InputError, match="speed factor"):
        speed_ratio(factor)


# ------------------------------------------------------------------------------------------------------------ recordings


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "noise"
    (folder / "deep").mkdir(parents=True)
    ramp = np.arange(1, 5001) / 8192
    soundfile.write(folder / "deep" / "long.wav", ramp, RATE, subtype="FLOAT")
    (folder / "notes.txt").write_text("not audio")
    return folder


def test_long_recordings_are_cropped_and_short_ones_looped(recordings):
    made = Recordings(recordings)
    assert [p.name for p in made.paths] == ["long.wav"] and made.lengths == [5000]
    starts = set()
    for seed in range(20):
        part = made.part(4000, np.random.default_rng(seed)) * 8192
        np.testing.assert_array_equal(np.diff(part), 1)
        starts.add(part[0])
        looped = made.part(12_000, np.random.default_rng(seed)) * 8192
        assert set(np.diff(looped)) == {1, -4999} and (np.diff(looped) < 0).sum() in (2, 3)
    assert len(starts) > 10 and min(starts) >= 1 and max(starts) <= 1001
    np.testing.assert_array_equal(made.whole(np.random.default_rng(0)), audio.read(recordings / "deep" / "long.wav"))


def test_silent_parts_are_skipped_and_silent_recordings_named(recordings):
    click = np.zeros(5000)
    click[4900] = 0.5
    soundfile.write(recordings / "deep" / "long.wav", click, RATE)
    made = Recordings(recordings)
    for seed in range(10):
        part = made.part(50, np.random.default_rng(seed))
        assert part.max() == 0.5 and np.count_nonzero(part) == 1
    assert part[0] == 0.5
    soundfile.write(recordings / "deep" / "long.wav", np.zeros(5000), RATE)
    for draw in (lambda rng: made.part(50, rng), lambda rng: made.part(9000, rng), made.whole):
        with pytest.raises(InputError, match=r"long\.wav: holds nothing but silence; remove it"):
            draw(np.random.default_rng(0))


def test_folders_without_recordings_are_refused(tmp_path, recordings):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        Recordings(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no recording"):
        Recordings(tmp_path / "empty")
    (recordings / "broken.flac").write_bytes(b"fLaC")
    with pytest.raises(InputError, match=r"broken\.flac"):
        Recordings(recordings)
    soundfile.write(recordings / "broken.flac", np.zeros(0), RATE)
    with pytest.raises(InputError, match=r"broken\.flac"):
        Recordings(recordings)
