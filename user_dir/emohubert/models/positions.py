"""Where a frame stands, as WavLM's and data2vec's Transformers know it, in fairseq's modules.

WavLM (Chen et al. 2022, section III-B): a bias d for each pair of frames by their distance, learned per bucket of distances and head and
shared by all layers, is scaled for each frame q by gates of what it holds, and added to the attention's logits:

g_a, g_b = σ(q · u), σ(q · w);  r = g_a (g_b s − 1) + 2;  logits + r d

data2vec (Baevski et al. 2022) has several short convolutions, each with LayerNorm and GELU, in place of HuBERT's one. Parameter names are
those of both original implementations.
"""

import math

import torch
from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from torch import nn

from ..core.errors import InputError


class RelativePositions(nn.Embedding):
    """d: a value for each bucket of distances and head."""

    def __init__(self, buckets, heads, distance):
        super().__init__(buckets, heads)
        self.distance = distance

    def buckets(self, offsets):
        """The bucket of each offset (any shape of int): half of all are for frames that follow; in each half one for every distance of up
        to half its buckets, and for those beyond, the buckets widen logarithmically up to `distance`, the last holding all farther ones."""
        each = self.num_embeddings // 2
        exact = each // 2
        distances = offsets.abs()
        far = torch.log(distances.clamp(min=1).float() / exact) / math.log(self.distance / exact) * (each - exact)
        far = (exact + far).long().clamp(max=each - 1)
        return (offsets > 0) * each + torch.where(distances < exact, distances, far)

    def forward(self, frames):
        """(heads, frames, frames): a query's row has a value for each key."""
        at = torch.arange(frames, device=self.weight.device)
        return super().forward(self.buckets(at - at.unsqueeze(1))).permute(2, 0, 1)


class GatedRelativeAttention(MultiheadAttention):
    """fairseq's self-attention with WavLM's bias, by the scaled_dot_product_attention of torch; `positions`: those of the first layer, or
    None in it."""

    def __init__(self, width, heads, dropout, buckets, distance, positions=None):
        super().__init__(width, heads, dropout=dropout, self_attention=True)
        if positions is None:
            positions = self.relative_attention_bias = RelativePositions(buckets, heads, distance)
        self._positions = [positions]  # in a list: no parameter of this layer
        self.grep_linear = nn.Linear(self.head_dim, 8)  # u and w, each the sum of four
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))  # s

    def forward(self, query, key, value, key_padding_mask=None, **options):
        """query = key = value: (frames, batch, width); key_padding_mask: (batch, frames) bool, or None."""
        x = query.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)  # (batch, heads, frames, width of a head)
        a, b = self.grep_linear(x).unflatten(-1, (2, 4)).sum(dim=-1).sigmoid().chunk(2, dim=-1)
        bias = (a * (b * self.grep_a - 1) + 2) * self._positions[0](query.shape[0])  # (batch, heads, frames, frames)
        if key_padding_mask is not None:
            bias = bias.masked_fill_(key_padding_mask[:, None, None], -math.inf)
        return super().forward(query, key, value, attn_mask=bias.flatten(0, 1), need_weights=False)


def add_relative_positions(encoder, cfg):
    """Give the layers of fairseq's TransformerEncoder WavLM's attention, by a SpeakerHubertConfig, with random weights."""
    if cfg.relative_position_buckets < 4 or cfg.relative_position_distance <= cfg.relative_position_buckets // 4:
        given = f"relative_position_buckets={cfg.relative_position_buckets} and relative_position_distance={cfg.relative_position_distance}"
        raise InputError(f"model.{given}: give at least 4 buckets, and a distance above a quarter of them; WavLM has 320 and 800")
    positions = None
    for layer in encoder.layers:
        sizes = cfg.encoder_embed_dim, cfg.encoder_attention_heads, cfg.attention_dropout
        layer.self_attn = GatedRelativeAttention(*sizes, cfg.relative_position_buckets, cfg.relative_position_distance, positions)
        layer.self_attn.apply(init_bert_params)
        positions = positions or layer.self_attn.relative_attention_bias


class PositionalConvolutions(nn.Sequential):
    """data2vec's convolutions, each over an utterance's own frames: `padding`, (batch, frames) bool or None, is zero for every one."""

    padding = None

    def forward(self, x):
        """(batch, width, frames), zero in the padding → the same shape."""
        for block in self:
            x = block(x)
            if self.padding is not None:
                x = x.masked_fill(self.padding.unsqueeze(1), 0)
        return x
