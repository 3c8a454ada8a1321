"""Task: emotion classes, or dimensions such as arousal and valence, for whole utterances."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, List, Optional

import numpy as np
import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.tasks import register_task
from omegaconf import II, MISSING, open_dict

from ..core.errors import InputError
from ..core.options import option
from ..corpus.audio import RECEPTIVE_FIELD
from ..corpus.manifest import NO_EMOTION, UNKNOWN_SPEAKER, by_speaker, read_corpus, read_dictionary, read_split, share_people
from ..data.augmentation import Augmentation
from ..data.cached_features import CachedFeatures
from ..data.masking import Masking
from ..data.speaker_vectors import MFCC_COEFFICIENTS, SpeakerVectors, from_utterances, mfcc_means, standardise
from ..data.utterance_labelled import UtteranceLabelledSpeech
from ..evaluation import inference
from ..models.emotion import EmotionHubertModel, resolve_backbone
from ..pretrained.load import read_pretrained
from ..training import processes
from ..training.resuming import earlier_speakers
from .common import SpeechTask, speaker_rows

logger = logging.getLogger(__name__)


@dataclass
class EmotionFinetuningConfig(FairseqDataclass):
    """Data and targets."""

    data: str = option(MISSING, "manifest directory")
    target: Any = option("emo", "emo: the classes of .emo; or names of columns of .dim, such as [arousal,valence]")
    speakers: Optional[str] = option("spk", "ending of the speaker sidecar; used where the model has a speaker embedding")
    normalize: Optional[bool] = option(None, "normalise waveforms (default: as the encoder was trained)")
    max_sample_size: Optional[int] = option(None, "crop longer training utterances to so many samples; null: never")
    min_sample_size: int = option(RECEPTIVE_FIELD, "leave out utterances under so many samples; they are counted in the log")
    sampling: ChoiceEnum(("natural", "balanced")) = option("natural", "balanced: as many utterances of each class in every epoch")
    feature_cache: Optional[str] = option(None, "with model.freeze=all, the folder that keeps the encoder's features (null: memory)")
    augment_speed: Any = option([], "in training, speed factors that are equally likely, such as [0.9,1.0,1.1]")
    augment_noise: Any = option(0.0, "probability of noise in a training utterance")
    augment_noise_snr: Any = option([0, 30], "range of its signal-to-noise ratio in dB")
    augment_noise_files: Optional[str] = option(None, "folder of noise recordings (null: white, pink or babble noise is generated)")
    augment_reverb: Any = option(0.0, "probability of reverberation in a training utterance")
    augment_reverb_t60: Any = option([0.2, 0.8], "range of its reverberation time in seconds")
    augment_reverb_files: Optional[str] = option(None, "folder of impulse responses (null: they are generated)")
    check_audio: bool = option(True, "look into every audio file's header before training")
    seed: int = II("common.seed")
    update_freq: List[int] = II("optimization.update_freq")


@register_task("emotion_finetuning", dataclass=EmotionFinetuningConfig)
class EmotionFinetuningTask(SpeechTask):
    """Reads a manifest directory; checkpoints keep its state, plain values: classes, their counts, speakers, those trained on, their
    corpus, scales."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.state.add_factory("classes", lambda: read_dictionary(Path(cfg.data) / "dict.emo.txt"))
        self.state.add_factory("class_counts", self._count_classes)
        self.state.add_factory("speakers", list)
        self.state.add_factory("training_speakers", lambda: sorted(set(self._training_split("speakers").speakers or [])))
        self.state.add_factory("corpus", lambda: read_corpus(cfg.data).get("corpus"))
        self.state.add_factory("earlier_speakers", list)
        self.state.add_factory("training_voices", dict)
        self.state.add_factory("label_scales", lambda: read_corpus(cfg.data).get("label_scales", {}))
        self.added_speakers = ()  # of the table, by `NewSpeakers`
        self.model_cfg, self.normalise, self._unseen, self.soft_labels = None, bool(cfg.normalize), {}, False

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
    def label_names(self):
        """Names of the sidecar or its columns that are learned from."""
        return self.dimensions or ["emo"]

    @property
    def n_outputs(self):
        """Classes or dimensions."""
        return len(self.classes or self.dimensions)

    @property
    def voices(self):
        """The training speakers in the order of the rows, from 1, of the table of speaker normalisation."""
        return [s for s in self.state.training_speakers if s != UNKNOWN_SPEAKER]

    @property
    def speaker_embedding(self):
        """Where the model knows the speaker: a phrase for reports."""
        position, at_head = self.model_cfg.backbone.get("speaker_position", "none"), str(self.model_cfg.head_speaker)
        places = [f"at the {position}"] * (position != "none") + ["at the head"] * (at_head == "embedding")
        known = ["speaker embedding " + " and ".join(places)] * bool(places)
        known += ["mean MFCCs of the speaker's own audio at the head"] * (at_head == "mfcc")
        return ", ".join(known) or "no speaker embedding"

    def _training_split(self, *sidecars):
        return read_split(self.cfg.data, "train", speakers=self.cfg.speakers, sidecars=sidecars)

    def _count_classes(self):
        if self.soft_labels:
            return self.shares(self._training_split("emotions", "votes")).sum(axis=0).tolist()
        emotions = self._training_split("emotions").emotions or []
        return [emotions.count(c) for c in self.classes]

    def build_criterion(self, cfg, from_checkpoint=False):
        """Build the criterion, which says whether the annotators' votes are learned from."""
        self.soft_labels = bool(cfg.get("soft_labels"))
        return super().build_criterion(cfg, from_checkpoint)

    def build_model(self, cfg, from_checkpoint=False):
        """Build the model; the encoder's configuration goes into the model's own, so that its checkpoints stand alone."""
        pretrained = None
        if not from_checkpoint:
            backbone, pretrained = resolve_backbone(cfg)
            with open_dict(cfg):
                cfg.backbone = backbone
                if str(cfg.freeze) == "all" and (cfg.mask_prob > 0 or cfg.mask_channel_prob > 0):
                    logger.info("model.freeze=all: nothing is masked, so that features can be computed once")
                    cfg.mask_prob = cfg.mask_channel_prob = 0.0
            self._read_speakers(cfg, pretrained)
        self.normalise = cfg.backbone["normalize"] if self.cfg.normalize is None else self.cfg.normalize
        model = super().build_model(cfg, from_checkpoint)
        self.model_cfg = model.cfg
        if model.normalisation is not None and not self.voices:
            raise InputError("model.speaker_normalisation=true needs training speakers; make the manifest with them (task.speakers=spk)")
        if pretrained is not None:
            model.start_from(pretrained)
            # what checkpoints must hold, whether training asks for it or not
            _ = self.dimensions or self.state.classes, self.state.training_speakers, self.state.corpus, self.state.label_scales
            self.state.merge_state_dict({"earlier_speakers": earlier_speakers([], pretrained.task_state)})
        return model

    def _read_speakers(self, cfg, pretrained):
        """Put what the model will know of speakers into the state: ids of the table, mean MFCCs of the training speakers."""
        in_encoder = cfg.backbone.get("speaker_position", "none") != "none"
        if in_encoder or str(cfg.head_speaker) == "embedding":
            known = read_dictionary(Path(self.cfg.data) / f"dict.{self.cfg.speakers}.txt") if self.cfg.speakers else []
            inherited = pretrained.speakers if in_encoder else []
            self.state.merge_state_dict({"speakers": list(dict.fromkeys([*inherited, *known]))})
            if not self.speakers:
                raise InputError("model.head_speaker=embedding needs speakers; set task.speakers=spk, or use model.head_speaker=none")
        if str(cfg.head_speaker) == "mfcc":
            split = self._training_split("speakers")
            vectors = _mfcc_vectors(split, np.arange(len(split)))
            voices = {"ids": vectors.ids, "vectors": vectors.vectors.tolist(), "counts": vectors.counts.tolist()}
            self.state.merge_state_dict({"training_voices": voices})

    def _speaker_features(self, split):
        """Scaled mean MFCCs of each utterance's speaker, float32 (n, 13), or None where the head does not use them: of training speakers in
        the training audio, of others in this split. Without a speaker sidecar everybody is the average training speaker (zero)."""
        if str(self.model_cfg.head_speaker) != "mfcc":
            return None
        if split.speakers is None:
            return np.zeros((len(split), MFCC_COEFFICIENTS), dtype=np.float32)
        known = self.state.training_voices
        training = SpeakerVectors(known["ids"], np.array(known["vectors"]), np.array(known["counts"]))
        rows = dict(zip(training.ids, standardise(training.vectors, training), strict=True))
        new = np.array([i for i, s in enumerate(split.speakers) if s not in rows and s != UNKNOWN_SPEAKER], dtype=np.int64)
        if len(new):
            found = _mfcc_vectors(split, new)
            rows |= dict(zip(found.ids, standardise(found.vectors, training), strict=True))
        return np.stack([rows.get(s, np.zeros(MFCC_COEFFICIENTS)) for s in split.speakers]).astype(np.float32)

    def targets(self, split):
        """Targets of a split: (n,) class indices, -1 without a class; or (n, dimensions) float32, NaN without a value. InputError: the
        sidecar or column is missing, or a class is not in the dictionary."""
        if self.dimensions:
            columns = split.dimensions or {}
            if missing := [d for d in self.dimensions if d not in columns]:
                has = ", ".join(columns) or "none"
                raise InputError(f"{split.directory / split.name}.dim: no column “{missing[0]}” (it has {has}); correct task.target")
            return np.stack([columns[d] for d in self.dimensions], axis=1).astype(np.float32)
        if split.emotions is None:
            raise InputError(f"{split.directory / split.name}.emo: no such file; use task.target=[…] with columns of .dim, or add classes")
        table = {c: i for i, c in enumerate(self.classes)} | {NO_EMOTION: -1}
        if (unknown := next((i for i, emotion in enumerate(split.emotions) if emotion not in table), None)) is not None:
            what = f"the class “{split.emotions[unknown]}” is not in {split.directory}/dict.emo.txt ({', '.join(self.classes)})"
            raise InputError(f"{split.where(unknown, 'emo')}: {what}; add it there, or make the manifest again")
        return np.array([table[e] for e in split.emotions], dtype=np.int64)

    def shares(self, split):
        """What annotators say of a split's utterances: float64 (n, classes), the shares of their votes; without votes the class has all of it,
        without either the row is 0. InputError: the sidecar is missing, or a class of it is not in the dictionary."""
        path = f"{split.directory / split.name}.votes"
        if split.votes is None:
            raise InputError(f"{path}: no such file; make the manifest with its annotators' votes, or set criterion.soft_labels=false")
        if others := sorted(set(split.votes) - set(self.classes)):
            known = f"{split.directory}/dict.emo.txt ({', '.join(self.classes)})"
            raise InputError(f"{path}:1: the class “{others[0]}” is not in {known}; remove its column, or make the manifest again")
        shares, targets = split.shares(self.classes), self.targets(split)
        alone = np.flatnonzero(~shares.any(axis=1) & (targets >= 0))
        shares[alone, targets[alone]] = 1
        return shares

    def speakers_for(self, split):
        """The speakers of the table by row, None where an id means another person in this split's corpus."""
        if not split.tsv.is_file() or share_people(read_corpus(split.directory).get("corpus"), self.state.corpus):
            return self.speakers
        return [speaker if speaker in self.added_speakers else None for speaker in self.speakers]

    def make_dataset(self, split, training, targets=None, transform=None):
        """The dataset of a split, for training with masks, shuffling and augmentation. `targets`: as from `targets`, by default those of
        the split; `transform`: applied to waveforms outside of training (see SpeechDataset)."""
        cfg, masking, sizes = self.model_cfg, None, {}
        if training:
            masking = Masking.of(cfg, cfg.backbone["encoder_embed_dim"])
            sizes = {"max_samples": self.cfg.max_sample_size, "min_samples": self.cfg.min_sample_size}
            options = {key.removeprefix("augment_"): value for key, value in self.cfg.items() if key.startswith("augment_")}
            transform = Augmentation(**options, prefix="task.augment_") or None
        return UtteranceLabelledSpeech(
            split,
            self.targets(split) if targets is None else targets,
            masking,
            speaker_rows(split, self.speakers_for(split), self.cfg.speakers, required=False) if self.speakers else None,
            cfg.speaker_dropout,
            seed=self.cfg.seed,
            training=training,
            normalise=self.normalise,
            speaker_features=self._speaker_features(split),
            transform=transform,
            balanced=str(self.cfg.sampling) == "balanced",
            shares=self.shares(split) if self.soft_labels and targets is None else None,
            **sizes,
        )

    def load_dataset(self, split, combine=False, **kwargs):
        """Read a split and check everything that can be checked before training."""
        if split != "train" and not (Path(self.cfg.data) / f"{split}.tsv").is_file():
            otherwise = "dataset.disable_validation=true to train for a fixed number of epochs and use the last"
            raise InputError(f"{self.cfg.data}/{split}.tsv: no such file; make the manifest with a validation split, or set {otherwise}")
        utterances = read_split(self.cfg.data, split, speakers=self.cfg.speakers)
        dataset = self.make_dataset(utterances, split.startswith("train"))
        dataset.kept = dataset.kept[dataset.has_target[dataset.kept]]
        if without := int((~dataset.has_target).sum()):
            logger.warning("%s: %d of %d utterances have no target and are left out", utterances.tsv, without, len(utterances))
        if len(dataset.kept) == 0:
            raise InputError(f"{utterances.tsv}: no utterance has a target for task.target={self.cfg.target}")
        if self.model_cfg.speaker_normalisation:
            dataset.voices = self._voices_of(utterances, split)
        self.datasets[split] = self.checked(dataset, split, f"targets: {', '.join(self.classes or self.dimensions)}")
        if self._features_stay(dataset):
            dataset.features = self._cached_features(dataset)

    def _voices_of(self, split, name):
        """Rows of a split's speakers in the table of speaker normalisation; those of other splits than train stand behind the table."""
        if split.speakers is None:
            raise InputError(f"{split.tsv.with_suffix('.spk')}: no such file, but model.speaker_normalisation=true; see task.speakers")
        first, names = 1, self.voices
        if name != "train":
            first += len(names) + sum(len(ids) for other, ids in self._unseen.items() if other != name)
            names = self._unseen[name] = list(by_speaker(split.speakers))
        rows = dict(zip(names, range(first, first + len(names)), strict=True))
        return np.array([rows.get(s, 0) for s in split.speakers])

    def begin_epoch(self, epoch, model):
        """Renew the training speakers' statistics with the weights that the epoch starts from (fairseq calls this)."""
        normalisation = model.normalisation
        if normalisation is not None and int(normalisation.epoch) != epoch:
            if int(normalisation.epoch) and self._vectors_stay:
                normalisation.epoch.fill_(epoch)
            else:
                normalisation.fit(self._pooled("train", self.voices, model), epoch)

    @property
    def _vectors_stay(self):
        """Whether pooled vectors are the same in every epoch: those of cached features, by a pooling without parameters."""
        return getattr(self.datasets["train"].features, "are_few", False)

    def begin_valid_epoch(self, epoch, model):
        """Statistics of the other speakers, from all of their audio in the split (fairseq calls this)."""
        if self._unseen and not (self._vectors_stay and model.normalisation.others is not None):
            model.normalisation.add([x for name, ids in self._unseen.items() for x in self._pooled(name, ids, model)])

    def _pooled(self, name, speakers, model):
        """Pooled vectors of a split's utterances, in evaluation mode: an array (utterances, width) for each speaker."""
        loaded = self.datasets[name]
        dataset = self.make_dataset(loaded.split, training=False)
        dataset.kept, dataset.features = loaded.kept, loaded.features
        found = sorted(inference.run(self, model, dataset, device=next(model.parameters()).device), key=lambda outcome: outcome.index)
        if failed := next((outcome for outcome in found if outcome.error is not None), None):
            raise failed.error
        rows = by_speaker([dataset.split.speakers[outcome.index] for outcome in found])
        vectors = np.stack([outcome.embedding for outcome in found])
        return [vectors[rows[s]] if s in rows else vectors[:0] for s in speakers]

    def _features_stay(self, dataset):
        """Whether the encoder gives an utterance the same features in every epoch."""
        if str(self.model_cfg.freeze) != "all":
            return False
        changing = ["task.max_sample_size"] * bool((dataset.cropped != dataset.split.n_samples).any())
        changing += ["task.augment_…"] * (dataset.transform is not None)
        if changing:
            logger.warning("%s changes waveforms from epoch to epoch: features are not cached", ", ".join(changing))
        return not changing

    def _cached_features(self, dataset):
        """The features of a split, from a copy of the encoder in full precision; with several processes, the first computes them."""
        model = EmotionHubertModel(self.model_cfg, self.n_outputs, self.speakers)
        pretrained = read_pretrained(self.model_cfg.init_from)
        model.start_from(pretrained)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        compute = partial(CachedFeatures, model, dataset, self.cfg.feature_cache, pretrained.sha256, device)
        return compute() if self.cfg.feature_cache is None else processes.first_alone(compute)


def _mfcc_vectors(split, indices):
    """Mean MFCCs of the speakers of some utterances: SpeakerVectors."""
    if split.speakers is None:
        raise InputError(f"{split.directory / split.name}: no speaker sidecar; model.head_speaker=mfcc needs one (see task.speakers)")
    indices = indices[split.n_samples[indices] >= RECEPTIVE_FIELD]
    return from_utterances([split.speakers[i] for i in indices], mfcc_means(split, indices=indices))
