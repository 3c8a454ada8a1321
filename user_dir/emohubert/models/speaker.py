"""A learned embedding per speaker, and the places where the encoder can hear it (Tran, Yin & Soleymani 2023)."""

import math

import torch
from torch import nn

from ..core.errors import InputError

POSITIONS = ("none", "input", "output", "prefix", "film")
AT_HEAD = ("none", "embedding", "mfcc")
UNKNOWN = 0
"""Row of the table for speakers outside it; trained by speaker dropout."""


class SpeakerConditioning(nn.Module):
    """A table of speaker vectors (row 0: the unknown speaker), applied at one position.

    - `input`: E(T(x) + e_s), the paper's choice: added to every frame before the Transformer, masked frames included,
      because the speaker is known there too; only what is said has to be predicted.
    - `output`: E(T(x)) + e_s.
    - `prefix`: one token before the first frame, dropped again from the output.
    - `film`: T(x) · (1 + γ_s) + β_s (Perez et al. 2018).

    All vectors start at zero, so that training starts at exactly the pretrained model for input, output and film. A
    prefix token cannot be a no-op, whatever its value: attention gives it some weight. Zero disturbs least.

    What the encoder hears is the table's row times √width, as of word embeddings in Transformers (Vaswani et al. 2017,
    section 3.4): Adam moves every parameter by about the learning rate, and a speaker has to be learned from few updates.
    """

    def __init__(self, position, n_speakers, width):
        super().__init__()
        if position not in POSITIONS[1:]:
            raise InputError(f"model.speaker_position={position}: unknown; use one of {', '.join(POSITIONS)}")
        self.position = position
        self.scale = math.sqrt(width)
        self.embedding = nn.Embedding(n_speakers + 1, 2 * width if position == "film" else width)
        nn.init.zeros_(self.embedding.weight)

    def vectors(self, rows):
        """Vectors of table rows, as the encoder hears them. rows: (batch,) long → (batch, width) or, for film, (batch, 2 × width)."""
        return self.embedding(rows) * self.scale

    def before_encoder(self, x, padding_mask, vectors):
        """Condition the encoder's input.

        Args:
            x: (batch, frames, width).
            padding_mask: (batch, frames) bool, or None.
            vectors: (batch, width) or, for film, (batch, 2 × width).

        Returns:
            x and padding_mask, one frame longer for `prefix`.
        """
        vectors = vectors.to(x.dtype).unsqueeze(1)
        if self.position == "input":
            x = x + vectors
        elif self.position == "film":
            scale, shift = vectors.chunk(2, dim=-1)
            x = x * (1 + scale) + shift
        elif self.position == "prefix":
            x = torch.cat([vectors, x], dim=1)
            if padding_mask is not None:
                padding_mask = torch.cat([padding_mask.new_zeros(len(x), 1), padding_mask], dim=1)
        return x, padding_mask

    def after_encoder(self, x, vectors):
        """Condition the encoder's output, or take the prefix token off. x: (batch, frames, width)."""
        if self.position == "output":
            return x + vectors.to(x.dtype).unsqueeze(1)
        return self.without_prefix(x)

    def without_prefix(self, x):
        """Drop the prefix token, where there is one. x: (batch, frames, width)."""
        return x[:, 1:] if self.position == "prefix" else x

    def mean_norm(self):
        """Mean Euclidean norm of the known speakers' vectors (a scalar tensor): how far they have moved from nothing."""
        return self.embedding.weight[1:].detach().float().norm(dim=-1).mean() * self.scale


class SpeakerAtHead(nn.Module):
    """What is known of the speaker, through a dense layer, added to the utterance vector (the CREMA-D report).

    Its weights start at zero: training starts at the head that knows no speaker.

    Args:
        width: of the utterance vector.
        n_speakers: known speakers, for learned vectors of `size`; row 0 of the table is the unknown speaker, and zero.
        size: of a speaker's vector.
    """

    def __init__(self, width, size, n_speakers=None):
        super().__init__()
        self.embedding = None if n_speakers is None else nn.Embedding(n_speakers + 1, size)
        if self.embedding is not None:
            with torch.no_grad():
                self.embedding.weight[UNKNOWN] = 0
        self.dense = nn.Linear(size, width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x, rows=None, vectors=None):
        """x (batch, width) with rows of the table (batch,), or vectors (batch, size); None: the unknown, or average, speaker."""
        if self.embedding is not None:
            rows = torch.full((len(x),), UNKNOWN, device=x.device) if rows is None else rows
            vectors = self.embedding(rows)
        elif vectors is None:
            vectors = x.new_zeros(len(x), self.dense.in_features)
        return x + self.dense(vectors.to(x.dtype))
