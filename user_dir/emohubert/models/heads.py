"""From an utterance's vector to class logits or dimensions."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..core.options import Registry

HEADS = Registry("model.head")
DIMENSIONS = "dimensions"


@dataclass(frozen=True)
class Output:
    """Columns of a model's output, from `start`: `names` of classes, whose logits they are, or of dimensions. `target`: `emo`, a column of
    .meta.tsv, or `dimensions`."""

    target: str
    names: tuple
    start: int

    @property
    def are_classes(self):
        """Whether they are classes."""
        return self.target != DIMENSIONS

    @property
    def columns(self):
        """Where they are."""
        return slice(self.start, self.start + len(self.names))


def outputs_of(classes, dimensions, categories):
    """The Outputs of a model, in the order of its columns: of classes, dimensions and {column of .meta.tsv: its values}, those there are."""
    found, start = [], 0
    for target, names in (("emo", classes), (DIMENSIONS, dimensions), *categories.items()):
        if names:
            found.append(Output(target, tuple(names), start))
            start += len(names)
    return found


def values_of(outputs, x):
    """Probabilities of each Output's classes, and dimensions as they are, of what a head returns: (n, outputs) → the same shape."""
    return torch.cat([part.softmax(dim=1) if o.are_classes else part for o in outputs for part in [x[:, o.columns]]], dim=1)


class Head(nn.Sequential):
    """A head made of layers in a row: `__init__(width, outputs, dropout)` hands them to `super().__init__`."""

    @classmethod
    def build(cls, cfg, width, outputs):
        """The head for utterance vectors of a width, by an EmotionHubertConfig; a head that needs more of it than the dropout overrides this."""
        return cls(width, outputs, cfg.head_dropout)

    def forward(self, x):
        """x: (batch, width) → {"output": (batch, outputs)}; what a head adds to it goes into the model's output."""
        return {"output": super().forward(x)}


@HEADS.register("linear")
class LinearHead(Head):
    """One linear layer (Li et al. 2024)."""

    def __init__(self, width, outputs, dropout=0.0):
        super().__init__(nn.Dropout(dropout), nn.Linear(width, outputs))


@HEADS.register("relu_linear")
class ReluLinearHead(Head):
    """ReLU, then a linear layer (V-FT, Chen & Rudnicky 2023)."""

    def __init__(self, width, outputs, dropout=0.0):
        super().__init__(nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs))


@HEADS.register("hidden")
class HiddenHead(Head):
    """A hidden layer of the same width, tanh, a linear layer (Wagner et al. 2023)."""

    def __init__(self, width, outputs, dropout=0.0):
        super().__init__(nn.Dropout(dropout), nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, outputs))


@HEADS.register("mlp")
class MlpHead(Head):
    """256-64 with batch norm, ReLU and dropout (the CREMA-D report)."""

    sizes = (256, 64)

    def __init__(self, width, outputs, dropout=0.0):
        layers = []
        for size in self.sizes:
            layers += self.hidden(width, size, dropout)
            width = size
        super().__init__(*layers, nn.Linear(width, outputs))

    @staticmethod
    def hidden(width, size, dropout):
        """The modules of a hidden layer."""
        return [nn.Linear(width, size), BatchNorm(size), nn.ReLU(), nn.Dropout(dropout)]


@HEADS.register("mlp_deep")
class DeepMlpHead(MlpHead):
    """The same, 1024-256-64-64."""

    sizes = (1024, 256, 64, 64)


@HEADS.register("interpreter")
class InterpreterHead(MlpHead):
    """128-32 with ReLU, dropout and then batch norm: the head of PAPT (Tran, Yin & Soleymani 2023)."""

    sizes = (128, 32)

    @staticmethod
    def hidden(width, size, dropout):
        """The modules of a hidden layer."""
        return [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout), BatchNorm(size)]


class BatchNorm(nn.BatchNorm1d):
    """Batch norm in which a training batch of one utterance, which has no variance, is normalised by the running statistics."""

    def forward(self, x):
        """(batch, width) → the same shape."""
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


@HEADS.register("contrastive")
class ContrastiveHead(nn.Module):
    """A point on the unit sphere for supervised contrastive learning (Khosla et al. 2020), and classes read off it.

    Logits are the cosine to each class's centroid over the temperature. Centroids are running means over training utterances, of which
    the last hundred or so of a class count (`follow`); reading classes off moves no point."""

    memory = 0.99  # what is left of a centroid after one more utterance of its class

    def __init__(self, width, outputs, dropout=0.0, size=128, temperature=0.1):
        super().__init__()
        self.temperature = temperature
        self.projection = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size))
        self.register_buffer("centroids", torch.zeros(outputs, size))

    @classmethod
    def build(cls, cfg, width, outputs):
        """See `Head.build`."""
        return cls(width, outputs, cfg.head_dropout, cfg.projection, cfg.temperature)

    def forward(self, x):
        """x: (batch, width) → {"projection": (batch, size), points of length 1, "output": (batch, classes), logits}."""
        points = self.project(x)
        return {"projection": points, "output": self.read_out(points)}

    def project(self, x):
        """(batch, width) → (batch, size), of length 1."""
        return F.normalize(self.projection(x).float(), dim=-1)

    def read_out(self, points):
        """Logits (batch, classes) of points (batch, size); a class without training utterances has the lowest."""
        centroids = self.centroids.float()
        cosines = points.detach() @ F.normalize(centroids, dim=-1).T
        return cosines.masked_fill((centroids == 0).all(dim=-1), -1.0) / self.temperature

    @torch.no_grad()
    def follow(self, points, target):
        """Move the centroids with a training batch: points (n, size), target (n,) classes."""
        for c in target.unique().tolist():
            own = points[target == c].to(self.centroids.dtype)
            kept = self.memory ** len(own) if self.centroids[c].any() else 0.0
            self.centroids[c] = kept * self.centroids[c] + (1 - kept) * own.mean(dim=0)
