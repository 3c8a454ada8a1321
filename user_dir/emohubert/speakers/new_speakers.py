"""Embeddings for speakers outside a model's table: their file, and a fine-tuned model that takes them in."""

from dataclasses import dataclass

import numpy as np

from ..core.cli import logger
from ..core.errors import InputError
from ..core.files import sha256
from ..data.speaker_vectors import SpeakerVectors, read, read_arrays, write


@dataclass(frozen=True)
class NewSpeakers:
    """SpeakerVectors that are rows of a table, and the SHA-256 of the fine-tuned checkpoint that they are for."""

    speakers: SpeakerVectors
    checkpoint: str

    def write(self, path):
        """Write an .npz of plain arrays that `speaker_vectors.read` reads as well; the same content gives the same bytes."""
        write(path, self.speakers, checkpoint=np.array(self.checkpoint))

    @classmethod
    def read(cls, path, checkpoint):
        """Read what `write` wrote for a checkpoint file; nothing in it can run. InputError where it is missing, is not such a file, or was
        made for another checkpoint."""
        found = cls(read(path), str(read_arrays(path, ("checkpoint",), "speaker embeddings")["checkpoint"]))
        if found.checkpoint != sha256(checkpoint):
            raise InputError(f"{path}: holds embeddings for another checkpoint; make them for {checkpoint} with tools/adapt_speaker.py")
        return found

    def add_to(self, task, model, where):
        """Give a fine-tuned task and model, of `load_trained`, a row of the table for each of these speakers, in memory; those already in
        it keep theirs. Returns the ids that were added; InputError, naming the file `where`, if the embeddings do not fit the model."""
        import torch

        def extend(module, rows):
            weight = module.embedding.weight.detach()
            module.embedding = torch.nn.Embedding.from_pretrained(torch.cat([weight, rows.to(weight)]))

        encoder = getattr(model, "backbone", model)
        if encoder.speaker_conditioning is None:
            raise InputError(f"{where}: the checkpoint's model.speaker_position is none; leave --speaker-vectors out")
        width, found = encoder.speaker_conditioning.embedding.embedding_dim, self.speakers.vectors.shape[1]
        if found != width:
            raise InputError(f"{where}: of width {found}, the checkpoint's embeddings of {width}; make it again")
        added = [name for name in self.speakers.ids if name not in set(task.speakers)]
        if known := sorted({*self.speakers.ids} - {*added}):
            logger.warning("%s: %d speakers are in the checkpoint's table and keep that embedding (“%s”)", where, len(known), known[0])
        extend(encoder.speaker_conditioning, torch.from_numpy(self.speakers.take(added).vectors))
        if getattr(getattr(model, "speaker_at_head", None), "embedding", None) is not None:  # not adapted: the unknown speaker's
            extend(model.speaker_at_head, model.speaker_at_head.embedding.weight.detach()[:1].expand(len(added), -1))
        encoder.speakers = [*task.speakers, *added]
        task.state.merge_state_dict({"speakers": list(encoder.speakers)})
        return added
