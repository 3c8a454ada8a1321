"""Emotion from a pretrained encoder: f = E(x, speaker) → pooling → head."""

import argparse
from dataclasses import dataclass
from typing import Any, List, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from torch import nn

from ..core.errors import InputError
from ..core.options import option
from ..corpus.audio import SAMPLE_RATE
from ..data.speaker_vectors import MFCC_COEFFICIENTS
from ..pretrained.load import read_pretrained
from .from_pretrained import check_sizes, encoder_config, initialise
from .heads import HEADS
from .hubert import SpeakerHubertModel, own_frames
from .lora import TARGETS
from .pooling import POOLINGS, loud_frames
from .speaker_conditioning import AT_HEAD, POSITIONS, SpeakerAtHead
from .speaker_normalisation import SpeakerNormalisation

FREEZE = ("none", "cnn", "encoder", "all")
_DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop")
_LORA = ("lora_rank", "lora_alpha", "lora_targets")
_MASKS = ("mask_prob", "mask_length", "mask_channel_prob", "mask_channel_length")


@dataclass
class EmotionHubertConfig(FairseqDataclass):
    """The encoder comes from a checkpoint; this says what is put on it and how it is trained."""

    init_from: Optional[str] = option(None, "the encoder: checkpoint (HuBERT, wav2vec 2, WavLM, data2vec, ours) or Hugging Face folder")
    num_layers: Optional[int] = option(None, "keep the first N Transformer layers (default: all)")
    pooling: str = option("mean", f"how frames become one vector: {', '.join(POOLINGS)}, or one of your own")
    silence_db: Optional[float] = option(None, "frames so many decibels below the utterance's loudest are not pooled; null: all are")
    head: str = option("relu_linear", f"what follows the pooling: {', '.join(HEADS)}, or one of your own")
    head_dropout: float = option(0.0, "dropout in the head")
    head_speaker: ChoiceEnum(AT_HEAD) = option("none", "the speaker at the head: a learned embedding, or scaled mean MFCCs")
    head_speaker_width: int = option(64, "size of the learned embedding at the head")
    frame_head: bool = option(False, "also classify every frame (criterion.frame_weight)")
    projection: int = option(128, "size of the contrastive head's vectors")
    temperature: float = option(0.1, "of the contrastive head")
    layer_weighting: bool = option(False, "a learned weighted sum over all layers instead of the last one")
    freeze: ChoiceEnum(FREEZE) = option("cnn", "cnn: convolutions; encoder: all but speakers; all: cache features")
    lora_rank: int = option(0, "above 0: the encoder is frozen, whatever `freeze` says, and low-rank additions to it are trained (LoRA)")
    lora_alpha: float = option(16.0, "LoRA is scaled by alpha / rank")
    lora_targets: List[str] = option(["q_proj", "v_proj"], f"layers with LoRA, some of {', '.join(TARGETS)}")
    speaker_position: str = option("inherit", f"inherit (as in the checkpoint), none, {', '.join(POSITIONS)}, or your own")
    speaker_dropout: float = option(0.1, "probability that an utterance is trained with the unknown speaker's embedding")
    speaker_normalisation: bool = option(False, "bring every speaker's pooled vectors to zero mean and unit variance, needs task.speakers")
    dropout: float = option(0.1, "in the Transformer")
    attention_dropout: float = option(0.1, "of attention weights")
    activation_dropout: float = option(0.0, "after the activation of the feed-forward layers")
    encoder_layerdrop: float = option(0.0, "probability of dropping a Transformer layer")
    mask_prob: float = option(0.08, "time masking in training, as a share of frames; 0: none")
    mask_length: int = option(15, "frames in a span of time masking")
    mask_channel_prob: float = option(0.05, "channel masking in training, as a share of channels; 0: none")
    mask_channel_length: int = option(64, "channels in a span")
    backbone: Any = option(None, "(filled in) the encoder's configuration, so that checkpoints stand alone")


def resolve_backbone(cfg):
    """The encoder's configuration for an EmotionHubertConfig, read from its checkpoint: (a dict, Pretrained). InputError: no or an unusable
    checkpoint, or it lacks what the configuration wants, such as layers."""
    if not cfg.init_from:
        raise InputError("model.init_from is empty; give the checkpoint of the pretrained encoder")
    pretrained = read_pretrained(cfg.init_from)
    changes = {"normalize": pretrained.normalise}
    check_sizes(pretrained.config, pretrained.weights, pretrained.path)
    changes |= {name: getattr(cfg, name) for name in (*_DROPOUTS, *_MASKS, *(_LORA if cfg.lora_rank else ()))}
    if cfg.lora_rank and str(cfg.freeze) == "all":
        raise InputError("model.freeze=all computes features once, but LoRA changes them; use freeze=encoder, or lora_rank=0")
    if cfg.num_layers is not None:
        if not 1 <= cfg.num_layers <= (most := pretrained.n_layers):
            raise InputError(f"model.num_layers={cfg.num_layers}: {cfg.init_from} has {most} layers; use 1 to {most}")
        changes["encoder_layers"] = cfg.num_layers
    if cfg.speaker_position != "inherit":
        changes["speaker_position"] = cfg.speaker_position
    changes |= {"feature_grad_mult": 0.0 if str(cfg.freeze) != "none" else 1.0, "dropout_input": 0.0}
    return {**pretrained.config, **changes}, pretrained


