"""HuBERT with a speaker, exact under padding: fairseq's modules and parameter names, with a forward of its own.

x → T (convolutions, LayerNorm, projection) → masked frames → speaker → E (Transformer) → cosine similarity to the label
embeddings (Hsu et al. 2021, section II; Tran et al. 2023, section 3.1).

What differs from `fairseq.models.hubert.HubertModel`, which gives the same numbers for a single utterance:
- padding is seen by nothing: frame counts follow the convolutions, GroupNorm takes its statistics over an utterance's
  own frames, and every loss term is a sum over utterances. A batch gives what its utterances give alone;
- masks come with the batch (`emohubert.data.masking`), drawn per utterance;
- logits are one normalised matrix product, computed only for frames that carry a loss.
"""

import contextlib
import logging
from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq.data.data_utils import numpy_seed
from fairseq.dataclass import ChoiceEnum
from fairseq.models import register_model
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from fairseq.models.wav2vec.wav2vec2 import ConvFeatureExtractionModel
from fairseq.modules import Fp32GroupNorm, GradMultiply
from omegaconf import OmegaConf, open_dict
from torch.nn import functional as F

from ..core.errors import InputError
from ..corpus.audio import FRAME_RATE, RECEPTIVE_FIELD, n_frames
from ..pretrained.types import parse_conv_layers
from .speaker import POSITIONS, SpeakerConditioning

logger = logging.getLogger(__name__)


@dataclass
class SpeakerHubertConfig(HubertConfig):
    """fairseq's HuBERT configuration, and the speaker."""

    label_rate: float = field(default=FRAME_RATE, metadata={"help": "frames a second; labels of another rate are aligned by the dataset"})
    speaker_position: ChoiceEnum(POSITIONS) = field(default="none", metadata={"help": "where the encoder hears the speaker embedding"})
    speaker_dropout: float = field(
        default=0.1, metadata={"help": "probability that an utterance is trained with the unknown speaker's embedding instead of its own"}
    )
    init_from: Optional[str] = field(
        default=None,
        metadata={
            "help": "what to start from: checkpoint of fairseq's HuBERT or wav2vec 2.0 or ours, or Hugging Face model folder "
            "(empty: random weights)"
        },
    )


