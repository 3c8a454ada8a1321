"""Speaker conditioning: a learned vector per speaker, e_i = S(s_i), and the positions at which it is added (Tran, Yin & Soleymani 2023)."""

import math

import torch
from torch import nn

from ..core.options import Registry

POSITIONS = Registry("model.speaker_position")
AT_HEAD = ("none", "embedding", "mfcc")
UNKNOWN = 0  # row of the table for speakers outside it; trained by speaker dropout


class SpeakerConditioning(nn.Module):
    """The speaker embedding module S: a table, row 0 the unknown speaker, then (`fc`) a fully connected layer. Subclasses say where e goes.

    The table starts at zero, the layer at the identity with bias zero: e is zero, and training starts at exactly the pretrained model
    (except for `prefix`); and a checkpoint without the layer continues with it from exactly where it was.

    e = FC(√width · row), scaled as word embeddings in Transformers are (Vaswani et al. 2017, section 3.4): Adam moves every
    parameter by about the learning rate, and a speaker has to be learned from few updates.
    """

    widths = 1  # size of a speaker's vector, in multiples of the Transformer's width

    def __init__(self, n_speakers, width, fc=False):
        super().__init__()
        self.scale = math.sqrt(width)
        self.embedding = nn.Embedding(n_speakers + 1, self.widths * width)
        nn.init.zeros_(self.embedding.weight)
        self.fc = nn.Linear(self.widths * width, self.widths * width) if fc else None
        if fc:
            nn.init.eye_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)

    def vectors(self, rows):
        """e of table rows: (batch,) → (batch, widths × width)."""
        e = self.embedding(rows) * self.scale
        return e if self.fc is None else self.fc(e)

    def before_encoder(self, x, padding_mask, e):
        """Condition the encoder's input x (batch, frames, width), with its padding_mask (batch, frames) or None, by e (batch, widths ×
        width). Returns both; where frames are added, `frames_of` must take them off."""
        return x, padding_mask

    def frames_of(self, x):
        """The utterance's frames in the output of a layer. x: (batch, frames, width)."""
        return x

    def after_encoder(self, x, e):
        """Condition the encoder's output. x: (batch, frames, width), e: (batch, widths × width)."""
        return x

    def mean_norm(self):
        """Mean Euclidean norm of e over the known speakers (a scalar tensor): how far training has moved them from zero."""
        with torch.no_grad():
            return (
                self.vectors(torch.arange(1, len(self.embedding.weight), device=self.embedding.weight.device)).float().norm(dim=-1).mean()
            )


@POSITIONS.register("input")
class AtInput(SpeakerConditioning):
    """E(T(x) + e): added to every frame before the Transformer, masked frames included (“First” in the paper's table 4)."""

    def before_encoder(self, x, padding_mask, e):
        """See SpeakerConditioning."""
        return x + e.to(x.dtype).unsqueeze(1), padding_mask


@POSITIONS.register("output")
class AtOutput(SpeakerConditioning):
    """f + e, f = E(T(x)): added to every frame of the encoder's output (“Last”, the paper's choice). That is what the masked-prediction
    loss and the pooling of fine-tuning receive; no layer of the encoder depends on the speaker."""

    def after_encoder(self, x, e):
        """See SpeakerConditioning."""
        return x + e.to(x.dtype).unsqueeze(1)


@POSITIONS.register("prefix")
class AsPrefix(SpeakerConditioning):
    """A token before the first frame, dropped from the output. Whatever its value, it gets some attention; zero disturbs least."""

    def before_encoder(self, x, padding_mask, e):
        """See SpeakerConditioning."""
        x = torch.cat([e.to(x.dtype).unsqueeze(1), x], dim=1)
        if padding_mask is not None:
            padding_mask = torch.cat([torch.zeros_like(padding_mask[:, :1]), padding_mask], dim=1)
        return x, padding_mask

    def frames_of(self, x):
        """See SpeakerConditioning."""
        return x[:, 1:]


@POSITIONS.register("film")
class Film(SpeakerConditioning):
    """T(x) · (1 + γ) + β before the Transformer, e = (γ, β) (Perez et al. 2018)."""

    widths = 2

    def before_encoder(self, x, padding_mask, e):
        """See SpeakerConditioning."""
        scale, shift = e.to(x.dtype).unsqueeze(1).chunk(2, dim=-1)
        return x * (1 + scale) + shift, padding_mask


class SpeakerAtHead(nn.Module):
    """What is known of the speaker, through a dense layer, added to the utterance vector (the CREMA-D report). The layer starts at
    zero, training at the head without a speaker. With `n_speakers`, vectors are learned; row 0, the unknown speaker's, is zero."""

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
