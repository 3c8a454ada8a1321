"""What is exported: a trained emotion model, or an encoder, with the speaker that it takes everybody for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.errors import InputError
from ..core.programs import shipped
from ..corpus.audio import RECEPTIVE_FIELD
from ..corpus.manifest import UNKNOWN_SPEAKER, Split
from ..evaluation import temperature
from ..models.from_pretrained import build_encoder
from ..pretrained.huggingface import is_classifier
from ..pretrained.load import read_pretrained
from ..pretrained.types import Pretrained
from ..tasks.trained import load_trained


@dataclass
class Source:
    """A checkpoint as it was read. Of an emotion model `task` and `model` are from `load_trained`; of an encoder `task` is None, and the
    model of `build_encoder`. `speaker`: what of the speaker the model's `forward` takes, a row for each argument. An export changes the model."""

    path: Path
    pretrained: Pretrained
    model: nn.Module
    speaker: dict
    task: Any = None
    speaker_id: str | None = None  # None: the unknown speaker
    temperature: float = 1.0  # of the temperature.json beside the checkpoint: logits are divided by it, as predictions are

    @property
    def encoder(self):
        """The SpeakerHubertModel."""
        return self.model if self.task is None else self.model.backbone

    @property
    def outputs(self):
        """Names of the classes or dimensions; empty for an encoder."""
        return [] if self.task is None else self.task.classes or self.task.dimensions


def read(path, speaker_id=None, encoder=False):
    """Read a checkpoint or folder; `encoder`: of an emotion model only that. InputError: not loadable, or no vector for that speaker."""
    path = shipped(path)
    pretrained = read_pretrained(path)
    task = None
    if (pretrained.family == "emotion_hubert" or is_classifier(path)) and not encoder:
        task, model = load_trained(path)
        table = list(task.speakers)
    else:
        model = build_encoder(pretrained)
        table = model.speakers if model.speaker_conditioning is not None else []
    known, by_voice = table, task is not None and str(model.cfg.head_speaker) == "mfcc"
    if by_voice:
        heard = task.state.training_voices["ids"]
        known = [s for s in table if s in heard] if table else heard
    if speaker_id is not None and speaker_id not in known:
        shown = f"{', '.join(known[:5])}, … ({len(known)})" if known else "nobody"
        raise InputError(f"--speaker-id {speaker_id}: {path} has no vector of this speaker, it knows {shown}; leave it out")
    speaker = {"speaker": torch.tensor([table.index(speaker_id) + 1 if speaker_id in table else 0])}
    if by_voice:
        who = [UNKNOWN_SPEAKER if speaker_id is None else speaker_id]
        one = Split(Path(), "export", Path(), ["speech"], np.array([RECEPTIVE_FIELD]), who)
        dataset = task.make_dataset(one, training=False, targets=np.zeros(1, dtype=np.int64))
        speaker["speaker_features"] = torch.from_numpy(dataset.speaker_features)
    file = temperature.beside(path) if task is not None and task.classes else None
    scale = 1.0 if file is None else temperature.read(file)
    return Source(Path(path), pretrained, model.eval().requires_grad_(False), speaker, task, speaker_id, scale)
