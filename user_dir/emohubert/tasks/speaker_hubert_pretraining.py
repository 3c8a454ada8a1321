"""Task: masked prediction of frame labels, with speakers (continued pretraining: PAPT, TAPT, P-TAPT, FLEA)."""

from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from omegaconf import II, MISSING

from ..core.errors import InputError
from ..core.options import option
from ..corpus.audio import RECEPTIVE_FIELD, SAMPLE_RATE
from ..corpus.frame_labels import read_frame_labels
from ..corpus.manifest import read_counts, read_dictionary, read_split
from ..data.frame_labelled import FrameLabelledSpeech
from ..data.masking import Masking
from ..models.from_pretrained import adopt, initialise
from ..pretrained.load import read_pretrained
from ..pretrained.types import FrameLabelSet
from .common import SpeechTask, speaker_rows


@dataclass
class SpeakerHubertPretrainingConfig(FairseqDataclass):
    """Data and labels."""

    data: str = option(MISSING, "manifest directory")
    label_dir: Optional[str] = option(None, "folder of the frame labels (default: the manifest directory)")
    labels: List[str] = option(["km"], "endings of files in label_dir (km: train.km, dict.km.txt), or folders in it with those (L9/km50)")
    speakers: Optional[str] = option("spk", "ending of the speaker sidecar, with dict.ENDING.txt; null: no speakers")
    sample_rate: int = option(SAMPLE_RATE, "16000; audio of other rates is resampled while it is read")
    normalize: bool = option(False, "zero mean and unit variance for every waveform (HuBERT large); a data2vec's own if init_from is one")
    max_sample_size: Optional[int] = option(250_000, "crop longer utterances to so many samples; null: never crop")
    min_sample_size: int = option(RECEPTIVE_FIELD, "leave out utterances under so many samples; they are counted in the log")
    check_audio: bool = option(True, "look into every audio file's header before training")
    seed: int = II("common.seed")
    update_freq: List[int] = II("optimization.update_freq")


@register_task("speaker_hubert_pretraining", dataclass=SpeakerHubertPretrainingConfig)
class SpeakerHubertPretrainingTask(SpeechTask):
    """Reads a manifest directory and label files. Its state (labels' symbols, speakers) is kept in checkpoints as plain lists."""

    def __init__(self, cfg):
        super().__init__(cfg)
        if cfg.sample_rate != SAMPLE_RATE:
            raise InputError(f"task.sample_rate={cfg.sample_rate}: all models expect 16000 Hz; leave it, audio of any rate is resampled")
        self.state.add_factory("label_sets", self._read_label_dictionaries)
        self.state.add_factory("speakers", self._read_speakers)
        self.state.add_factory("normalise", lambda: self.cfg.normalize)
        self.masking, self.speaker_dropout = None, 0.0

    @property
    def label_sets(self):
        """list of FrameLabelSet."""
        return [FrameLabelSet(**s) for s in self.state.label_sets]

    @property
    def label_folders(self):
        """Folders of the label sets."""
        return list(dict.fromkeys(self._label_file(s.name, "dict.{}.txt").parent for s in self.label_sets))

    def _label_file(self, name, file):
        """A file of a label set: `file` is "train.{}" or "dict.{}.txt"; `name` an ending, or a folder (see `task.labels`)."""
        folder = Path(self.cfg.label_dir or self.cfg.data)
        return folder / name / file.format("km") if (folder / name).is_dir() else folder / file.format(name)

    def _read_label_dictionaries(self):
        if not self.cfg.labels:
            raise InputError("task.labels is empty; name at least one label set, such as task.labels=[km]")
        counts = [(name, read_counts(self._label_file(name, "dict.{}.txt"))) for name in self.cfg.labels]
        return [{"name": name, "symbols": list(c), "counts": list(c.values())} for name, c in counts]

    def _read_speakers(self):
        return read_dictionary(Path(self.cfg.data) / f"dict.{self.cfg.speakers}.txt") if self.cfg.speakers else []

    def build_model(self, cfg, from_checkpoint=False):
        """Build the model and start it from `model.init_from`, unless a checkpoint of its own is about to be loaded."""
        pretrained = read_pretrained(cfg.init_from) if cfg.init_from and not from_checkpoint else None
        if pretrained is not None:
            if adopt(cfg, pretrained):
                self.state.merge_state_dict({"normalise": pretrained.normalise})
            if pretrained.normalise != self.state.normalise:
                theirs = f"task.normalize={str(pretrained.normalise).lower()}"
                raise InputError(f"{cfg.init_from}: was trained with {theirs}; set {theirs}")
        model = super().build_model(cfg, from_checkpoint)
        if pretrained is not None:
            initialise(model, pretrained)
        self.masking, self.speaker_dropout = Masking.of(model.cfg, model.width), model.cfg.speaker_dropout
        return model

    def load_dataset(self, split, combine=False, **kwargs):
        """Read a split with its labels and check everything that can be checked before training."""
        utterances = read_split(self.cfg.data, split, speakers=self.cfg.speakers, sidecars=["speakers", "meta"])
        labels = [read_frame_labels(self._label_file(s.name, split + ".{}"), s.symbols, utterances.n_samples) for s in self.label_sets]
        training = split.startswith("train")
        rows = speaker_rows(utterances, self.speakers, self.cfg.speakers, required=training)
        options = {"seed": self.cfg.seed, "training": training, "normalise": self.state.normalise}
        options |= {"max_samples": self.cfg.max_sample_size, "min_samples": self.cfg.min_sample_size}
        dataset = FrameLabelledSpeech(utterances, labels, self.masking, rows, self.speaker_dropout, **options)
        self.datasets[split] = self.checked(dataset, split, ", ".join(f"{s.name}: {len(s)} labels" for s in self.label_sets))
