"""Prosodic descriptors against signals whose level, pitch and spectrum are known."""

import json

import numpy as np
import pytest
import torch
from scripts import run

from emohubert.corpus.audio import SAMPLE_RATE, n_frames
from emohubert.pseudo_labels import prosody

SECONDS = torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE


def harmonics(hertz, fall=1.0):
    """A sum of harmonics whose amplitudes fall as 1 / n^fall."""
    return sum(torch.sin(2 * np.pi * hertz * n * SECONDS) / n**fall for n in range(1, int(8000 / hertz))) * 0.05


def columns(x):
    return dict(zip(prosody.DESCRIPTORS, x[10:-10].T, strict=True))


@pytest.mark.parametrize("samples", [400, 719, 720, 16_000, 16_001, 48_123])
def test_a_row_for_every_frame_of_the_encoder(samples):
    assert prosody.features(torch.randn(samples)).shape == (n_frames(samples), len(prosody.SCALE))


@pytest.mark.parametrize("hertz", [70, 120, 220, 440])
def test_pitch_is_that_of_the_signal(hertz):
    found = columns(prosody.descriptors(harmonics(hertz)))
    assert (2 ** found["log F0"] / hertz - 1).abs().max() < 0.01
    assert found["voicing"].min() > 0.9


def test_noise_and_silence_have_no_pitch():
    assert columns(prosody.descriptors(0.1 * torch.randn(32_000)))["log F0"].count_nonzero() < 5
    assert not columns(prosody.descriptors(torch.zeros(32_000)))["log F0"].any()
    assert torch.isfinite(prosody.features(torch.zeros(32_000))).all()


def test_level_and_balance_in_decibels():
    loud, soft = (columns(prosody.descriptors(gain * harmonics(200))) for gain in (1.0, 0.1))
    np.testing.assert_allclose(loud["level"] - soft["level"], 20, atol=1e-3)
    np.testing.assert_allclose(loud["alpha ratio"], soft["alpha ratio"], atol=1e-3)
    # Two tones: the ratios are those of their amplitudes, and the centroid lies between them by their energies.
    tones = torch.sin(2 * np.pi * 500 * SECONDS) + 0.1 * torch.sin(2 * np.pi * 3000 * SECONDS)
    found = columns(prosody.descriptors(tones))
    np.testing.assert_allclose(found["alpha ratio"], -20, atol=0.1)
    np.testing.assert_allclose(found["Hammarberg"], 20, atol=0.5)
    np.testing.assert_allclose(found["centroid"], np.log2((500 + 0.01 * 3000) / 1.01 / 1000 + 0.01), atol=0.01)


def test_features_do_not_depend_on_gain_and_hardly_on_the_speakers_pitch():
    glide = torch.cumsum(2 ** (0.5 * SECONDS), 0) / SAMPLE_RATE  # one octave up in two seconds

    def voice(hertz, gain=1.0):
        return gain * sum(torch.sin(2 * np.pi * hertz * n * glide) / n for n in range(1, 8))

    voices = voice(100), voice(100, 0.01), voice(180)
    low, soft, high = (prosody.features(v)[10:-10, 1] for v in voices)
    torch.testing.assert_close(low, soft, atol=1e-3, rtol=0)
    torch.testing.assert_close(low, high, atol=0.05, rtol=0)
    np.testing.assert_allclose((low[-1] - low[0]) * prosody.SCALE[1], 0.5 * (len(low) - 1) * 0.02, atol=0.02)
    low, soft, high = (prosody.features(v, absolute=True)[10:-10] * torch.tensor(prosody.SCALE) for v in voices)
    np.testing.assert_allclose((high - low)[:, 1], np.log2(1.8), atol=0.03)
    np.testing.assert_allclose((low - soft)[:, 0], 40, atol=0.1)


def test_absolute_level_and_pitch_of_a_full_scale_sine():
    level, f0 = (prosody.features(torch.sin(2 * np.pi * 400 * SECONDS), absolute=True)[10:-10] * torch.tensor(prosody.SCALE))[:, :2].T
    np.testing.assert_allclose(level, 0, atol=0.5)
    np.testing.assert_allclose(f0, 1, atol=0.01)  # an octave above 200 Hz


def test_long_recordings_are_transformed_in_blocks(monkeypatch):
    waveform = torch.randn(40_000)
    whole = prosody.features(waveform)
    monkeypatch.setattr(prosody, "_BLOCK", 17)
    torch.testing.assert_close(prosody.features(waveform), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_program_writes_a_label_set(tmp_path, emodb):
    assert run("manifests/emodb.py", emodb, tmp_path / "manifest", "--protocol", "seen") == 0
    assert run("tools/make_labels.py", tmp_path / "manifest", tmp_path / "labels", "--prosody", "--clusters", 20) == 0
    folder = tmp_path / "labels" / "prosody" / "km20"
    lines = (folder / "train.km").read_text().splitlines()
    lengths = [int(line.split("\t")[1]) for line in (tmp_path / "manifest" / "train.tsv").read_text().splitlines()[1:]]
    assert [len(line.split()) for line in lines] == [n_frames(n) for n in lengths]
    assert len((folder / "dict.km.txt").read_text().splitlines()) == 20
    assert json.loads(str(np.load(folder / "kmeans.npz")["info"]))["features"]["kind"] == "prosody"
