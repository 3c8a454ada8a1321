"""HuBERT with speaker conditioning, exact under padding: fairseq's modules and parameter names, with a forward of its own.

x → z = CNN(x) → T(x) = Linear(LayerNorm(z)) → masks → speaker (models/speaker_conditioning.py) → E (Transformer) → p(c | f_t) ∝ exp(cos(A f_t, e_c)/τ)
(Hsu et al. 2021, section II; Tran et al. 2023, section 3.1).

`fairseq.models.hubert.HubertModel` gives the same numbers for a single utterance. The differences:
- padding changes nothing: frame counts follow the convolutions, GroupNorm takes its statistics over an utterance's own frames, and
  every loss term is a sum over utterances. A batch gives what its utterances give alone;
- masks come with the batch (data/masking.py), drawn per utterance;
- logits are one normalised matrix product, computed only for frames that carry a loss.
"""

import contextlib
import logging
from dataclasses import dataclass
from typing import List, Optional

import torch
from fairseq.data.data_utils import numpy_seed
from fairseq.models import register_model
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from fairseq.models.wav2vec.wav2vec2 import ConvFeatureExtractionModel
from fairseq.modules import Fp32GroupNorm, GradMultiply
from omegaconf import OmegaConf
from torch.nn import functional as F

from ..core.errors import InputError
from ..core.options import option
from ..corpus.audio import FRAME_RATE, RECEPTIVE_FIELD, n_frames
from ..pretrained.types import parse_conv_layers
from .lora import TARGETS, add_lora
from .positions import PositionalConvolutions, add_relative_positions
from .speaker_conditioning import POSITIONS, UNKNOWN

logger = logging.getLogger(__name__)

SUPPORTED = {"layer_type": "transformer", "mask_selection": "static", "mask_channel_selection": "static"}
SUPPORTED |= dict.fromkeys(("conv_pos_batch_norm", "no_mask_overlap", "no_mask_channel_overlap"), False)
"""Options of fairseq's HuBERT with one supported value: others depend on padding, or fairseq no longer runs them."""


@dataclass
class SpeakerHubertConfig(HubertConfig):
    """fairseq's HuBERT configuration, the speaker, LoRA, and what WavLM and data2vec have instead of HuBERT's positions."""

    label_rate: float = option(FRAME_RATE, "frames a second; labels of another rate are aligned by the dataset")
    speaker_position: str = option("none", f"of the speaker's vector: none, {', '.join(POSITIONS)}, or your own")
    speaker_fc: bool = option(False, "a fully connected layer after the speaker table (PAPT)")
    speaker_dropout: float = option(0.1, "probability that an utterance is trained with the unknown speaker's embedding")
    init_from: Optional[str] = option(None, "checkpoint (HuBERT, wav2vec 2, WavLM, data2vec, ours) or Hugging Face folder (empty: random)")
    relative_position_buckets: int = option(0, "buckets of WavLM's gated relative positions; 0: none. From init_from where that is a WavLM")
    relative_position_distance: int = option(800, "frames from which on all distances share the last bucket")
    pos_conv_depth: int = option(1, "positional convolutions, conv_pos // depth wide; from init_from where that is a data2vec")
    lora_rank: int = option(0, "above 0: the encoder's weights are frozen, and low-rank additions to them trained (LoRA)")
    lora_alpha: float = option(16.0, "LoRA is scaled by alpha / rank")
    lora_targets: List[str] = option(["q_proj", "v_proj"], f"layers with LoRA, some of {', '.join(TARGETS)}")


