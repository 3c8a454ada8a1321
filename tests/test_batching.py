"""Batches under a budget: everything once, nothing over, little padding."""

import numpy as np
import pytest
from fairseq.data import data_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from emohubert.batching import by_length, padding_share

LENGTHS = st.lists(st.integers(1, 1000), max_size=150) | st.lists(st.integers(5, 12), max_size=60)
OPTIONS = {
    "budget": st.none() | st.integers(1, 5000) | st.integers(20, 60),
    "max_utterances": st.none() | st.integers(1, 20),
    "multiple": st.integers(1, 8),
    "seed": st.none() | st.integers(0, 100),
    "buckets": st.integers(1, 60),
}


def batches_of(lengths, seed=None, **options):
    return by_length(lengths, rng=None if seed is None else np.random.default_rng(seed), **options)


def realistic(n=3000, seed=0):
    """Lengths of an emotion corpus in samples: 0.5 to 15 s, mostly about 3."""
    return np.clip(np.random.default_rng(seed).lognormal(1.0, 0.5, n), 0.5, 15) * 16_000 // 1


@settings(max_examples=400, deadline=None)
@given(lengths=LENGTHS, **OPTIONS)
def test_every_utterance_once_and_nothing_over_the_budget(lengths, budget, max_utterances, multiple, seed, buckets):
    batches = batches_of(lengths, seed, budget=budget, max_utterances=max_utterances, multiple=multiple, buckets=buckets)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) > 0
        assert batch.dtype == np.int64
        assert len(batch) == 1 or budget is None or max(lengths[i] for i in batch) * len(batch) <= budget
        assert max_utterances is None or len(batch) <= max_utterances


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, **OPTIONS)
def test_multiples(lengths, budget, max_utterances, multiple, seed, buckets):
    batches = batches_of(lengths, seed, budget=budget, max_utterances=max_utterances, multiple=multiple, buckets=buckets)
    for batch in batches[:-1]:
        assert len(batch) % multiple == 0 or len(batch) < multiple


def test_what_is_over_a_multiple_does_not_break_the_budget():
    """Three of ten seconds in a budget of thirty, then one of sixteen: the third cannot go with it."""
    lengths, budget = [10, 10, 10, 16], 30

    class Order:
        permutation = staticmethod(lambda part: np.array([0, 1, 2, 3]))

    batches = by_length(lengths, budget, multiple=2, rng=Order, buckets=1)
    assert [b.tolist() for b in batches] == [[0, 1], [2], [3]]


def test_what_is_over_a_multiple_counts_in_the_next_batch():
    """The third of ten seconds sets the length of the batch it goes into: four would be forty seconds."""
    assert [b.tolist() for b in by_length([10, 10, 10, 7, 7, 7], 30, multiple=2)] == [[0, 1], [2, 3], [4, 5]]


@given(lengths=LENGTHS, budget=st.integers(1, 5000))
def test_sorted_batches_are_as_full_as_they_can_be(lengths, budget):
    batches = by_length(lengths, budget)
    in_order = [lengths[i] for b in batches for i in b]
    assert in_order == sorted(lengths, reverse=True)
    for batch in batches[:-1]:
        assert lengths[batch[0]] * (len(batch) + 1) > budget


def test_equal_lengths_keep_their_order():
    assert [b.tolist() for b in by_length([5] * 6, max_utterances=4)] == [[0, 1, 2, 3], [4, 5]]


def test_seeds():
    lengths = realistic()

    def flat(seed):
        return [b.tolist() for b in batches_of(lengths, seed, budget=1_600_000)]

    assert flat(1) == flat(1)
    assert flat(1) != flat(2)
    first, second = ({frozenset(b) for b in flat(seed)} for seed in (1, 2))
    assert not first & second  # other company, not only another order


def test_nothing_to_batch():
    assert by_length([], 100) == []


@pytest.mark.parametrize("budget", [400_000, 1_600_000, 5_600_000])
def test_padding(budget):
    """Sorted batches pad no more than fairseq's, shuffled ones little more; utterances as they come pad a third and more."""
    lengths = realistic().astype(np.int64)
    order = np.argsort(-lengths, kind="stable")
    stock = data_utils.batch_by_size(order, num_tokens_fn=lambda i: lengths[i], num_tokens_vec=lengths[order], max_tokens=budget)
    random = data_utils.batch_by_size(
        (shuffled := np.random.default_rng(0).permutation(len(lengths))), lambda i: lengths[i], lengths[shuffled], max_tokens=budget
    )
    ours = padding_share(lengths, by_length(lengths, budget))
    bucketed = padding_share(lengths, by_length(lengths, budget, rng=np.random.default_rng(0)))
    assert ours <= padding_share(lengths, stock) + 1e-12
    assert ours <= bucketed < ours + 0.035
    assert bucketed < padding_share(lengths, random) / 5


def test_padding_share_by_hand():
    assert padding_share([10, 5, 4], [np.array([0, 1]), np.array([2])]) == pytest.approx(5 / 24)
    assert padding_share([7, 7], [np.array([0, 1])]) == 0
