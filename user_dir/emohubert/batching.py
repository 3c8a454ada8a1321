"""Batches of utterances of similar length, under a budget."""

import numpy as np

BUCKETS = 50
"""Equal-count length buckets (Chen & Rudnicky 2023 shuffle within as many)."""


def by_length(lengths, budget=None, max_utterances=None, multiple=1, rng=None, buckets=BUCKETS):
    """Group utterances so that padding is small and no batch exceeds the budget.

    With `rng`, utterances are shuffled within length buckets, so that batches differ from epoch to epoch; without, they
    are sorted by length. Longest first either way, so that a lack of memory shows at once.

    Args:
        lengths: length of each utterance, in samples.
        budget: most samples in a batch, padding counted: the longest length × the number of utterances. An utterance
            longer than the budget is a batch of its own.
        max_utterances: most utterances in a batch.
        multiple: batches have a multiple of this many utterances where they are large enough.
        rng: a numpy Generator, or None.

    Returns:
        list of int64 arrays of indices: every utterance in exactly one.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) == 0:
        return []
    order = np.argsort(-lengths, kind="stable")
    if rng is not None:
        size = -(-len(order) // buckets)
        order = np.concatenate([rng.permutation(order[i : i + size]) for i in range(0, len(order), size)])
    batches, batch, longest = [], [], 0
    for index in order:
        grown = max(longest, lengths[index])
        while batch and (
            (budget is not None and grown * (len(batch) + 1) > budget) or (max_utterances is not None and len(batch) >= max_utterances)
        ):  # twice, where what is over a multiple does not go with the next utterance either
            keep = len(batch) - len(batch) % multiple if len(batch) > multiple else len(batch)
            batches.append(batch[:keep])
            batch = batch[keep:]
            grown = max(int(lengths[i]) for i in [*batch, index])
        batch.append(index)
        longest = grown
    batches.append(batch)
    return [np.array(b, dtype=np.int64) for b in batches]


def padding_share(lengths, batches):
    """Share of a set of batches that is padding, between 0 and 1."""
    lengths = np.asarray(lengths)
    padded = sum(lengths[b].max() * len(b) for b in batches)
    return 1 - lengths[np.concatenate(batches)].sum() / padded
