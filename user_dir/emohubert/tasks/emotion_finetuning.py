"""Task: emotion classes, or dimensions such as arousal and valence, for whole utterances."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from omegaconf import II, MISSING, open_dict

from ..audio import RECEPTIVE_FIELD, SAMPLE_RATE
from ..data.masking import Masking
from ..data.utterance_labelled import UtteranceLabelledSpeech
from ..errors import InputError, exit_on_input_error
from ..manifest import NO_EMOTION, read_corpus, read_dictionary, read_split
from ..models.emotion import resolve_backbone
from .common import SpeechTask, speaker_rows

logger = logging.getLogger(__name__)


@dataclass
class EmotionFinetuningConfig(FairseqDataclass):
    """What is learned from."""

    data: str = field(default=MISSING, metadata={"help": "manifest directory"})
    target: Any = field(
        default="emo", metadata={"help": "emo: the classes of .emo; or names of columns of .dim, such as [arousal,valence]"}
    )
    speakers: Optional[str] = field(
        default="spk", metadata={"help": "ending of the speaker sidecar; used where the encoder hears the speaker"}
    )
    normalize: Optional[bool] = field(default=None, metadata={"help": "normalise waveforms (default: as the encoder was trained)"})
    max_sample_size: Optional[int] = field(
        default=None, metadata={"help": "crop longer training utterances to so many samples; null: never"}
    )
    min_sample_size: int = field(
        default=RECEPTIVE_FIELD, metadata={"help": "leave out utterances under so many samples; they are counted in the log"}
    )
    check_audio: bool = field(default=True, metadata={"help": "look into every audio file's header before training"})
    seed: int = II("common.seed")


@register_task("emotion_finetuning", dataclass=EmotionFinetuningConfig)
class EmotionFinetuningTask(SpeechTask):
    """Reads a manifest directory. Its state (classes, speakers, scales of dimensions) is kept in checkpoints as plain values."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.state.add_factory("classes", self._read_classes)
        self.state.add_factory("class_counts", self._count_classes)
        self.state.add_factory("speakers", list)
        self.state.add_factory("training_speakers", self._read_training_speakers)
        self.state.add_factory("label_scales", lambda: read_corpus(self.cfg.data).get("label_scales", {}))
        self.model_cfg, self.normalise = None, bool(cfg.normalize)

    @classmethod
    @exit_on_input_error
    def setup_task(cls, cfg, **kwargs):
        """Make the task (fairseq calls this)."""
        return cls(cfg)

    @property
    def dimensions(self):
        """Names of the dimensions; empty for classification."""
        target = self.cfg.target
        if target == "emo" or list(target) == ["emo"]:
            return []
        return target.split(",") if isinstance(target, str) else list(target)

    @property
    def classes(self):
        """Names of the classes; empty for regression."""
        return [] if self.dimensions else self.state.classes

    @property
    def n_outputs(self):
        """Classes or dimensions."""
        return len(self.classes or self.dimensions)

    @property
    def speakers(self):
        """Ids of the speaker table; empty where the encoder does not hear speakers."""
        return self.state.speakers

    @property
    def training_speakers(self):
        """Ids of the speakers whose labels were learned from."""
        return self.state.training_speakers

    @property
    def speaker_position(self):
        """Where the encoder hears the speaker."""
        return self.model_cfg.backbone.get("speaker_position", "none")

    @property
    def class_counts(self):
        """Training utterances of each class, in the order of `classes`."""
        return self.state.class_counts

    def _read_classes(self):
        return read_dictionary(Path(self.cfg.data) / "dict.emo.txt")

    def _read_training_speakers(self):
        speakers = read_split(self.cfg.data, "train", speakers=self.cfg.speakers).speakers
        return sorted(set(speakers or []))

    def _count_classes(self):
        emotions = read_split(self.cfg.data, "train", speakers=None).emotions or []
        return [emotions.count(c) for c in self.classes]

    @exit_on_input_error
    def build_model(self, cfg, from_checkpoint=False):
        """Build the model; the encoder's configuration goes into the model's own, so that its checkpoints stand alone."""
        pretrained = None
        if not from_checkpoint:
            backbone, pretrained = resolve_backbone(cfg)
            with open_dict(cfg):
                cfg.backbone = backbone
            if backbone.get("speaker_position", "none") != "none":
                known = read_dictionary(Path(self.cfg.data) / f"dict.{self.cfg.speakers}.txt") if self.cfg.speakers else []
                self.state.merge_state_dict({"speakers": list(dict.fromkeys([*pretrained.speakers, *known]))})
        self.normalise = cfg.backbone["normalize"] if self.cfg.normalize is None else self.cfg.normalize
        model = super().build_model(cfg, from_checkpoint)
        if pretrained is not None:
            model.start_from(pretrained)
        self.model_cfg = model.cfg
        if not from_checkpoint:  # what checkpoints must hold, whether training asks for it or not
            _ = self.state.classes if not self.dimensions else None, self.state.training_speakers, self.state.label_scales
        return model

    def targets(self, split):
        """Targets of a split: (n,) class indices, -1 without a class; or (n, dimensions) float32, NaN without a value.

        Raises:
            InputError: the sidecar or column is missing, or a class is not in the dictionary.
        """
        if not self.dimensions:
            if split.emotions is None:
                raise InputError(
                    f"{split.directory / split.name}.emo: no such file; use task.target=[…] with columns of .dim, or add classes"
                )
            table = {c: i for i, c in enumerate(self.classes)} | {NO_EMOTION: -1}
            for i, emotion in enumerate(split.emotions):
                if emotion not in table:
                    raise InputError(
                        f"{split.where(i, 'emo')}: the class “{emotion}” is not in {split.directory}/dict.emo.txt ({', '.join(self.classes)}); "
                        "add it there, or make the manifest again"
                    )
            return np.array([table[e] for e in split.emotions], dtype=np.int64)
        missing = [d for d in self.dimensions if d not in (split.dimensions or {})]
        if missing:
            raise InputError(
                f"{split.directory / split.name}.dim: no column “{missing[0]}” (it has {', '.join(split.dimensions or {}) or 'none'}); correct task.target"
            )
        return np.stack([split.dimensions[d] for d in self.dimensions], axis=1).astype(np.float32)

    def make_dataset(self, split, training, targets=None):
        """The dataset of a split.

        Args:
            split: a `manifest.Split`.
            training: with masks and shuffling.
            targets: as from `targets`; by default those of the split.
        """
        targets = self.targets(split) if targets is None else targets
        rows = speaker_rows(split, self.speakers, self.cfg.speakers, required=False) if self.speakers else None
        cfg = self.model_cfg
        width = cfg.backbone["encoder_embed_dim"]
        return UtteranceLabelledSpeech(
            split,
            targets,
            Masking(cfg.mask_prob, cfg.mask_length, cfg.mask_channel_prob, cfg.mask_channel_length, width) if training else None,
            rows,
            cfg.speaker_dropout,
            seed=self.cfg.seed,
            training=training,
            normalise=self.normalise,
            max_samples=self.cfg.max_sample_size if training else None,
            min_samples=self.cfg.min_sample_size if training else RECEPTIVE_FIELD,
        )

    @exit_on_input_error
    def load_dataset(self, split, combine=False, **kwargs):
        """Read a split and check everything that can be checked before training."""
        utterances = read_split(self.cfg.data, split, speakers=self.cfg.speakers)
        training = split.startswith("train")
        dataset = self.make_dataset(utterances, training)
        dataset.kept = dataset.kept[dataset.has_target[dataset.kept]]
        without = int((~dataset.has_target).sum())
        if without:
            logger.warning("%s: %d of %d utterances have no target and are left out", utterances.tsv, without, len(utterances))
        if len(dataset.kept) == 0:
            raise InputError(f"{utterances.tsv}: no utterance has a target for task.target={self.cfg.target}")
        if self.cfg.check_audio:
            dataset.check_audio()
        hours = utterances.n_samples[dataset.kept].sum() / SAMPLE_RATE / 3600
        logger.info(
            "%s: %d utterances, %.2f hours, targets: %s", split, len(dataset.kept), hours, ", ".join(self.classes or self.dimensions)
        )
        self.datasets[split] = dataset
