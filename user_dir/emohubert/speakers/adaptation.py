"""An embedding for a speaker outside the table of a speaker-conditioned model, from unlabelled audio.

- `nearest`: the average of the embeddings of the k most similar training speakers. A speaker's vector is the mean over utterances of
  the mean over frames of the last layer, computed with the unknown speaker's embedding. k is the one that best gives the training
  speakers' own embeddings, each left out in turn.
- `adapted`: the most probable embedding m + L z under the masked-prediction loss of the speaker's audio, everything else frozen, with
  eigenvoices as the prior (Kuhn et al. 2000): m is the mean of the training speakers' embeddings, L Lᵀ their covariance. z minimises

      Σ_t CE_t(m + L z) / r + ‖z‖² / 2

  over frames t, each counted once however often it is masked; r is the mean length of a run of equal labels, because neighbouring
  frames carry the same information. A few seconds of audio stay near m, minutes move away from it.

Embeddings are rows of the table; the model receives e, `SpeakerConditioning.vectors_from` them.
"""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from ..core.cli import progress
from ..core.device import exact_arithmetic
from ..core.errors import InputError
from ..core.files import sha256
from ..core.parallel import cores, in_threads
from ..corpus.audio import n_frames
from ..corpus.frame_labels import NO_LABEL, read_frame_labels
from ..corpus.manifest import by_speaker
from ..data.frame_labelled import FrameLabelledSpeech
from ..data.masking import Masking, rng_for
from ..data.speaker_vectors import SpeakerVectors, from_utterances
from ..models.from_pretrained import load_encoder
from ..models.speaker_conditioning import SpeakerConditioning
from ..pseudo_labels.features import EncoderFeatures
from ..tasks.speaker_hubert_pretraining import label_file
from ..tasks.trained import load_trained
from .neighbours import cosine, numbers_of_neighbours, ranking
from .new_speakers import NewSpeakers

MASKS, ITERATIONS = 3, 20
"""Masks of each utterance, and most iterations of L-BFGS."""


def make(checkpoint, split, method, train=None, label_dir=None, seed=1, device="cpu", batch_seconds=100.0, workers=0):
    """Embeddings, by one of METHODS, of the speakers of a Split who are not in the table of a checkpoint: NewSpeakers. `adapted` takes a
    pretrained checkpoint and the folder of the split's frame labels, as `task.label_dir`; `nearest` takes any speaker-conditioned
    checkpoint and the Split of its training speakers. Nothing is read of the splits but audio and speakers."""
    encoder = load_encoder(checkpoint, device)
    table = table_of(encoder)
    members = members_of(split, lambda name: name not in table)
    if not members:
        raise InputError(f"{split.tsv}: every speaker has an embedding in the checkpoint already; give a split of other speakers")
    if method == "nearest":
        vectors = nearest(encoder, train, split, members, batch_seconds=batch_seconds, workers=workers)
    else:
        vectors = adapt(checkpoint, split, members, label_dir, seed, device, workers)
    speakers = SpeakerVectors(list(members), vectors.astype(np.float64), np.array([len(own) for own in members.values()]))
    return NewSpeakers(speakers, method, sha256(checkpoint))


def table_of(encoder):
    """The speaker table of an encoder, from `load_encoder`: {id: row}, float32 arrays, without the unknown speaker."""
    if encoder.model.speaker_conditioning is None:
        raise InputError(f"{encoder.path}: the encoder is not conditioned on speakers (model.speaker_position=none); give one that is")
    return dict(zip(encoder.speakers, encoder.model.speaker_conditioning.embedding.weight[1:].cpu().numpy(), strict=True))


def members_of(split, wanted):
    """{speaker: indices of the utterances of a frame or longer}, sorted by id, of speakers for whom `wanted(id)` is true."""
    if split.speakers is None:
        raise InputError(f"{split.directory / split.name}.spk: no such file; embeddings are for speakers, make the manifest again")
    long = np.flatnonzero(n_frames(split.n_samples) > 0)
    return {name: long[own].tolist() for name, own in by_speaker([split.speakers[i] for i in long]).items() if wanted(name)}


def nearest(encoder, train, split, members, **options):
    """Averages of the embeddings of the most similar speakers of the Split `train`: (speakers, width). See `speaker_vectors`."""
    table = table_of(encoder)
    known = members_of(train, table.__contains__)
    if len(known) < 2:
        raise InputError(f"{train.tsv}: fewer than 2 of its speakers are in the table of {encoder.path}; give its --train-split DIR/SPLIT")
    training, rows = speaker_vectors(encoder, train, known, **options), np.stack([table[name] for name in known]).astype(np.float64)
    order = ranking(cosine(speaker_vectors(encoder, split, members, **options).vectors, training.vectors))
    return rows[order[:, : best_k(training, rows)]].mean(1)


def best_k(training, rows):
    """The k whose averages come nearest to the embeddings `rows` (speakers, width) of the SpeakerVectors `training`, each left out."""
    order = ranking(cosine(training.vectors, training.vectors), leave_one_out=True)
    errors = {k: round(float(((rows[order[:, :k]].mean(1) - rows) ** 2).sum()), 12) for k in numbers_of_neighbours(len(rows) - 1)}
    return min(errors, key=errors.get)


