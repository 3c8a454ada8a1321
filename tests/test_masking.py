"""Masks: as many as fairseq's, for any length, and a function of (seed, epoch, utterance) alone."""

import numpy as np
import pytest
from fairseq.data.data_utils import compute_mask_indices
from hypothesis import given, settings
from hypothesis import strategies as st

from emohubert.data.masking import rng_for, span_mask


def mask_of(n, probability=0.8, length=10, seed=0, epoch=1, index=0, **options):
    return span_mask(n, probability, length, rng_for(seed, epoch, index, "mask"), **options)


def spans_of(mask):
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return edges[1::2] - edges[::2]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(0, 300), st.floats(0, 3), st.integers(1, 400), st.integers(0, 5), st.integers(0, 10**6))
def test_something_is_masked_and_something_is_not(n, probability, length, min_spans, seed):
    mask = mask_of(n, probability, length, seed, min_spans=min_spans)
    assert mask.shape == (n,)
    assert mask.dtype == bool
    assert not mask.all() or n == 0
    if n < 2 or probability == 0:
        assert not mask.any()
    elif min_spans > 0:
        assert mask.any()
    length = min(length, max(n // 2, 1))
    if max(min_spans, probability * n / length + 1) * length < n:  # too few to mask everything, after which a span is freed
        assert all(spans_of(mask) >= length)


@pytest.mark.parametrize(("n", "masked"), [(0, {0}), (1, {0}), (2, {1}), (3, {2}), (4, {2, 3})])
@pytest.mark.parametrize("probability", [0.01, 0.8, 1, 2])
def test_the_shortest_utterances(n, masked, probability):
    assert {int(mask_of(n, probability, seed=seed).sum()) for seed in range(40)} <= masked


@pytest.mark.parametrize("n", [2, 3, 10, 19, 20, 500])
def test_no_probability_no_mask(n):
    assert not mask_of(n, 0).any()
    assert not mask_of(n, -1).any()


@pytest.mark.parametrize("probability", [1.5, 10, 1000])
@pytest.mark.parametrize("n", [5, 25, 500])
def test_probabilities_above_one(n, probability):
    for seed in range(20):
        mask = mask_of(n, probability, seed=seed)
        assert 0 < mask.sum() < n


@pytest.mark.slow
@pytest.mark.parametrize(("n", "probability", "length", "min_spans"), [
    (1500, 0.8, 10, 2),  # HuBERT
    (500, 0.8, 10, 2),
    (149, 0.8, 10, 2),
    (300, 0.06, 15, 2),  # P-TAPT
    (300, 0.65, 10, 2),  # wav2vec 2.0
    (768, 0.25, 64, 0),  # channels
])  # fmt: skip
def test_as_many_frames_as_fairseq(n, probability, length, min_spans):
    """Share of masked frames and its spread, number of runs, and the share at every place but the very last."""
    draws = 3000
    np.random.seed(0)
    stock = compute_mask_indices((draws, n), None, probability, length, "static", min_masks=min_spans, require_same_masks=False)
    ours = np.stack([mask_of(n, probability, length, index=i, min_spans=min_spans) for i in range(draws)])
    shares = stock.mean(axis=1), ours.mean(axis=1)
    error = np.hypot(*(s.std() / np.sqrt(draws) for s in shares))
    assert abs(shares[0].mean() - shares[1].mean()) < 5 * error + length / n**2  # fairseq has one place less for a start
    assert shares[1].std() == pytest.approx(shares[0].std(), rel=0.1)
    runs = [np.mean([len(spans_of(m)) for m in masks[:500]]) for masks in (stock, ours)]
    assert runs[1] == pytest.approx(runs[0], rel=0.05)
    middle = slice(length, n - length)
    by_place = ours[:, middle].mean(axis=0)
    assert by_place.std() < 1.5 * np.sqrt(by_place.mean() * (1 - by_place.mean()) / draws)
    assert ours[:, 0].any() and ours[:, -1].any()


def test_the_last_frame_takes_part():
    """fairseq never masks it; here every place of a span is as likely as any other."""
    ends = np.mean([mask_of(50, 0.2, 10, index=i)[[0, -1]] for i in range(4000)], axis=0)
    assert ends[0] == pytest.approx(ends[1], abs=0.02)


@pytest.mark.parametrize("n", range(2, 40))
def test_short_utterances_are_handled_where_fairseq_is_not(n):
    """Under two spans, spans are half the utterance; a good part stays visible on average."""
    masks = np.stack([mask_of(n, seed=seed) for seed in range(200)])
    assert 0.3 <= masks.mean() <= 0.85
    assert (masks.sum(axis=1) < n).all()


# -------------------------------------------------------------------------------------------------------- what it depends on


def test_the_same_again():
    np.testing.assert_array_equal(mask_of(300, seed=3, epoch=2, index=7), mask_of(300, seed=3, epoch=2, index=7))


def test_nothing_else_matters():
    """Not the global generators, nor what was drawn before, nor in which order."""
    expected = {i: mask_of(200, index=i) for i in range(20)}
    np.random.seed(99)
    for i in reversed(range(20)):
        np.random.random(i)
        rng_for(0, 1, i, "crop").random(5)
        np.testing.assert_array_equal(mask_of(200, index=i), expected[i])


def test_seed_epoch_utterance_and_purpose_all_matter():
    """No two generators of a small grid agree: (1, 2) is not (2, 1), and neighbours are as unlike as strangers."""
    grid = [(s, e, i, p) for s in range(4) for e in range(4) for i in range(4) for p in ("mask", "crop", "speaker", "channels")]
    draws = np.stack([rng_for(*place).random(64) for place in grid])
    correlations = np.corrcoef(draws)[np.triu_indices(len(grid), 1)]
    assert np.abs(correlations).max() < 0.7
    assert correlations.std() == pytest.approx(1 / np.sqrt(64), rel=0.05)


def test_large_numbers():
    a, b = (rng_for(2**40, 10**6, i, "mask").random() for i in (10**8, 10**8 + 1))
    assert a != b