@register_model("emotion_hubert", dataclass=EmotionHubertConfig)
class EmotionHubertModel(BaseFairseqModel):
    """A pretrained encoder, a pooling and a head, by an EmotionHubertConfig with `backbone` filled in. `outputs`: classes or dimensions;
    `speakers`: ids of the speaker table; `voices`: how many training speakers there are to normalise."""

    def __init__(self, cfg, outputs, speakers=(), voices=0):
        super().__init__()
        self.cfg, config = cfg, {k: v for k, v in cfg.backbone.items() if k != "normalize"}
        self.backbone = SpeakerHubertModel(encoder_config(config), argparse.Namespace(sample_rate=SAMPLE_RATE), [], speakers)
        self.layers = self.backbone.n_layers
        self.layer_weights = nn.Parameter(torch.zeros(self.layers)) if cfg.layer_weighting else None
        self.pooling = POOLINGS[cfg.pooling](self.backbone.width)
        at_head = {"none": None, "embedding": (cfg.head_speaker_width, len(speakers)), "mfcc": (MFCC_COEFFICIENTS,)}[str(cfg.head_speaker)]
        self.speaker_at_head = None if at_head is None else SpeakerAtHead(self.pooling.width, *at_head)
        self.normalisation = SpeakerNormalisation(self.pooling.width, voices) if cfg.speaker_normalisation else None
        self.head = HEADS[cfg.head].build(cfg, self.pooling.width, outputs)
        self.frame_head = nn.Linear(self.backbone.width, outputs) if cfg.frame_head else None
        self._freeze(str(cfg.freeze))

    @classmethod
    def build_model(cls, cfg, task):
        """Build the model for a task (fairseq calls this); weights come from `start_from` or a checkpoint of ours."""
        return cls(cfg, task.n_outputs, task.speakers, len(task.voices) if cfg.speaker_normalisation else 0)

    def start_from(self, pretrained):
        """Load the encoder's weights; returns the LoadReport."""
        return initialise(self.backbone, pretrained)

    def _freeze(self, what):
        if what != "none":
            self.backbone.feature_extractor.requires_grad_(False)
        if what in ("encoder", "all"):
            for name, parameter in self.backbone.named_parameters():
                trained = name.startswith("speaker_conditioning.") or ".lora_" in name
                parameter.requires_grad_(what == "encoder" and trained)

    def train(self, mode=True):
        """Training mode; a frozen encoder stays in evaluation mode, so that its features do not change."""
        super().train(mode)
        if self.cfg.freeze in ("encoder", "all") and not self.cfg.lora_rank:
            self.backbone.eval()
        return self

    @property
    def few_frames(self):
        """1, 2: how many frames hold all that is used of an utterance's, see Pooling; None: all frames are used."""
        k = self.pooling.few_frames
        return None if self.frame_head is not None or (k == 2 and self.layer_weights is not None) else k

    def encode(self, source, lengths, **given):
        """What the trained part starts from, given as for `forward`: (f = E(x, speaker), (batch, frames, width), or with `layer_weighting`
        all layers, (batch, frames, layers, width); which frames are pooled, (batch, frames) bool)."""
        if self.layer_weights is not None:
            layers, own = self.backbone.layer_features(source, lengths, range(1, self.layers + 1), **given)
            e = self.backbone.vectors_of(given.get("speaker"), len(source), given.get("speaker_vectors"))
            f = torch.stack([self.backbone.with_speaker(x, e) for x in layers.values()], dim=2)
        else:
            found = self.backbone(source, lengths=lengths, features_only=True, **given)
            f, padding = found["x"], found["padding_mask"]
            own = torch.ones(f.shape[:2], dtype=torch.bool, device=f.device) if padding is None else ~padding
        quiet = self.cfg.silence_db
        return f, own if quiet is None else own & loud_frames(source, own.size(1), quiet)

    def forward(self, source=None, lengths=None, features=None, speaker=None, speaker_features=None, voice=None, **given):
        """Logits or dimensions of a batch.

        Args:
            source: (batch, samples), zero-padded.
            lengths: samples of each utterance, a list of int; with `features`, their frames.
            features: in place of `source`, as `encode` returns them.
            speaker: (batch,) rows of the speaker table; None: the unknown speaker.
            speaker_features: (batch, MFCC_COEFFICIENTS), for `head_speaker=mfcc`; None: the average speaker.
            voice: (batch,) rows of the speaker normalisation's table; None: the average speaker.
            given: mask_indices, mask_channel_indices and speaker_vectors of SpeakerHubertModel.

        Returns:
            dict: `output` (batch, outputs) and what else the head returns; `embedding` (batch, width): the pooled vector, before speaker
            normalisation and a speaker at the head; `frames` (batch, frames, width), `valid` (batch, frames); `frame_output` of a frame head.
        """
        if features is None:
            f, own = self.encode(source, lengths, speaker=speaker, **given)
        else:
            f, own = features, own_frames(lengths, features.size(1), features.device)
            if self.cfg.silence_db is not None:
                own, f = own & ~f.flatten(2)[..., 0].isnan(), f.nan_to_num()  # see CachedFeatures
        if self.layer_weights is not None:
            f = torch.einsum("l,btld->btd", self.layer_weights.softmax(dim=0).to(f.dtype), f)
        embedding = self.pooling(f, own)
        known = embedding if self.normalisation is None else self.normalisation(embedding, voice)
        known = known if self.speaker_at_head is None else self.speaker_at_head(known, speaker, speaker_features)
        found = {"embedding": embedding, "frames": f, "valid": own, **self.head(known)}
        if self.frame_head is not None:
            found["frame_output"] = self.frame_head(f)
        return found
