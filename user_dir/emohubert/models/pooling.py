"""From frames to one vector per utterance, over the utterance's own frames: padding changes nothing."""

import torch
from torch import nn
from torch.nn import functional as F

from ..core.options import Registry
from ..corpus.audio import HOP, RECEPTIVE_FIELD

POOLINGS = Registry("model.pooling")


class Pooling(nn.Module):
    """A pooling: `forward(x, own)` of x (batch, frames, width) and own (batch, frames) bool, not padding, gives (batch, `self.width`)."""

    few_frames = None
    """1: of the frames nothing but the mean counts; 2: nothing but mean and standard deviation. Cached features are then so few frames."""
    weights = None
    """Of a pooling with attention, a method: the weight of each frame, (batch, frames), from what `forward` takes."""

    def __init__(self, width):
        super().__init__()
        self.width = width


@POOLINGS.register("mean")
class MeanPooling(Pooling):
    """Mean over time (Chen & Rudnicky 2023; Wagner et al. 2023; Tran et al. 2023)."""

    few_frames = 1

    def forward(self, x, own):
        """(batch, frames, width), (batch, frames) → (batch, width)"""
        return without_padding(x, own).sum(dim=1) / own.sum(dim=1, keepdim=True).clamp(min=1)


@POOLINGS.register("mean_std")
class MeanStdPooling(Pooling):
    """Mean and standard deviation over time."""

    few_frames = 2

    def __init__(self, width):
        super().__init__(2 * width)

    def forward(self, x, own):
        """(batch, frames, width), (batch, frames) → (batch, 2 × width)"""
        n = own.sum(dim=1, keepdim=True).clamp(min=1)
        mean = without_padding(x, own).sum(dim=1) / n
        variance = without_padding(x - mean.unsqueeze(1), own).pow(2).sum(dim=1) / n
        return torch.cat([mean, (variance + 1e-8).sqrt()], dim=-1)


@POOLINGS.register("attention")
class AttentionPooling(Pooling):
    """Soft attention (Li et al. 2024, equations 2 and 3): a = softmax_t(tanh(W x_t)), z = Σ_t a_t x_t, W ∈ R^{1×D}, no bias."""

    def __init__(self, width):
        super().__init__(width)
        self.attention = nn.Linear(width, 1, bias=False)

    def forward(self, x, own):
        """(batch, frames, width), (batch, frames) → (batch, width)"""
        return torch.einsum("bt,btd->bd", self.weights(x, own), without_padding(x, own))

    def weights(self, x, own):
        """a, of each frame: (batch, frames)."""
        return softmax_over_time(torch.tanh(self.attention(x)), own).to(x.dtype)


@POOLINGS.register("statistics")
class StatisticsPooling(Pooling):
    """Attentive statistics (Okabe, Koshinaka & Shinoda 2018): attention-weighted mean and standard deviation of the frames."""

    def __init__(self, width, hidden=128):
        super().__init__(2 * width)
        self.attention = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, x, own):
        """(batch, frames, width), (batch, frames) → (batch, 2 × width)"""
        a = self.weights(x, own).unsqueeze(-1)  # (batch, frames, 1)
        x = without_padding(x, own)
        mean = (a * x).sum(dim=1)
        variance = (a * (x - mean.unsqueeze(1)).pow(2)).sum(dim=1)
        return torch.cat([mean, (variance + 1e-8).sqrt()], dim=-1)

    def weights(self, x, own):
        """Of each frame: (batch, frames)."""
        return softmax_over_time(self.attention(x), own).to(x.dtype)


def loud_frames(source, frames, decibels):
    """Frames within so many decibels of the utterance's loudest one: (batch, frames) bool; the padding's are silent. `source`: (batch,
    samples), zero-padded; `frames`: of the longest utterance."""
    energy = F.avg_pool1d(source.float().pow(2).unsqueeze(1), RECEPTIVE_FIELD, HOP).squeeze(1)[:, :frames]
    loud = energy >= energy.amax(dim=1, keepdim=True) * 10 ** (-decibels / 10)
    return F.pad(loud, (0, frames - loud.size(1)))


def without_padding(x, own):
    """Zeros in the padding. x: (batch, frames, width), own: (batch, frames)."""
    return x.masked_fill(~own.unsqueeze(-1), 0)


def softmax_over_time(scores, own):
    """Weights over an utterance's own frames, each row sums to 1. scores: (batch, frames, 1), own: (batch, frames) → (batch, frames)."""
    return scores.squeeze(-1).float().masked_fill(~own, float("-inf")).softmax(dim=-1)
