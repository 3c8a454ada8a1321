"""Embeddings of a fine-tuned model for speakers outside its table, in closed form, from their unlabelled audio.

Where the speaker is added to the encoder's output (`model.speaker_position=output`), the mean over time of f + e is that of f, plus e: an
embedding is an offset of the utterance's vector. A new speaker's brings the mean of that speaker's vectors to the training speakers':

    e_s = e_unk + n / (n + κ) · (m − x̄_s)

m is the mean over training speakers of the means of their vectors, each with the speaker's own e; x̄_s the mean of the new speaker's n
vectors with e_unk; κ as in `models.speaker_normalisation`, of which this is the first half: one utterance alone moves little. With other
poolings than a mean it holds to first order. Embeddings are kept as rows of the table, from which the model makes e.
"""

import numpy as np
import torch

from ..core.cli import logger
from ..core.errors import InputError
from ..core.files import sha256
from ..corpus.manifest import by_speaker
from ..data.speaker_vectors import SpeakerVectors
from ..evaluation.inference import predict_split
from ..models.speaker_conditioning import UNKNOWN, AtOutput
from ..models.speaker_normalisation import AverageSpeaker
from ..tasks.trained import load_trained
from .new_speakers import NewSpeakers


def adapt(checkpoint, train, split, **options):
    """NewSpeakers with an embedding for every speaker of a Split who is not in the table of a fine-tuned checkpoint. `train`: the Split of
    its training speakers; `options` of `predict_split`. Nothing is read of the splits but audio and speakers. InputError: the model has no
    embeddings, or not at the output; there is nobody new; a split has no speakers."""
    task, model = load_trained(checkpoint)
    conditioning = _at_output(model, checkpoint)
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


def _at_output(model, checkpoint):
    encoder = getattr(model, "backbone", None)
    if encoder is None:
        raise InputError(f"{checkpoint}: is a pretrained model; give one fine-tuned from it, whose utterance vectors can be compared")
    if not isinstance(encoder.speaker_conditioning, AtOutput):
        position = (model.cfg.backbone or {}).get("speaker_position", "none")
        raise InputError(f"{checkpoint}: model.speaker_position={position}; only an embedding at the output is an offset that audio gives")
    return encoder.speaker_conditioning


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
