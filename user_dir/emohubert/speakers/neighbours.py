"""The training speakers most similar to a speaker: cosine similarity of their vectors (Tran, Yin & Soleymani 2023)."""

import numpy as np

_DECIMALS = 12  # similarities are compared after rounding, so that the order of summation cannot decide between equals


def cosine(vectors, training):
    """Cosine similarities (n, speakers) of vectors (n, width) with training vectors (speakers, width); 0 with a zero vector."""

    def unit(x):
        length = np.linalg.norm(x, axis=1, keepdims=True)
        return np.divide(x, length, out=np.zeros_like(x), where=length > 0)

    return np.clip(unit(vectors) @ unit(training).T, -1.0, 1.0)


def ranking(similarities, leave_one_out=False):
    """Columns of similarities (n, speakers) by falling value, equals in their order: (n, speakers). With `leave_one_out` rows are the same
    speakers as columns, and nobody is similar to themselves: (n, speakers − 1)."""
    similarities = np.round(similarities, _DECIMALS)
    if leave_one_out:
        np.fill_diagonal(similarities, -np.inf)
    return np.argsort(-similarities, axis=1, kind="stable")[:, : similarities.shape[1] - leave_one_out]


def numbers_of_neighbours(most):
    """Values of k to try: 1, 2, 3, 4, then each half as many again, up to all `most`; the largest first."""
    ks, k = [], 1
    while k < most:
        ks.append(k)
        k = max(k + 1, int(k * 1.5))
    return [most, *reversed(ks)]
