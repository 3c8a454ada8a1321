"""Speaker normalisation: the formula by hand, its limits, and evaluation with it."""

import numpy as np
import pytest

from emohubert.core.errors import InputError
from emohubert.speakers.normalisation import SpeakerNormalisation


def test_by_hand():
    """Training: a has 0, 2, 4 and b 10, 12: μ̄ = (2 + 11) / 2, σ̄² = (8 + 2) / 3; κ = 4."""
    fitted = SpeakerNormalisation.fit(["a", "b", "a", "b", "a", "<unk>"], np.array([[0.0], [10], [2], [12], [4], [1e6]]), 4.0)
    np.testing.assert_allclose([fitted.mean, fitted.variance], [[6.5], [10 / 3]])
    # one utterance: μ = (20 + 4 · 6.5) / 5 = 9.2 and σ = σ̄; three: μ = (3 · 4 + 26) / 7, σ² = (2 + 4 · 10/3) / 6
    found = fitted.apply(["s", "t", "t", "t", "<unk>"], np.array([[20.0], [3], [4], [5], [7]]))
    three = (np.array([3, 4, 5]) - 38 / 7) * np.sqrt((10 / 3) / ((2 + 40 / 3) / 6)) + 6.5
    np.testing.assert_allclose(found[:, 0], [20 - 9.2 + 6.5, *three, 7])


def test_many_utterances_are_exactly_standardised_and_a_speaker_is_alone():
    rng = np.random.default_rng(0)
    fitted = SpeakerNormalisation.fit(["a", "a", "b", "b"], rng.normal(size=(4, 3)))
    x = rng.normal(5, [1, 10, 0.1], (200_000, 3))
    found = fitted.apply(["s"] * len(x), x)
    z = (x - x.mean(0)) / x.std(0) * np.sqrt(fitted.variance) + fitted.mean
    np.testing.assert_allclose(found, z, atol=2e-3)
    exact = SpeakerNormalisation(fitted.mean, fitted.variance, pseudo_count=0)
    np.testing.assert_allclose(
        exact.of_speaker(x[:9]), (x[:9] - x[:9].mean(0)) / x[:9].std(0, ddof=1) * np.sqrt(fitted.variance) + fitted.mean
    )
    both = fitted.apply(["s"] * 5 + ["t"] * 4, x[:9])
    np.testing.assert_array_equal(both[5:], fitted.apply(["t"] * 4, x[5:9]))
    constant = SpeakerNormalisation(np.zeros(1), np.zeros(1)).of_speaker(np.full((3, 1), 2.0))
    np.testing.assert_array_equal(constant, 0)
    with pytest.raises(InputError, match="two utterances"):
        SpeakerNormalisation.fit(["a", "b"], np.eye(2))