def speaker_vectors(encoder, split, members, **options):
    """SpeakerVectors of the last layer's features with the unknown speaker's embedding, averaged over frames, then over utterances.
    `members`: {speaker: indices}; `options`: batch_seconds and workers of `EncoderFeatures`."""
    indices = [i for own in members.values() for i in own]
    source, sums, means = EncoderFeatures(encoder, [encoder.n_layers], **options), {}, dict.fromkeys(indices, 0.0)

    def consume(piece, features):
        (values,) = features.values()
        sums[piece.utterance, piece.first] = values.double().sum(0).cpu().numpy()

    for _ in progress(source.extract(replace(split, speakers=None), indices, consume), f"features of {split.name}", unit="pieces"):
        pass
    for index, first in sorted(sums):
        means[index] += sums[index, first] / n_frames(int(split.n_samples[index]))
    return from_utterances([split.speakers[i] for i in indices], list(means.values()))


def adapt(checkpoint, split, members, label_dir, seed=1, device="cpu", workers=0):
    """Embeddings fitted to each speaker of `members`, {speaker: indices}: float32 (speakers, width). On a CPU, `workers` at a time."""
    task, model = load_trained(checkpoint)
    if not hasattr(task, "label_sets"):
        raise InputError(f"{checkpoint}: has no prediction heads; give a pretrained checkpoint, or use --method nearest")
    labels = [read_frame_labels(label_file(label_dir, s.name, split.name + ".{}"), s.symbols, split.n_samples) for s in task.label_sets]
    options = {"normalise": task.cfg.normalize, "max_samples": task.cfg.max_sample_size}
    dataset = FrameLabelledSpeech(split, labels, seed=seed, training=False, **options)
    model, device = model.to(device).requires_grad_(False), torch.device(device)
    workers = (workers or cores()) if device.type == "cpu" else 1
    with exact_arithmetic(device):
        fitted = in_threads(lambda own: fit(model, [dataset[i] for i in own], seed), members.values(), "adapting", "speakers", workers)
        return torch.stack(list(fitted)).float().cpu().numpy()


def fit(model, utterances, seed=1):
    """The most probable embedding for the speaker of some utterances, items of a FrameLabelledSpeech: float64 tensor (width). `model`: a
    SpeakerHubertModel with prediction heads, frozen and in evaluation mode; `seed`: of masks."""
    table, targets = model.speaker_conditioning.embedding.weight, list(zip(*(item["targets"] for item in utterances), strict=True))
    mean, voices = eigenvoices(table[1:].double())
    predicted = [pair for item in utterances for pair in masked_logits(model, item, seed)]
    share = sum(map(len, targets[0])) / max(sum(len(labels[0]) for _, labels in predicted), 1)
    weights = [share / run_length(labels) for labels in targets]
    z = mean.new_zeros(voices.size(1), requires_grad=True)
    optimiser = torch.optim.LBFGS([z], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def objective():
        optimiser.zero_grad()
        total = z @ z / 2
        total.backward()
        for logits, labels in predicted:  # one graph at a time
            e = model.speaker_conditioning.vectors_from((mean + voices @ z).to(table))[None]
            terms = zip(weights, logits(e), labels, strict=True)
            loss = sum(w * F.cross_entropy(x, t, ignore_index=NO_LABEL, reduction="sum").double() for w, x, t in terms)
            loss.backward()
            total = total.detach() + loss.detach()
        return total

    optimiser.step(objective)
    return (mean + voices @ z).detach()


def eigenvoices(rows):
    """m (width), the mean of rows (speakers, width), and L (width, speakers), of which L Lᵀ is their covariance."""
    mean = rows.mean(0)
    _, deviations, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    return mean, directions.T * deviations / max(len(rows) - 1, 1) ** 0.5


def masked_logits(model, item, seed=1):
    """For each mask of an utterance: a function that gives `model.logits` of its masked frames for an e (1, …), and their targets. Where
    the speaker is added to the encoder's output, the encoder runs once for all e."""
    device, no_speaker = model.mask_emb.device, torch.zeros_like(model.mask_emb)[None]
    at_output = type(model.speaker_conditioning).before_encoder is SpeakerConditioning.before_encoder
    with torch.no_grad():
        x, own = model.before_speaker(item["source"].to(model.mask_emb)[None], [len(item["source"])])  # (1, frames, width)
    for draw in range(MASKS):
        frames = Masking.of(model.cfg).frames(x.size(1), rng_for(seed, draw, item["id"], "fit"))
        masked, labels = torch.from_numpy(frames).to(device), [torch.from_numpy(t[frames]).to(device) for t in item["targets"]]
        if at_output:
            with torch.no_grad():
                f = model.contextualise(model.with_masks(x, masked[None]), None, no_speaker)[:, masked]  # (1, masked frames, width)
            yield lambda e, f=f: model.logits(model.with_speaker(f, e)[0]), labels
        else:
            yield lambda e, masked=masked: model.predict_masked(x, own, masked[None], e), labels


def run_length(labels):
    """Mean length of a run of equal labels in some utterances: list of (frames) arrays."""
    return sum(map(len, labels)) / sum(1 + int((t[1:] != t[:-1]).sum()) for t in labels)
