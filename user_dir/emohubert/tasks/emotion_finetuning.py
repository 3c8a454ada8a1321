"""Task: emotion classes, or dimensions such as arousal and valence, for whole utterances."""

import logging
from dataclasses import dataclass
from typing import Any, List, Optional

import numpy as np
import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.tasks import register_task
from omegaconf import II, MISSING, open_dict

from ..core.errors import InputError
from ..core.options import option
from ..corpus.audio import RECEPTIVE_FIELD
from ..corpus.manifest import UNKNOWN_SPEAKER, by_speaker, read_corpus
from ..corpus.union import as_in
from ..data.augmentation import Augmentation
from ..data.cached_features import CachedFeatures
from ..data.masking import Masking
from ..data.speaker_vectors import MFCC_COEFFICIENTS, SpeakerVectors, from_utterances, mfcc_means, standardise
from ..data.utterance_labelled import UtteranceLabelledSpeech
from ..evaluation import inference
from ..models.emotion import EmotionHubertModel, resolve_backbone
from ..models.heads import outputs_of
from ..pretrained.load import read_pretrained
from ..training.resuming import earlier_speakers
from . import labels
from .common import SpeechTask, speaker_rows
from .manifests import Manifests

logger = logging.getLogger(__name__)


@dataclass
class EmotionFinetuningConfig(FairseqDataclass):
    """Data and targets."""

    data: Any = option(MISSING, "manifest directory, or several, [A,B]: ids of other corpora are other speakers")
    label_map: Optional[str] = option(None, "rename classes: usual (exc is happy, …), or a JSON file {class: ours, or null}; null: do not")
    corpus_temperature: float = option(1.0, "T: corpora share an epoch in proportion to utterances^(1/T); 1: as they are, inf: equally")
    target: Any = option("emo", "emo: the classes of .emo; or columns of .dim, [arousal,valence]; or several, with columns of .meta.tsv")
    speakers: Optional[str] = option("spk", "ending of the speaker sidecar; used where the model has a speaker embedding")
    normalize: Optional[bool] = option(None, "normalise waveforms (default: as the encoder was trained)")
    max_sample_size: Optional[int] = option(None, "crop longer training utterances to so many samples; null: never")
    min_sample_size: int = option(RECEPTIVE_FIELD, "leave out utterances under so many samples; they are counted in the log")
    sampling: ChoiceEnum(("natural", "balanced")) = option("natural", "balanced: as many utterances of each class in every epoch")
    feature_cache: Optional[str] = option(None, "with model.freeze=all, the folder that keeps the encoder's features (null: memory)")
    speed_perturbation: List[float] = option([], "learn training utterances at these speeds too, as other speakers': [0.9,1.1]")
    augment_speed: List[float] = option([], "in training, speed factors that are equally likely, such as [0.9,1.0,1.1]")
    augment_noise: float = option(0.0, "probability of noise in a training utterance")
    augment_noise_snr: List[float] = option([0.0, 30.0], "range of its signal-to-noise ratio in dB")
    augment_noise_files: Optional[str] = option(None, "folder of noise recordings (null: white, pink or babble noise is generated)")
    augment_reverb: float = option(0.0, "probability of reverberation in a training utterance")
    augment_reverb_t60: List[float] = option([0.2, 0.8], "range of its reverberation time in seconds")
    augment_reverb_files: Optional[str] = option(None, "folder of impulse responses (null: they are generated)")
    check_audio: bool = option(True, "look into every audio file's header before training")
    seed: int = II("common.seed")
    update_freq: List[int] = II("optimization.update_freq")