class ExactConvFeatures(ConvFeatureExtractionModel):
    """fairseq's convolutional encoder whose GroupNorm takes its statistics over each utterance's own frames."""

    def forward(self, source, lengths):
        """z: (batch, channels, frames), arbitrary but finite in the padding. source: (batch, samples), zero-padded; lengths: samples of each,
        a list of int, or int64 (batch,) while a graph is traced."""
        x, traced = source.unsqueeze(1), torch.is_tensor(lengths)  # (batch, 1, samples)
        for block in self.conv_layers:
            kernel, stride = block[0].kernel_size[0], block[0].stride[0]
            lengths = ((lengths - kernel) // stride + 1).clamp(min=0) if traced else [max((n - kernel) // stride + 1, 0) for n in lengths]
            for module in block:
                x = _group_norm_of_each(module, x, lengths) if isinstance(module, Fp32GroupNorm) else module(x)
        return x


def own_frames(frames, longest, device):
    """Which frames are an utterance's own: (batch, longest) bool. frames: of each utterance, a list of int, or int64 (batch,)."""
    frames = frames if torch.is_tensor(frames) else torch.tensor(frames, device=device)
    return torch.arange(longest, device=device) < frames.unsqueeze(1)


def _group_norm_of_each(norm, x, lengths):
    """GroupNorm of every utterance over its own frames, in float32, and zero in the padding. x: (batch, channels, frames)."""
    frames = x.size(-1)
    if not torch.is_tensor(lengths) and all(n == frames for n in lengths):
        return norm(x)
    own = own_frames(lengths, frames, x.device)[:, None, None]  # (batch, 1, 1, frames)
    grouped = x.float().unflatten(1, (norm.num_groups, -1))  # (batch, groups, channels of one, frames)
    count = own.sum(dim=-1, keepdim=True).clamp(min=1) * grouped.size(2)
    centred = (grouped - (grouped * own).sum(dim=(2, 3), keepdim=True) / count) * own
    variance = centred.square().sum(dim=(2, 3), keepdim=True) / count
    normalised = (centred * torch.rsqrt(variance + norm.eps)).flatten(1, 2)
    if norm.affine:
        normalised = torch.addcmul(norm.bias.float()[:, None], normalised, norm.weight.float()[:, None]) * own[:, 0]
    return normalised.type_as(x)


@register_model("speaker_hubert", dataclass=SpeakerHubertConfig)
class SpeakerHubertModel(HubertModel):
    """fairseq's HuBERT with speaker conditioning and exact batches, by a SpeakerHubertConfig; parameter names are fairseq's. `task_cfg` has
    `sample_rate`. `dictionaries`: a FrameLabelSet per label set; none: no prediction heads. `speakers`: ids in the order of the table."""

    def __init__(self, cfg, task_cfg, dictionaries, speakers=()):
        layers = parse_conv_layers(cfg.conv_feature_layers)
        for name, supported in SUPPORTED.items():
            if str(getattr(cfg, name)) != str(supported):
                what = f"model.{name}={getattr(cfg, name)} is not supported (not exact under padding, or broken in fairseq)"
                raise InputError(f"{what}; use {supported}")
        cfg = OmegaConf.create(OmegaConf.to_container(OmegaConf.create(cfg), resolve=True, enum_to_str=True))
        cfg.conv_feature_layers = str(layers)  # fairseq evaluates this string: let it see integers only
        super().__init__(cfg, task_cfg, list(dictionaries) or [None])
        self.cfg = cfg
        self.feature_extractor = ExactConvFeatures(layers, dropout=0.0, mode=cfg.extractor_mode, conv_bias=cfg.conv_bias)
        self.speakers = list(speakers)
        self.speaker_conditioning = None
        if cfg.speaker_position != "none":
            if not self.speakers:
                remedy = "set task.speakers=spk and give the manifest a .spk sidecar, or use model.speaker_position=none"
                raise InputError(f"model.speaker_position={cfg.speaker_position} needs speakers, but there are none; {remedy}")
            self.speaker_conditioning = POSITIONS[cfg.speaker_position](len(self.speakers), cfg.encoder_embed_dim, cfg.speaker_fc)
        if not dictionaries:
            self.remove_pretraining_modules()
        if cfg.relative_position_buckets:
            add_relative_positions(self.encoder, cfg)
        if cfg.pos_conv_depth > 1:
            self.encoder.pos_conv = PositionalConvolutions(*self.encoder.pos_conv)
        if cfg.lora_rank:
            add_lora(self, cfg)

    @classmethod
    def build_model(cls, cfg, task):
        """Build the model for a task (fairseq calls this)."""
        return cls(cfg, task.cfg, task.label_sets, task.speakers)

    @property
    def n_layers(self):
        """Transformer layers."""
        return len(self.encoder.layers)

    @property
    def width(self):
        """Width of the Transformer."""
        return self.encoder.embedding_dim

    def remove_pretraining_modules(self):
        """Drop what only pretraining needs: prediction heads and label embeddings."""
        super().remove_pretraining_modules()
        self.label_embs_concat = None

    def forward(
        self,
        source,
        target_list=None,
        padding_mask=None,
        mask=True,
        features_only=False,
        output_layer=None,
        lengths=None,
        mask_indices=None,
        mask_channel_indices=None,
        speaker=None,
        speaker_vectors=None,
        masked=True,
        unmasked=False,
    ):
        """Masked prediction, or features.

        Args:
            source: (batch, samples) waveforms at 16 kHz, zero-padded.
            target_list: one (batch, frames) tensor of label indices per label set, NO_LABEL where there is none.
            padding_mask: (batch, samples), True in the padding (fairseq's convention); not needed with `lengths`.
            mask: False: nothing is masked.
            features_only, output_layer: return features instead of predictions; those of this Transformer layer, 1-based.
            lengths: samples of each utterance, a list of int; int64 (batch,) while a graph is traced, for which nothing then depends on them.
            mask_indices, mask_channel_indices: (batch, frames) bool, frames to mask; (batch, width) bool, channels to set to zero.
            speaker: (batch,) rows of the speaker table; None: the unknown speaker.
            speaker_vectors: e, as `SpeakerConditioning.vectors` gives them, in place of the table's.
            masked, unmasked: for which frames predictions are computed.

        Returns:
            dict. Features: `x` (batch, frames, width), `padding_mask` (batch, frames) or None, `features` (before the
            Transformer). Predictions: `logits` and `targets`, {"masked": [one (n, classes) / (n,) per label set], "unmasked": …},
            `counts` {"masked": (batch,), …} of their frames, `features_pen` (batch,): mean square of the utterance's z.
        """
        if lengths is None:
            lengths = [source.size(1)] * len(source) if padding_mask is None else (~padding_mask).sum(dim=1).tolist()
        z, own, padding = self.convolve(source, lengths)  # (batch, channels, frames), (batch, frames)
        x = self.project(z)  # (batch, frames, width)
        if mask:
            x = self.with_masks(x, mask_indices, mask_channel_indices)
        f = self.contextualise(x, padding, self.vectors_of(speaker, len(x), speaker_vectors), output_layer)
        if features_only:
            return {"x": f, "padding_mask": padding, "features": x}
        hidden = torch.zeros_like(own) if mask_indices is None else mask_indices
        chosen = {"masked": own & hidden} if masked and not self.skip_masked else {}
        if unmasked and not self.skip_nomask:
            chosen["unmasked"] = own & ~hidden
        return {
            "logits": {name: self.logits(f[at]) for name, at in chosen.items()},
            "targets": {name: [t[at] for t in target_list] for name, at in chosen.items()},
            "counts": {name: at.sum(dim=1) for name, at in chosen.items()},
            "features_pen": (z.float().pow(2).mean(dim=1) * own).sum(dim=1) / own.sum(dim=1).clamp(min=1),
            "padding_mask": padding,
        }

    def layer_features(self, source, lengths, layers, mask_indices=None, mask_channel_indices=None, speaker=None, speaker_vectors=None):
        """Outputs of Transformer `layers` (1-based) in one pass, otherwise as `forward`: ({layer: (batch, frames, width)}, (batch, frames)
        bool: own frames). The last is without a pre-norm model's final LayerNorm, as fairseq's `extract_features(output_layer=…)`."""
        z, own, padding = self.convolve(source, lengths)
        x = self.with_masks(self.project(z), mask_indices, mask_channel_indices)
        _, results = self._transform(x, padding, self.vectors_of(speaker, len(x), speaker_vectors), max(layers))
        outputs = {layer: results[layer - 1][0].transpose(0, 1) for layer in layers}  # (frames, batch, width) → (batch, frames, width)
        if self.speaker_conditioning is not None:
            outputs = {layer: self.speaker_conditioning.frames_of(x) for layer, x in outputs.items()}
        return outputs, own

    def vectors_of(self, speaker, batch, given=None):
        """e: what the encoder receives of speakers, (batch, …): `given`, or of table rows; the unknown speaker's for None."""
        if self.speaker_conditioning is None or given is not None:
            return given
        if speaker is None:
            speaker = torch.full((batch,), UNKNOWN, device=self.mask_emb.device)
        return self.speaker_conditioning.vectors(speaker)

    def convolve(self, source, lengths):
        """z = CNN(x): (batch, channels, frames); which frames are an utterance's own, (batch, frames); the padding's, None without any."""
        traced = torch.is_tensor(lengths)
        frames = n_frames(lengths) if traced else [n_frames(n) for n in lengths]
        if not traced and max(frames) == 0:
            raise InputError(f"the longest utterance has {max(lengths)} samples, under one frame ({RECEPTIVE_FIELD}); leave it out")
        trained = self.feature_grad_mult > 0
        with contextlib.nullcontext() if trained else torch.no_grad():
            z = self.feature_extractor(source, lengths)
        if trained and self.feature_grad_mult != 1.0:
            z = GradMultiply.apply(z, self.feature_grad_mult)
        own = own_frames(frames, z.size(2), source.device)
        return z, own, None if not traced and min(frames) == z.size(2) else ~own

    def project(self, z):
        """T(x): (batch, channels, frames) → (batch, frames, width)."""
        x = self.layer_norm(z.transpose(1, 2))
        return self.dropout_input(x if self.post_extract_proj is None else self.post_extract_proj(x))

    def with_masks(self, x, frames=None, channels=None):
        """The mask embedding in masked frames, (batch, frames) bool, zero in masked channels, (batch, width) bool. x: (batch, frames, width)."""
        if frames is not None:
            x = torch.where(frames.unsqueeze(-1), self.mask_emb.to(x.dtype), x)
        return x if channels is None else x.masked_fill(channels.unsqueeze(1), 0)

    def contextualise(self, x, padding, e, output_layer=None):
        """f = E(x), with the speaker at its position: masked T(x) (batch, frames, width) → (batch, frames, width). `padding` and `e`: as
        from `convolve` and `vectors_of`. With an `output_layer` (1-based) the output is that of this layer, nothing added to it."""
        x, _ = self._transform(x, padding, e, output_layer)
        if self.speaker_conditioning is not None:
            x = self.speaker_conditioning.frames_of(x)
        return self.with_speaker(x, e) if output_layer is None else x

    def _transform(self, x, padding, e, output_layer):
        """fairseq's Transformer as in `contextualise`: its output, frames that the speaker adds included, and its results by layer."""
        if self.speaker_conditioning is not None:
            x, padding = self.speaker_conditioning.before_encoder(x, padding, e)
        if self.cfg.pos_conv_depth > 1:
            self.encoder.pos_conv.padding = padding
        if self.cfg.lora_rank and self.cfg.checkpoint_activations and torch.is_grad_enabled():
            x = x.requires_grad_().clone()  # layers that are checkpointed have gradients only where their input has
        # fairseq draws layer drop from numpy's global generator, which resuming does not restore; torch's it seeds at every update
        drops = self.training and self.encoder.layerdrop > 0
        with numpy_seed(int(torch.randint(2**31, ()))) if drops else contextlib.nullcontext():
            return self.encoder(x, padding_mask=padding, layer=None if output_layer is None else output_layer - 1)

    def with_speaker(self, f, e):
        """f, (batch, frames, width), with the speaker's vector where that is added to the encoder's output."""
        return f if self.speaker_conditioning is None else self.speaker_conditioning.after_encoder(f, e)

    def logits(self, f):
        """cos(A f_t, e_c)/τ (Hsu et al. 2021, equation 3): (n, width) → one (n, classes) per label set."""
        projected = self.final_proj(f)  # (n, final_dim) or, untied, (n, sets × final_dim)
        sets = len(self.num_classes)
        heads = projected.chunk(sets, dim=-1) if self.untie_final_proj else [projected] * sets
        embeddings = self.label_embs_concat.split(self.num_classes, 0)
        if self.target_glu is not None:
            embeddings = [self.target_glu(e) for e in embeddings]
        with torch.autocast(f.device.type, enabled=False):
            pairs = [(F.normalize(h.float(), dim=-1), F.normalize(e.float(), dim=-1)) for h, e in zip(heads, embeddings, strict=True)]
            return [h @ e.T / self.logit_temp for h, e in pairs]
