"""Which frames (or channels) of an utterance are masked: a function of a seed and the utterance, of nothing else."""

from dataclasses import dataclass

import numpy as np


def rng_for(seed, epoch, index, purpose):
    """The random generator of one utterance in one epoch for one purpose ("mask", "crop", …), whatever batches, workers and processes do."""
    return np.random.default_rng([seed, epoch, index, *purpose.encode()])


def span_mask(n, probability, length, rng, min_spans=2):
    """Mask random spans of n frames, as HuBERT and wav2vec 2.0 do (fairseq's `compute_mask_indices`, static lengths): bool (n,).

    `probability × n / length` spans of `length` frames (rounded at random, at least `min_spans`) start at different frames and may
    overlap. An utterance shorter than two spans gets spans of half its own length, and one frame always stays visible, so that there is
    something to predict from; a single frame is never masked.
    """
    mask = np.zeros(n, dtype=bool)
    if n < 2 or probability <= 0:
        return mask
    length = min(length, n // 2)
    starts = n - length + 1
    spans = max(min_spans, int(probability * n / length + rng.random()))
    for start in rng.choice(starts, min(spans, starts), replace=False):
        mask[start : start + length] = True
    if mask.all():
        start = rng.integers(starts)
        mask[start : start + length] = False
    return mask


@dataclass(frozen=True)
class Masking:
    """How frames and channels are masked (the `mask_*` values of a model's configuration)."""

    probability: float
    length: int
    channel_probability: float = 0.0
    channel_length: int = 10
    width: int = 0

    @classmethod
    def of(cls, model_cfg, width):
        """From the configuration of a model of a width."""
        c = model_cfg
        return cls(c.mask_prob, c.mask_length, c.mask_channel_prob, c.mask_channel_length, width)

    def frames(self, n, rng):
        """Mask of n frames: bool (n,)."""
        return span_mask(n, self.probability, self.length, rng)

    def channels(self, rng):
        """Mask of the channels: bool (width,)."""
        return span_mask(self.width, self.channel_probability, self.channel_length, rng, min_spans=0)
