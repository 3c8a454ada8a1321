"""Emotion from a pretrained encoder: E(x, speaker) → pooling → head."""

import argparse
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from torch import nn

from ..core.errors import InputError
from ..corpus.audio import SAMPLE_RATE
from ..data.speaker_vectors import MFCC_COEFFICIENTS
from ..pretrained.load import read_pretrained
from ..pretrained.types import WAV2VEC1
from .heads import HEADS, READOUTS, ContrastiveHead, make_head
from .hubert import SpeakerHubertModel
from .load import encoder_config, initialise
from .pooling import POOLINGS, MeanPooling, make_pooling
from .speaker import AT_HEAD, POSITIONS, SpeakerAtHead
from .wav2vec1 import Wav2Vec1Encoder, is_aligned

FREEZE = ("none", "cnn", "encoder", "all")


@dataclass
class EmotionHubertConfig(FairseqDataclass):
    """The encoder comes from a checkpoint; this says what is put on it and how it is trained."""

    init_from: Optional[str] = field(
        default=None,
        metadata={"help": "the encoder: checkpoint of fairseq's HuBERT, wav2vec 2.0 or wav2vec 1 or ours, or Hugging Face model folder"},
    )
    num_layers: Optional[int] = field(default=None, metadata={"help": "keep the first N Transformer layers (default: all)"})
    pooling: ChoiceEnum(POOLINGS) = field(default="mean", metadata={"help": "how frames become one vector"})
    head: ChoiceEnum(HEADS) = field(default="relu_linear", metadata={"help": "what follows the pooling"})
    head_dropout: float = field(default=0.0, metadata={"help": "dropout in the head"})
    head_speaker: ChoiceEnum(AT_HEAD) = field(
        default="none", metadata={"help": "the speaker at the head: a learned embedding, or the scaled mean of the speaker's MFCCs"}
    )
    head_speaker_width: int = field(default=64, metadata={"help": "size of the learned embedding at the head"})
    frame_head: bool = field(default=False, metadata={"help": "also classify every frame (criterion.frame_weight)"})
    projection: int = field(default=128, metadata={"help": "size of the contrastive head's vectors"})
    readout: ChoiceEnum(READOUTS) = field(default="centroid", metadata={"help": "how classes are read off the contrastive head's vectors"})
    temperature: float = field(default=0.1, metadata={"help": "of the contrastive head"})
    layer_weighting: bool = field(default=False, metadata={"help": "a learned weighted sum over all layers instead of the last one"})
    freeze: ChoiceEnum(FREEZE) = field(
        default="cnn",
        metadata={
            "help": "cnn: the convolutions (wav2vec 1: those before the aggregator); encoder: all pretrained weights but the speakers' "
            "(wav2vec 1: but the alignment); all: those too, and features are cached"
        },
    )
    speaker_position: ChoiceEnum(("inherit", *POSITIONS)) = field(
        default="inherit", metadata={"help": "where the encoder hears the speaker (inherit: as in the checkpoint)"}
    )
    speaker_dropout: float = field(
        default=0.1, metadata={"help": "probability that an utterance is trained with the unknown speaker's embedding"}
    )
    dropout: float = field(default=0.1, metadata={"help": "in the Transformer"})
    attention_dropout: float = field(default=0.1, metadata={"help": "of attention weights"})
    activation_dropout: float = field(default=0.0, metadata={"help": "after the activation of the feed-forward layers"})
    encoder_layerdrop: float = field(default=0.0, metadata={"help": "probability of dropping a Transformer layer"})
    mask_prob: float = field(default=0.08, metadata={"help": "time masking in training, as a share of frames; 0: none"})
    mask_length: int = field(default=15, metadata={"help": "frames in a span of time masking"})
    mask_channel_prob: float = field(default=0.05, metadata={"help": "channel masking in training, as a share of channels; 0: none"})
    mask_channel_length: int = field(default=64, metadata={"help": "channels in a span"})
    backbone: Any = field(default=None, metadata={"help": "(filled in) the encoder's configuration, so that checkpoints stand alone"})


