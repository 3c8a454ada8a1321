"""From an utterance's vector to class logits or dimensions."""

import torch
from torch import nn
from torch.nn import functional as F

HEADS = ("linear", "relu_linear", "hidden", "mlp", "mlp_deep", "contrastive")
READOUTS = ("centroid", "linear")


class BatchNorm(nn.BatchNorm1d):
    """Batch norm for training batches of any size: one utterance alone, which has no variance, gets the running statistics."""

    def forward(self, x):
        """(batch, width) → the same shape."""
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class ContrastiveHead(nn.Module):
    """A point on the unit sphere for supervised contrastive learning (Khosla et al. 2020), and classes read off it.

    The read-out learns from these points without moving them:
    - `centroid`: the cosine to each class's centroid over the temperature. Centroids are running means over training
      utterances, of which the last hundred or so of a class count (`follow`);
    - `linear`: a linear layer; its cross-entropy is part of the criterion.

    Args:
        width: of the utterance vector.
        outputs: classes.
        dropout: probability.
        size: dimensions of the sphere's space.
        readout: one of READOUTS.
        temperature: τ.
    """

    memory = 0.99
    """What is left of a centroid after one more utterance of its class."""

    def __init__(self, width, outputs, dropout=0.0, size=128, readout="centroid", temperature=0.1):
        super().__init__()
        self.temperature = temperature
        self.projection = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size))
        self.readout = nn.Linear(size, outputs) if readout == "linear" else None
        if self.readout is None:
            self.register_buffer("centroids", torch.zeros(outputs, size))

    def project(self, x):
        """(batch, width) → (batch, size), of length 1."""
        return F.normalize(self.projection(x).float(), dim=-1)

    def read_out(self, points):
        """Logits (batch, classes) of points (batch, size); a class that was never met has the least."""
        points = points.detach()
        if self.readout is not None:
            return self.readout(points.to(self.readout.weight.dtype))
        centroids = self.centroids.float()
        cosines = points @ F.normalize(centroids, dim=-1).T
        return cosines.masked_fill((centroids == 0).all(dim=-1), -1.0) / self.temperature

    @torch.no_grad()
    def follow(self, points, target):
        """Move the centroids with a training batch: points (n, size), target (n,) classes."""
        for c in target.unique().tolist() if self.readout is None else ():
            own = points[target == c].to(self.centroids.dtype)
            kept = self.memory ** len(own) if self.centroids[c].any() else 0.0
            self.centroids[c] = kept * self.centroids[c] + (1 - kept) * own.mean(dim=0)

    def forward(self, x):
        """(batch, width) → logits (batch, classes)."""
        return self.read_out(self.project(x))


def make_head(name, width, outputs, dropout=0.0, **contrastive):
    """A head by its name.

    - `linear`: one linear layer (FLEA).
    - `relu_linear`: ReLU, then a linear layer (V-FT, Chen & Rudnicky 2023).
    - `hidden`: dropout, hidden layer of the same width, tanh, dropout, linear (Wagner et al. 2023).
    - `mlp`: 256-64 with batch norm, ReLU and dropout; `mlp_deep`: 1024-256-64-64 (the CREMA-D report).
    - `contrastive`: see ContrastiveHead.

    Args:
        name: one of HEADS.
        width: size of the utterance vector.
        outputs: classes or dimensions.
        dropout: probability.
        contrastive: size, readout and temperature of a ContrastiveHead.
    """
    if name == "contrastive":
        return ContrastiveHead(width, outputs, dropout, **contrastive)
    if name == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, outputs))
    if name == "relu_linear":
        return nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs))
    if name == "hidden":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, outputs))
    layers = []
    for size in {"mlp": (256, 64), "mlp_deep": (1024, 256, 64, 64)}[name]:
        layers += [nn.Linear(width, size), BatchNorm(size), nn.ReLU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))
