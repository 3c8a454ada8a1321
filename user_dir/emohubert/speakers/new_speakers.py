"""Embeddings of a fine-tuned model for speakers outside its table, in closed form, from their unlabelled audio.

Where the speaker is added to the encoder's output (`model.speaker_position=output`), the mean over time of f + e is that of f, plus e: an
embedding is an offset of the utterance's vector. A new speaker's brings the mean of that speaker's vectors to the training speakers':

    e_s = e_unk + n / (n + κ) · (m − x̄_s)

m is the mean over training speakers of the means of their vectors, each with the speaker's own e; x̄_s the mean of the new speaker's n
vectors with e_unk; κ as in `models.speaker_normalisation`, of which this is the first half: one utterance alone moves little. With other
poolings than a mean it holds to first order. Embeddings are kept as rows of the table, from which the model makes e.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..core.cli import logger
from ..core.errors import InputError
from ..core.files import sha256
from ..corpus.manifest import by_speaker
from ..data.speaker_vectors import SpeakerVectors, read, read_arrays, write
from ..evaluation.inference import predict_split
from ..models.speaker_conditioning import UNKNOWN, AtOutput
from ..models.speaker_normalisation import AverageSpeaker
from ..tasks.trained import load_trained


def adapt(checkpoint, train, split, **options):
    """NewSpeakers with an embedding for every speaker of a Split who is not in the table of a fine-tuned checkpoint. `train`: the Split of
    its training speakers; `options` of `predict_split`. Nothing is read of the splits but audio and speakers. InputError: the model has no
    embeddings, or not at the output; there is nobody new; a split has no speakers."""
    task, model = load_trained(checkpoint)
    if (encoder := getattr(model, "backbone", None)) is None:
        raise InputError(f"{checkpoint}: is a pretrained model; give one fine-tuned from it, whose utterance vectors can be compared")
    if not isinstance(conditioning := encoder.speaker_conditioning, AtOutput):
        position = (model.cfg.backbone or {}).get("speaker_position", "none")
        raise InputError(f"{checkpoint}: model.speaker_position={position}; only an embedding at the output is an offset that audio gives")
    for each in (train, split):
        if each.speakers is None:
            raise InputError(f"{each.directory / each.name}.spk: no such file; embeddings are for speakers, make the manifest again")
    new = by_speaker(split.speakers).keys() - set(task.speakers)
    known = _vectors(task, model, train, task.speakers, options)
    if not known:
        raise InputError(f"{train.tsv}: none of its speakers is in the table of {checkpoint}; give its training split with --train-split")
    average = AverageSpeaker.of(known.values())
    if not (found := _vectors(task, model, split, new, options)):
        raise InputError(f"{split.tsv}: every speaker has an embedding in the checkpoint already; give a split of other speakers")
    offsets = np.stack([average.mean - average.statistics(x)[0] for x in found.values()])[:, : conditioning.embedding.embedding_dim]
    lengths = np.linalg.norm(offsets, axis=1).mean(), float(conditioning.mean_norm())
    logger.info("offsets of length %.2f on average; the training speakers' learned embeddings are of length %.2f", *lengths)
    counts = np.array([len(x) for x in found.values()])
    return NewSpeakers(SpeakerVectors(list(found), rows_of(conditioning, offsets), counts), sha256(checkpoint))


def _vectors(task, model, split, wanted, options):
    """{speaker: pooled vectors (utterances, width), float64} of those speakers of a split who are wanted, sorted by id."""
    predictions, vectors = predict_split(task, model, split, **options)
    return {name: vectors[own].astype(np.float64) for name, own in by_speaker(predictions.speakers).items() if name in wanted}


@torch.no_grad()
def rows_of(conditioning, offsets):
    """The rows (speakers, width), float64, whose e is that of the unknown speaker plus offsets (speakers, width)."""
    unknown = conditioning.embedding.weight[UNKNOWN].double().cpu()
    change = torch.from_numpy(offsets) / conditioning.scale
    if conditioning.fc is not None:  # e = W (scale · row) + b
        change = torch.linalg.lstsq(conditioning.fc.weight.double().cpu(), change.T).solution.T
    return (unknown + change).numpy()


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
        task.added_speakers = frozenset(added)
        return added