def resolve_backbone(cfg):
    """The encoder's configuration for a fine-tuning configuration, read from its checkpoint.

    Args:
        cfg: EmotionHubertConfig with `init_from`.

    Returns:
        (configuration as a dict, Pretrained).

    Raises:
        InputError: no or an unusable checkpoint, or something wanted that it does not have, such as more layers.
    """
    if not cfg.init_from:
        raise InputError("model.init_from is empty; give the checkpoint of the pretrained encoder")
    pretrained = read_pretrained(cfg.init_from)
    if pretrained.is_wav2vec1:
        refuse_inapplicable(cfg, pretrained)
        return {**pretrained.config, "normalize": pretrained.normalise}, pretrained
    changes = {name: getattr(cfg, name) for name in ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop")}
    changes |= {name: getattr(cfg, name) for name in ("mask_prob", "mask_length", "mask_channel_prob", "mask_channel_length")}
    layers = pretrained.n_layers
    if cfg.num_layers is not None:
        if not 1 <= cfg.num_layers <= layers:
            raise InputError(f"model.num_layers={cfg.num_layers}: {cfg.init_from} has {layers} layers; use 1 to {layers}")
        changes["encoder_layers"] = cfg.num_layers
    if cfg.speaker_position != "inherit":
        changes["speaker_position"] = str(getattr(cfg.speaker_position, "value", cfg.speaker_position))
    changes |= {"feature_grad_mult": 0.0 if str(cfg.freeze) != "none" else 1.0, "dropout_input": 0.0}
    return {**pretrained.config, **changes, "normalize": pretrained.normalise}, pretrained


def _make_backbone(config, speakers):
    """The encoder of a configuration from `resolve_backbone`."""
    config = {k: v for k, v in config.items() if k != "normalize"}
    if config.get("_name") == WAV2VEC1:
        return Wav2Vec1Encoder(config)
    return SpeakerHubertModel(encoder_config(argparse.Namespace(config=config)), argparse.Namespace(sample_rate=SAMPLE_RATE), [], speakers)


@register_model("emotion_hubert", dataclass=EmotionHubertConfig)
class EmotionHubertModel(BaseFairseqModel):
    """A pretrained encoder, a pooling and a head.

    Args:
        cfg: EmotionHubertConfig with `backbone` filled in.
        outputs: classes or dimensions.
        speakers: ids of the speaker table.
    """

    def __init__(self, cfg, outputs, speakers=()):
        super().__init__()
        self.cfg = cfg
        self.backbone = _make_backbone(cfg.backbone, speakers)
        self.layers = self.backbone.n_layers
        self.layer_weights = nn.Parameter(torch.zeros(self.layers)) if cfg.layer_weighting else None
        self.pooling = make_pooling(str(cfg.pooling), self.backbone.width)
        self.speaker_at_head = None
        if str(cfg.head_speaker) == "embedding":
            self.speaker_at_head = SpeakerAtHead(self.pooling.width, cfg.head_speaker_width, len(speakers))
        elif str(cfg.head_speaker) == "mfcc":
            self.speaker_at_head = SpeakerAtHead(self.pooling.width, MFCC_COEFFICIENTS)
        contrastive = {"size": cfg.projection, "readout": str(cfg.readout), "temperature": cfg.temperature}
        self.head = make_head(str(cfg.head), self.pooling.width, outputs, cfg.head_dropout, **contrastive)
        self.frame_head = nn.Linear(self.backbone.width, outputs) if cfg.frame_head else None
        self._freeze(str(cfg.freeze))

    @classmethod
    def build_model(cls, cfg, task):
        """Build the model for a task (fairseq calls this); weights come from `start_from` or a checkpoint of ours."""
        return cls(cfg, task.n_outputs, task.speakers)

    def start_from(self, pretrained):
        """Load the encoder's weights; returns the LoadReport."""
        return self.backbone.start_from(pretrained) if pretrained.is_wav2vec1 else initialise(self.backbone, pretrained)

    def _freeze(self, what):
        if what == "none":
            return
        self.backbone.feature_extractor.requires_grad_(False)
        if what == "cnn":
            return
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(what == "encoder" and name.startswith(("speaker_conditioning.", "alignment.")))

    def train(self, mode=True):
        """Training mode; a frozen encoder stays in evaluation mode, so that its features do not change."""
        super().train(mode)
        if self.cfg.freeze in ("encoder", "all"):
            self.backbone.eval()
        return self

    @property
    def mean_is_enough(self):
        """Whether all that is used of an utterance's frames is their mean."""
        return isinstance(self.pooling, MeanPooling) and self.frame_head is None

    def encode(self, source, lengths, **given):
        """What the trained part starts from: E(x, speaker), or all its layers where they are weighted.

        Args:
            source: (batch, samples), zero-padded.
            lengths: samples of each utterance, a list of int.
            given: mask_indices, mask_channel_indices, speaker and speaker_vectors of SpeakerHubertModel.

        Returns:
            (features (batch, frames, width), or (batch, frames, layers, width) with `layer_weighting`; (batch, frames) bool:
            True for an utterance's own frames).
        """
        if self.layer_weights is not None:
            layers, valid = self.backbone.layer_features(source, lengths, range(1, self.layers + 1), **given)
            return torch.stack(list(layers.values()), dim=2), valid
        found = self.backbone(source, lengths=lengths, features_only=True, **given)
        x, padding = found["x"], found["padding_mask"]
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if padding is None else ~padding

    def forward(
        self,
        source=None,
        lengths=None,
        mask_indices=None,
        mask_channel_indices=None,
        speaker=None,
        speaker_vectors=None,
        speaker_features=None,
        features=None,
    ):
        """Logits or dimensions of a batch.

        Args:
            source: (batch, samples), zero-padded.
            lengths: samples of each utterance, a list of int; with `features`, their frames.
            mask_indices, mask_channel_indices, speaker, speaker_vectors: see SpeakerHubertModel.
            speaker_features: (batch, MFCC_COEFFICIENTS), for `head_speaker=mfcc`; None: the average speaker.
            features: in place of `source`, as `encode` returns them.

        Returns:
            dict: `output` (batch, outputs), `embedding` (batch, width): the pooled vector, without what a speaker at the head
            adds to it, `frames` (batch, frames, width), `valid` (batch, frames); `projection` (batch, size) of a contrastive
            head; `frame_output` (batch, frames, outputs) of a frame head.
        """
        if features is None:
            x, valid = self.encode(
                source,
                lengths,
                mask_indices=mask_indices,
                mask_channel_indices=mask_channel_indices,
                speaker=speaker,
                speaker_vectors=speaker_vectors,
            )
        else:
            frames = torch.tensor(lengths, device=features.device).unsqueeze(1)
            x, valid = features, torch.arange(features.size(1), device=features.device) < frames
        if self.layer_weights is not None:
            x = torch.einsum("l,btld->btd", self.layer_weights.softmax(dim=0).to(x.dtype), x)
        embedding = self.pooling(x, valid)
        known = embedding if self.speaker_at_head is None else self.speaker_at_head(embedding, speaker, speaker_features)
        found = {"embedding": embedding, "frames": x, "valid": valid}
        if isinstance(self.head, ContrastiveHead):
            found["projection"] = self.head.project(known)
            found["output"] = self.head.read_out(found["projection"])
        else:
            found["output"] = self.head(known)
        if self.frame_head is not None:
            found["frame_output"] = self.frame_head(x)
        return found


def refuse_inapplicable(cfg, pretrained):
    """Raise InputError for what an EmotionHubertConfig asks of a wav2vec 1 that it does not have."""
    default, wrong = EmotionHubertConfig(), {}
    if cfg.num_layers is not None:
        wrong["num_layers"] = "has no Transformer layers to keep; use num_layers=null"
    if cfg.layer_weighting:
        wrong["layer_weighting"] = "has one layer of frames, nothing to weight; use layer_weighting=false"
    if str(cfg.speaker_position) not in ("inherit", "none"):
        wrong["speaker_position"] = "has no place for the speaker; use speaker_position=none, or head_speaker"
    for name in ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop"):
        if getattr(cfg, name) not in (0, getattr(default, name)):
            wrong[name] = f"has no Transformer, nothing in it is dropped; use {name}=0"
    if str(cfg.freeze) == "all" and not is_aligned(pretrained):
        wrong["freeze"] = "has no trained alignment with 50 frames a second, and nothing would train it; use freeze=encoder"
    for name, why in wrong.items():
        raise InputError(f"model.{name}={getattr(cfg, name)}: {pretrained.path}, a wav2vec 1, {why}")