class ExactConvFeatures(ConvFeatureExtractionModel):
    """fairseq's convolutional encoder whose GroupNorm sees each utterance's own frames and nothing of the padding."""

    def forward(self, source, lengths):
        """Local features.

        Args:
            source: (batch, samples), zero-padded.
            lengths: samples of each utterance, a list of int.

        Returns:
            (batch, channels, frames); frames past an utterance's own are arbitrary but finite.
        """
        x = source.unsqueeze(1)  # (batch, 1, samples)
        for block in self.conv_layers:
            kernel, stride = block[0].kernel_size[0], block[0].stride[0]
            lengths = [max((n - kernel) // stride + 1, 0) for n in lengths]
            x = normalised_alone(block, x, lengths)
        return x


def normalised_alone(block, x, lengths):
    """A block of modules, each GroupNorm in it over every utterance's own frames.

    Args:
        block: nn.Sequential.
        x: (batch, channels, frames).
        lengths: frames of each utterance at the block's norm, a list of int.
    """
    for module in block:
        x = group_norm_of_each(module, x, lengths) if isinstance(module, Fp32GroupNorm) else module(x)
    return x


def group_norm_of_each(norm, x, lengths):
    """GroupNorm of every utterance over its own frames: exactly what it would give alone.

    Args:
        norm: the module.
        x: (batch, channels, frames).
        lengths: frames of each utterance, a list of int.

    Returns:
        (batch, channels, frames), zero in the padding.
    """
    frames = x.size(-1)
    if all(n == frames for n in lengths):
        return norm(x)
    return torch.cat([F.pad(norm(x[i : i + 1, :, :n]) if n else x[i : i + 1, :, :0], (0, frames - n)) for i, n in enumerate(lengths)])


@register_model("speaker_hubert", dataclass=SpeakerHubertConfig)
class SpeakerHubertModel(HubertModel):
    """fairseq's HuBERT with speaker conditioning and exact batches; parameter names are fairseq's.

    Args:
        cfg: SpeakerHubertConfig.
        task_cfg: anything with `sample_rate`.
        dictionaries: one sized object (of as many classes) per label set; empty for an encoder without prediction heads.
        speakers: ids of the speakers in the table.
    """

    def __init__(self, cfg, task_cfg, dictionaries, speakers=()):
        layers = parse_conv_layers(cfg.conv_feature_layers)
        _refuse_inexact(cfg)
        cfg = _with(cfg, conv_feature_layers=str(layers))  # fairseq evaluates this string: let it see integers only
        super().__init__(cfg, task_cfg, list(dictionaries) or [None])
        self.cfg = cfg
        self.feature_extractor = ExactConvFeatures(layers, dropout=0.0, mode=cfg.extractor_mode, conv_bias=cfg.conv_bias)
        self.speakers = list(speakers)
        self.speaker_conditioning = None
        if cfg.speaker_position != "none":
            if not self.speakers:
                raise InputError(
                    f"model.speaker_position={cfg.speaker_position} needs speakers, but there are none; "
                    "set task.speakers=spk and give the manifest a .spk sidecar, or use model.speaker_position=none"
                )
            self.speaker_conditioning = SpeakerConditioning(cfg.speaker_position, len(self.speakers), cfg.encoder_embed_dim)
        if not dictionaries:
            self.remove_pretraining_modules()

    @classmethod
    def build_model(cls, cfg, task):
        """Build the model for a task, from `cfg.init_from` where it is given (fairseq calls this)."""
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
            mask: False hears every frame, whatever `mask_indices` says.
            features_only: return the features instead of predictions.
            output_layer: 1-based; stop after this Transformer layer.
            lengths: samples of each utterance, a list of int.
            mask_indices: (batch, frames) bool, the frames to mask.
            mask_channel_indices: (batch, width) bool, the channels to set to zero.
            speaker: (batch,) rows of the speaker table; None: the unknown speaker.
            speaker_vectors: (batch, width), or (batch, 2 × width) for film: heard instead of the table's.
            masked, unmasked: for which frames predictions are computed.

        Returns:
            dict. Features: `x` (batch, frames, width), `padding_mask` (batch, frames) or None, `features` (before the
            Transformer). Predictions: `logits` and `targets`, {"masked": [one (n, classes) / (n,) per label set], "unmasked":
            …}, `counts` {"masked": (batch,), …} of frames behind them, `features_pen` (batch,): mean square of each
            utterance's convolutional features.
        """
        lengths = self._lengths(source, padding_mask, lengths)
        features, valid = self._local_features(source, lengths)  # (batch, channels, frames), (batch, frames)
        padding_mask = _padding(valid, lengths)
        x = self._project(features)  # (batch, frames, width)
        if mask:
            x = self._masked(x, mask_indices, mask_channel_indices)
        projected = x
        x = self._contextualise(x, padding_mask, speaker, speaker_vectors, output_layer)
        if features_only:
            return {"x": x, "padding_mask": padding_mask, "features": projected}
        if mask_indices is None:
            mask_indices = torch.zeros_like(valid)
        chosen = {}
        if masked and not self.skip_masked:
            chosen["masked"] = valid & mask_indices
        if unmasked and not self.skip_nomask:
            chosen["unmasked"] = valid & ~mask_indices
        return {
            "logits": {name: self._logits(x[frames_of]) for name, frames_of in chosen.items()},
            "targets": {name: [t[frames_of] for t in target_list] for name, frames_of in chosen.items()},
            "counts": {name: frames_of.sum(dim=1) for name, frames_of in chosen.items()},
            "features_pen": _mean_square(features, valid),
            "padding_mask": padding_mask,
        }

    def layer_features(self, source, lengths, layers, mask_indices=None, mask_channel_indices=None, speaker=None, speaker_vectors=None):
        """Outputs of several Transformer layers in one pass.

        Args:
            source: (batch, samples), zero-padded.
            lengths: samples of each utterance, a list of int.
            layers: 1-based layer numbers; the last layer comes without a pre-norm model's final LayerNorm, as from
                fairseq's `extract_features(output_layer=…)`.
            mask_indices, mask_channel_indices, speaker, speaker_vectors: as for `forward`; nothing is masked without them.

        Returns:
            ({layer: (batch, frames, width)}, (batch, frames) bool: True for an utterance's own frames).
        """
        features, valid = self._local_features(source, lengths)
        x = self._masked(self._project(features), mask_indices, mask_channel_indices)
        x, padding_mask, _ = self._conditioned(x, _padding(valid, lengths), speaker, speaker_vectors)
        with self._seeded_layerdrop():
            _, results = self.encoder.extract_features(x, padding_mask, tgt_layer=max(layers) - 1)
        outputs = {layer: results[layer - 1][0].transpose(0, 1) for layer in layers}  # (frames, batch, width) → (batch, frames, width)
        if self.speaker_conditioning is not None:
            outputs = {layer: self.speaker_conditioning.without_prefix(x) for layer, x in outputs.items()}
        return outputs, valid

    def before_speaker(self, source, lengths):
        """What the encoder hears before masks and the speaker are put in: T(x) (batch, frames, width), and which frames are
        an utterance's own, (batch, frames) bool. With `predict_masked` it makes up `forward`."""
        features, valid = self._local_features(source, lengths)
        return self._project(features), valid

    def predict_masked(self, x, valid, mask_indices, speaker_vectors=None):
        """Logits at the masked frames of what `before_speaker` returned: one (n, classes) per label set.

        Args:
            x: (batch, frames, width).
            valid, mask_indices: (batch, frames) bool.
            speaker_vectors: (batch, width), or (batch, 2 × width) for film, as the encoder hears them.
        """
        padding_mask = None if valid.all() else ~valid
        x = self._contextualise(self._masked(x, mask_indices, None), padding_mask, None, speaker_vectors, None)
        return self._logits(x[valid & mask_indices])

    def vectors_of(self, speaker, batch):
        """Speaker vectors (batch, width) of table rows, the unknown speaker's for None."""
        if speaker is None:
            speaker = torch.zeros(batch, dtype=torch.long, device=self.mask_emb.device)
        return self.speaker_conditioning.vectors(speaker)

    def _lengths(self, source, padding_mask, lengths):
        if lengths is None:
            lengths = [source.size(1)] * len(source) if padding_mask is None else (~padding_mask).sum(dim=1).tolist()
        return lengths

    def _local_features(self, source, lengths):
        """Convolutional features (batch, channels, frames), and which frames are an utterance's own (batch, frames)."""
        frames = [n_frames(n) for n in lengths]
        if max(frames) == 0:
            raise InputError(f"the longest utterance has {max(lengths)} samples, under one frame ({RECEPTIVE_FIELD}); leave it out")
        trained = self.feature_grad_mult > 0
        with contextlib.nullcontext() if trained else torch.no_grad():
            features = self.feature_extractor(source, lengths)
        if trained and self.feature_grad_mult != 1.0:
            features = GradMultiply.apply(features, self.feature_grad_mult)
        valid = torch.arange(features.size(2), device=source.device) < torch.tensor(frames, device=source.device).unsqueeze(1)
        return features, valid

    def _project(self, features):
        x = self.layer_norm(features.transpose(1, 2))
        if self.post_extract_proj is not None:
            x = self.post_extract_proj(x)
        return self.dropout_input(x)

    def _masked(self, x, frames, channels):
        """Put the mask embedding in place of masked frames, and zero in masked channels. x: (batch, frames, width)."""
        if frames is not None:
            x = torch.where(frames.unsqueeze(-1), self.mask_emb.to(x.dtype), x)
        return x if channels is None else x.masked_fill(channels.unsqueeze(1), 0)

    def _conditioned(self, x, padding_mask, speaker, vectors):
        if self.speaker_conditioning is None:
            return x, padding_mask, None
        vectors = self.vectors_of(speaker, len(x)) if vectors is None else vectors
        return *self.speaker_conditioning.before_encoder(x, padding_mask, vectors), vectors

    def _contextualise(self, x, padding_mask, speaker, vectors, output_layer):
        x, padding_mask, vectors = self._conditioned(x, padding_mask, speaker, vectors)
        with self._seeded_layerdrop():
            x, _ = self.encoder(x, padding_mask=padding_mask, layer=None if output_layer is None else output_layer - 1)
        if vectors is None:
            return x
        return self.speaker_conditioning.after_encoder(x, vectors) if output_layer is None else self.speaker_conditioning.without_prefix(x)

    def _seeded_layerdrop(self):
        """fairseq draws layer drop from numpy's global generator, which resuming does not restore; torch's it seeds at every update."""
        if self.training and self.encoder.layerdrop > 0:
            return numpy_seed(int(torch.randint(2**31, ())))
        return contextlib.nullcontext()

    def _logits(self, x):
        """Cosine similarity to the label embeddings over the temperature: one (n, classes) per label set. x: (n, width)."""
        projected = self.final_proj(x)  # (n, final_dim) or, untied, (n, sets × final_dim)
        sets = len(self.num_classes)
        heads = projected.chunk(sets, dim=-1) if self.untie_final_proj else [projected] * sets
        embeddings = self.label_embs_concat.split(self.num_classes, 0)
        if self.target_glu is not None:
            embeddings = [self.target_glu(e) for e in embeddings]
        return [
            F.normalize(h.float(), dim=-1) @ F.normalize(e.float(), dim=-1).T / self.logit_temp
            for h, e in zip(heads, embeddings, strict=True)
        ]


def _padding(valid, lengths):
    """The padding mask for the Transformer; None where there is no padding. valid: (batch, frames)."""
    return None if n_frames(min(lengths)) == valid.size(1) else ~valid


def _mean_square(features, valid):
    """Mean square of each utterance's own features. features: (batch, channels, frames), valid: (batch, frames) → (batch,)."""
    squares = features.float().pow(2).mean(dim=1) * valid
    return squares.sum(dim=1) / valid.sum(dim=1).clamp(min=1)


def _with(cfg, **changes):
    """A copy of a configuration (a dataclass or a DictConfig) with some values changed."""
    cfg = OmegaConf.create(
        OmegaConf.to_container(OmegaConf.structured(cfg) if not OmegaConf.is_config(cfg) else cfg, resolve=True, enum_to_str=True)
    )
    with open_dict(cfg):
        cfg.update(changes)
    return cfg


def _refuse_inexact(cfg):
    """Variants whose results would depend on padding, or that fairseq no longer runs."""
    wrong = {
        "layer_type": (cfg.layer_type, "transformer"),
        "conv_pos_batch_norm": (cfg.conv_pos_batch_norm, False),
        "mask_selection": (cfg.mask_selection, "static"),
        "mask_channel_selection": (cfg.mask_channel_selection, "static"),
        "no_mask_overlap": (cfg.no_mask_overlap, False),
        "no_mask_channel_overlap": (cfg.no_mask_channel_overlap, False),
    }
    for name, (value, supported) in wrong.items():
        if getattr(value, "value", value) != supported:
            raise InputError(
                f"model.{name}={value} is not supported (it is not exact under padding, or broken in fairseq); use {supported}"
            )
