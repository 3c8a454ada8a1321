"""Embeddings for speakers outside a model's table: their file, and a fine-tuned model that takes them in."""

import json
import logging
from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError
from ..data.speaker_vectors import SpeakerVectors, read, read_arrays, write
from ..speakers import METHODS

logger = logging.getLogger("emohubert")


@dataclass(frozen=True)
class NewSpeakers:
    """Embeddings for speakers outside a table, as `write` keeps them.

    Attributes:
        speakers: SpeakerVectors; vectors are rows of the table, counts utterances.
        method: one of METHODS.
        checkpoint: SHA-256 of the checkpoint they were made with.
        settings: dict: how.
    """

    speakers: SpeakerVectors
    method: str
    checkpoint: str
    settings: dict

    @property
    def phrase(self):
        """What they are, for reports."""
        return {"adapted": "adapted", "nearest": "nearest average"}[self.method]

    def write(self, path):
        """Write an .npz of plain arrays that `speaker_vectors.read` reads as well; the same content gives the same bytes."""
        about = {"method": self.method, "checkpoint": self.checkpoint, "settings": json.dumps(self.settings, sort_keys=True)}
        write(path, self.speakers, **{name: np.array(text, dtype=np.str_) for name, text in about.items()})

    @classmethod
    def read(cls, path):
        """Read what `write` wrote; nothing in the file can run.

        Raises:
            InputError: missing, or not such a file.
        """
        speakers = read(path)
        about = {name: str(a) for name, a in read_arrays(path, ("method", "checkpoint", "settings"), "speaker embeddings").items()}
        try:
            found = cls(speakers, about["method"], about["checkpoint"], json.loads(about["settings"]))
        except ValueError as error:
            raise InputError(f"{path}: its settings are not JSON ({error}); make it again with tools/adapt_speaker.py") from error
        if found.method not in METHODS:
            raise InputError(
                f"{path}: unknown method “{found.method}”, known are {', '.join(METHODS)}; make it with tools/adapt_speaker.py"
            )
        return found

    def add_to(self, task, model, where):
        """Give a fine-tuned model a row of its table for each of these speakers; those already in it keep theirs.

        Args:
            task, model: from `load_trained`, fine-tuning; changed in place, in memory.
            where: the file of the embeddings, for messages.

        Returns:
            ids of the speakers that were added.

        Raises:
            InputError: the model has no speaker table, or its embeddings have another width.
        """
        import torch
        from torch import nn

        def longer(embedding, rows):
            weight = embedding.weight.detach()
            return nn.Embedding.from_pretrained(torch.cat([weight, rows.detach().to(weight)]))

        encoder = getattr(model, "backbone", model)
        table = encoder.speaker_conditioning
        if table is None:
            raise InputError(
                f"{where}: the checkpoint's encoder is not conditioned on speakers (model.speaker_position=none); leave --speaker-vectors out"
            )
        width, found = table.embedding.embedding_dim, self.speakers.vectors.shape[1]
        if found != width:
            raise InputError(
                f"{where}: embeddings of width {found}, and the checkpoint's have {width}; make them with the model it started from"
            )
        added = [name for name in self.speakers.ids if name not in set(task.speakers)]
        if known := sorted(set(task.speakers) & set(self.speakers.ids)):
            logger.warning("%s: %d speakers are in the checkpoint's table and keep that embedding (“%s”)", where, len(known), known[0])
        if not added:
            return []
        table.embedding = longer(table.embedding, torch.from_numpy(self.speakers.take(added).vectors))
        at_head = getattr(getattr(model, "speaker_at_head", None), "embedding", None)
        if at_head is not None:  # the head was not adapted: it keeps the unknown speaker
            model.speaker_at_head.embedding = longer(at_head, at_head.weight[:1].expand(len(added), -1))
        encoder.speakers = [*task.speakers, *added]
        task.state.merge_state_dict({"speakers": list(encoder.speakers)})
        return added
