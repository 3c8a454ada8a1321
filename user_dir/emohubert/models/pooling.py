"""From frames to one vector per utterance. Padding is seen by nothing."""

import torch
from torch import nn

POOLINGS = ("mean", "attention", "statistics")


class MeanPooling(nn.Module):
    """Mean over an utterance's own frames (V-FT, Chen & Rudnicky 2023; Wagner et al. 2023)."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, x, valid):
        """x: (batch, frames, width), valid: (batch, frames) bool → (batch, width)"""
        return masked_mean(x, valid)


class AttentionPooling(nn.Module):
    """Soft attention (FLEA, Li et al. 2024, equations 2 and 3): a = softmax_t(tanh(W x_t)), z = Σ_t a_t x_t, W ∈ R^{1×D}, no bias."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.attention = nn.Linear(width, 1, bias=False)

    def weights(self, x, valid):
        """Attention over an utterance's own frames: (batch, frames), rows sum to 1."""
        scores = torch.tanh(self.attention(x)).squeeze(-1).float()
        return scores.masked_fill(~valid, float("-inf")).softmax(dim=-1).to(x.dtype)

    def forward(self, x, valid):
        """x: (batch, frames, width), valid: (batch, frames) bool → (batch, width)"""
        return torch.einsum("bt,btd->bd", self.weights(x, valid), x.masked_fill(~valid.unsqueeze(-1), 0))


class StatisticsPooling(nn.Module):
    """Attentive statistics (Okabe, Koshinaka & Shinoda 2018): attention-weighted mean and standard deviation of the frames."""

    def __init__(self, width, hidden=128):
        super().__init__()
        self.width = 2 * width
        self.attention = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, x, valid):
        """x: (batch, frames, width), valid: (batch, frames) bool → (batch, 2 × width)"""
        scores = self.attention(x).squeeze(-1).float()
        weights = scores.masked_fill(~valid, float("-inf")).softmax(dim=-1).to(x.dtype).unsqueeze(-1)
        x = x.masked_fill(~valid.unsqueeze(-1), 0)
        mean = (weights * x).sum(dim=1)
        variance = (weights * (x - mean.unsqueeze(1)).pow(2)).sum(dim=1)
        return torch.cat([mean, (variance + 1e-8).sqrt()], dim=-1)


def masked_mean(x, valid):
    """Mean over valid frames. x: (batch, frames, width), valid: (batch, frames) bool → (batch, width)"""
    return x.masked_fill(~valid.unsqueeze(-1), 0).sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)


def make_pooling(name, width):
    """A pooling module by its name in POOLINGS; its attribute `width` is the size of what it returns."""
    return {"mean": MeanPooling, "attention": AttentionPooling, "statistics": StatisticsPooling}[name](width)