@register_task("emotion_finetuning", dataclass=EmotionFinetuningConfig)
class EmotionFinetuningTask(SpeechTask):
    """Reads a manifest directory, or several; checkpoints keep its state, plain values: classes, their counts, those of columns of .meta.tsv,
    speakers, those trained on, their corpus or list of corpora, scales."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.manifests = Manifests(cfg.data, cfg.speakers, cfg.label_map, cfg.speed_perturbation)
        self.state.add_factory("classes", self.manifests.classes)
        self.state.add_factory("categories", lambda: labels.count_categories(self.manifests, self.label_names))
        self.state.add_factory("class_counts", self._count_classes)
        self.state.add_factory("speakers", list)
        self.state.add_factory("training_speakers", lambda: sorted(set(self.manifests.read("train", "speakers").speakers or [])))
        self.state.add_factory("corpus", lambda: self.manifests.corpus)
        self.state.add_factory("earlier_speakers", list)
        self.state.add_factory("training_voices", dict)
        self.state.add_factory("label_scales", lambda: self.manifests.scales(self.dimensions))
        self.added_speakers = ()  # of the table, by `NewSpeakers`
        self.model_cfg, self.normalise, self._unseen, self.soft_labels = None, bool(cfg.normalize), {}, False

    def load_state_dict(self, state_dict):
        """Take a checkpoint's state; older ones have no columns of .meta.tsv."""
        super().load_state_dict({"categories": {}, **state_dict})

    @property
    def label_names(self):
        """Names of the sidecar or its columns that are learned from."""
        target = self.cfg.target
        return target.split(",") if isinstance(target, str) else list(target)

    @property
    def dimensions(self):
        """Names of the dimensions; empty for classification."""
        return [name for name in self.label_names if name != "emo" and name not in self.state.categories]

    @property
    def classes(self):
        """Names of the emotion classes; empty without them."""
        return self.state.classes if "emo" in self.label_names else []

    @property
    def outputs(self):
        """What the columns of the model's output are: a list of Output."""
        return outputs_of(self.classes, self.dimensions, self.state.categories)

    @property
    def is_multitask(self):
        """Whether it learns several targets, or a column of .meta.tsv."""
        return len(self.outputs) > 1 or bool(self.state.categories)

    @property
    def corpora(self):
        """Names of several corpora; empty for one."""
        return self.manifests.corpora

    @property
    def n_outputs(self):
        """Classes and dimensions."""
        return self.outputs[-1].columns.stop

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

    def _count_classes(self):
        if self.soft_labels:
            return labels.shares_of(self.manifests.read("train", "emotions", "votes"), self.outputs[0]).sum(axis=0).tolist()
        emotions = self.manifests.read("train", "emotions").emotions or []
        return [emotions.count(c) for c in self.classes]

    def counts_of(self, output):
        """Training utterances of each of an Output's classes."""
        return self.state.class_counts if output.target == "emo" else list(self.state.categories[output.target].values())

    def build_criterion(self, cfg, from_checkpoint=False):
        """Build the criterion, which says whether the annotators' votes are learned from. InputError: it cannot learn these targets."""
        self.soft_labels = bool(cfg.get("soft_labels"))
        criterion = super().build_criterion(cfg, from_checkpoint)
        if self.is_multitask and not getattr(criterion, "several", False):
            what = f"task.target=[{','.join(self.label_names)}] is more than emotion classes, or dimensions alone"
            raise InputError(f"criterion.{cfg._name}: {what}; use a configuration ser_multitask_…, or criterion emotion_multitask")
        return criterion

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
            _ = self.outputs, self.state.training_speakers, self.state.corpus, self.state.label_scales
            self.state.merge_state_dict({"earlier_speakers": earlier_speakers([], pretrained.task_state)})
        return model

    def _read_speakers(self, cfg, pretrained):
        """Put what the model will know of speakers into the state: ids of the table, mean MFCCs of the training speakers."""
        in_encoder = cfg.backbone.get("speaker_position", "none") != "none"
        if in_encoder or str(cfg.head_speaker) == "embedding":
            inherited, known = pretrained.speakers if in_encoder else [], self.manifests.known_speakers()
            if inherited and self.manifests.are_several:
                raise InputError("model.init_from knows speakers of no certain corpus; use model.speaker_position=none, or one task.data")
            self.state.merge_state_dict({"speakers": list(dict.fromkeys([*inherited, *known]))})
            if not self.speakers:
                raise InputError("model.head_speaker=embedding needs speakers; set task.speakers=spk, or use model.head_speaker=none")
        if str(cfg.head_speaker) == "mfcc":
            if self.manifests.speeds:
                raise InputError(
                    "task.speed_perturbation makes speakers without MFCCs; use task.augment_speed, or another model.head_speaker"
                )
            split = self.manifests.read("train", "speakers")
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
        """Targets of a split, see UtteranceLabelledSpeech. InputError: the sidecar or column is missing, or a class is not known."""
        parts = [labels.classes_of(split, o) if o.are_classes else labels.dimensions_of(split, o) for o in self.outputs]
        if not self.is_multitask:
            return parts[0]
        parts = [np.where(p < 0, np.nan, p) if o.are_classes else p for o, p in zip(self.outputs, parts, strict=True)]
        return np.column_stack(parts).astype(np.float64)  # which training in half precision leaves as it is

    def speakers_for(self, split):
        """The speakers of the table by row, None where an id means another person in this split's corpus."""
        if not split.tsv.is_file():
            return self.speakers
        own = self.as_in(split, self.speakers)
        return [one if one in self.added_speakers else there for one, there in zip(self.speakers, own, strict=True)]

    def as_in(self, split, speakers):
        """Speakers of the training as a split's corpus names them; None: not its people."""
        return as_in(read_corpus(split.directory).get("corpus"), speakers, self.state.corpus)

    def make_dataset(self, split, training, targets=None, transform=None):
        """The dataset of a split, for training with masks, shuffling and augmentation. `targets`: as from `targets`, by default those of
        the split; `transform`: applied to waveforms outside of training (see SpeechDataset)."""
        cfg, masking, sizes = self.model_cfg, None, {}
        if training:
            if str(self.cfg.sampling) == "balanced" and not self.outputs[0].are_classes:
                raise InputError("task.sampling=balanced needs emo among task.target; use natural")
            if not self.cfg.corpus_temperature > 0:
                raise InputError(f"task.corpus_temperature={self.cfg.corpus_temperature}: give a number above 0, or inf")
            masking = Masking.of(cfg, cfg.backbone["encoder_embed_dim"])
            sizes = {"max_samples": self.cfg.max_sample_size, "min_samples": self.cfg.min_sample_size}
            options = {key.removeprefix("augment_"): value for key, value in self.cfg.items() if key.startswith("augment_")}
            transform = Augmentation(**options) or None
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
            shares=labels.shares_of(split, self.outputs[0]) if self.soft_labels and targets is None else None,
            several=self.is_multitask,
            corpora=getattr(split, "corpora", None),
            temperature=self.cfg.corpus_temperature,
            **sizes,
        )

    def load_dataset(self, split, combine=False, **kwargs):
        """Read a split and check everything that can be checked before training."""
        if split != "train" and not self.manifests.having(split):
            otherwise = "dataset.disable_validation=true to train for a fixed number of epochs and use the last"
            missing = f"{self.manifests.directories[0]}/{split}.tsv: no such file"
            raise InputError(f"{missing}; make the manifest with a validation split, or set {otherwise}")
        utterances = self.manifests.read(split)
        dataset = self.make_dataset(utterances, split.startswith("train"))
        dataset.kept = dataset.kept[dataset.has_target[dataset.kept]]
        if without := int((~dataset.has_target).sum()):
            logger.warning("%s: %d of %d utterances have no target and are left out", utterances.tsv, without, len(utterances))
        if self.is_multitask:
            self._check_labels(dataset)
        if len(dataset.kept) == 0:
            raise InputError(f"{utterances.tsv}: no utterance has a target for task.target={self.cfg.target}")
        if self.model_cfg.speaker_normalisation:
            dataset.voices = self._voices_of(utterances, split)
        self.datasets[split] = self.checked(dataset, split, f"targets: {', '.join(name for o in self.outputs for name in o.names)}")
        if self._features_stay(dataset):
            dataset.features = self._cached_features(dataset)

    def _check_labels(self, dataset):
        """Say how many utterances lack one of several labels; InputError: in training, all do."""
        names = [name for o in self.outputs for name in ([o.target] if o.are_classes else o.names)]
        known = dict(zip(names, ~np.isnan(dataset.targets.T), strict=True))
        if dataset.shares is not None:
            known["emo"] = dataset.shares.any(axis=1)
        for name, own in known.items():
            if dataset.training and not own.any():
                raise InputError(f"{dataset.split.tsv}: no utterance has a label of “{name}”; correct task.target")
            if not own.all():
                logger.warning("%s: %d of %d utterances have no %s", dataset.split.tsv, (~own).sum(), len(own), name)

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
        """The features of a split, from a copy of the encoder in full precision."""
        model = EmotionHubertModel(self.model_cfg, self.n_outputs, self.speakers)
        pretrained = read_pretrained(self.model_cfg.init_from)
        model.start_from(pretrained)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return CachedFeatures(model, dataset, self.cfg.feature_cache, pretrained.sha256, device)


def _mfcc_vectors(split, indices):
    """Mean MFCCs of the speakers of some utterances: SpeakerVectors."""
    if split.speakers is None:
        raise InputError(f"{split.directory / split.name}: no speaker sidecar; model.head_speaker=mfcc needs one (see task.speakers)")
    indices = indices[split.n_samples[indices] >= RECEPTIVE_FIELD]
    return from_utterances([split.speakers[i] for i in indices], mfcc_means(split, indices=indices))
