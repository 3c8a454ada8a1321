"""Batches of utterances of similar length, under a budget, and their division among processes."""

import numpy as np

BUCKETS = 50  # equal-count length buckets (Chen & Rudnicky 2023 shuffle within as many)


def by_length(lengths, budget=None, max_utterances=None, multiple=1, rng=None, buckets=BUCKETS):
    """Group utterances of these lengths into batches: int64 arrays of indices, every utterance in one, longest first. With `rng`, a numpy
    Generator, utterances are shuffled within length buckets; without, they are sorted. `budget` limits the longest length × the number of
    utterances; a longer utterance is a batch of its own. Large batches have a multiple of `multiple` utterances."""
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
    return [np.array(b, dtype=np.int64) for b in [*batches, batch]]


def divided(lengths, parts, budget=None, max_utterances=None, multiple=1, rng=None):
    """Batches for `parts` processes (or passes, where gradients are accumulated) that make each update together, whatever their number: two
    parts under a budget are the batch that one process has under twice the budget, cut in two that take equally long. So a part may exceed
    the budget, by less than its longest utterance. Returns a list of int64 arrays of indices, the parts of a batch next to each other, some
    empty where it has fewer utterances than parts. Options as for `by_length`, `max_utterances` of a part; `rng` shuffles batches, too."""
    limits = [None if limit is None else limit * parts for limit in (budget, max_utterances)]
    lengths = np.asarray(lengths, dtype=np.int64)
    batches = by_length(lengths, *limits, multiple, rng)
    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches if parts == 1 else [part for batch in batches for part in cut(lengths, batch, parts, max_utterances)]


def cut(lengths, batch, parts, max_utterances=None):
    """Cut a batch (indices) into `parts` arrays of similar length within, so that the one that takes longest, padding counted, takes
    as little as can be: longest utterances first, empty arrays at the end where there are too few."""
    batch = batch[np.argsort(-lengths[batch], kind="stable")]
    own = lengths[batch]
    most = len(batch) if max_utterances is None else max_utterances

    def cuts(cost):
        found, first = [], 0
        while first < len(batch):
            first += int(min(max(cost // own[first], 1), most, len(batch) - first))
            found.append(first)
        return found

    low, high = int(own[0]), int(own[0]) * len(batch)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cuts(middle)) <= parts else (middle + 1, high)
    edges = [0, *cuts(low)]
    while len(edges) <= min(parts, len(batch)):  # a part for everyone, where there are utterances enough
        widest = max(range(len(edges) - 1), key=lambda i: (edges[i + 1] - edges[i] > 1) * own[edges[i]] * (edges[i + 1] - edges[i]))
        edges.insert(widest + 1, (edges[widest] + edges[widest + 1] + 1) // 2)
    pieces = [batch[first:last] for first, last in zip(edges, edges[1:], strict=False)]
    return pieces + [batch[:0]] * (parts - len(pieces))
