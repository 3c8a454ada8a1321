"""Batches under a budget: everything once, nothing over, little padding."""

import itertools

import numpy as np
import pytest
from fairseq.data import data_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from emohubert.core.batching import by_length, cut, divided

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


def padding_share(lengths, batches):
    return 1 - lengths[np.concatenate(batches)].sum() / sum(lengths[b].max() * len(b) for b in batches)


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


def groups(batches, parts):
    """What each update learns from: sets of utterances."""
    assert len(batches) % parts == 0
    return [sorted(np.concatenate(batches[i : i + parts]).tolist()) for i in range(0, len(batches), parts)]


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(1, 5000), most=st.none() | st.integers(1, 20), seed=st.none() | st.integers(0, 9))
def test_updates_do_not_depend_on_how_they_are_divided(lengths, budget, most, seed):
    def made(parts):
        rng = None if seed is None else np.random.default_rng(seed)
        return divided(lengths, parts, 4 * budget // parts, None if most is None else 4 * most // parts, rng=rng)

    whole = [sorted(b.tolist()) for b in made(1)]
    for parts in (2, 4):
        assert groups(made(parts), parts) == whole


@settings(max_examples=300, deadline=None)
@given(lengths=LENGTHS, parts=st.integers(2, 8), budget=st.integers(1, 5000), most=st.none() | st.integers(1, 20))
def test_parts_are_even_and_hardly_over_the_budget(lengths, parts, budget, most):
    lengths = np.array(lengths, dtype=np.int64)
    batches = divided(lengths, parts, budget, most)
    for first in range(0, len(batches), parts):
        together = batches[first : first + parts]
        sizes = [len(part) for part in together]
        assert min(sizes) > 0 or max(sizes) == 1  # nobody waits who could have had an utterance
        assert most is None or max(sizes) <= most
        for part in together:
            assert len(part) <= 1 or lengths[part].max() * (len(part) - 1) < budget


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), parts=st.integers(2, 4))
def test_the_longest_part_is_as_short_as_can_be(lengths, parts):
    """Against all ways to cut the sorted batch."""
    found = cut(np.array(lengths), np.arange(len(lengths)), parts)
    ordered = sorted(lengths, reverse=True)

    def cost(edges):
        return max(ordered[a] * (b - a) for a, b in zip((0, *edges), (*edges, len(ordered)), strict=True) if b > a)

    best = min(cost(edges) for edges in itertools.combinations_with_replacement(range(len(ordered) + 1), parts - 1))
    assert max(max(lengths[i] for i in part) * len(part) for part in found if len(part)) == best
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))


def test_realistic_parts_take_equally_long():
    lengths = realistic().astype(np.int64)
    batches = divided(lengths, 8, 1_400_000, rng=np.random.default_rng(1))
    costs = np.array([lengths[b].max() * len(b) if len(b) else 0 for b in batches]).reshape(-1, 8)
    waiting = 1 - costs.mean(axis=1) / costs.max(axis=1)
    assert waiting.mean() < 0.1
    assert costs.max() < 1.1 * 1_400_000
