"""An embedding for a speaker outside the table of a speaker-conditioned model, from unlabelled audio.

- `nearest`: the average of the embeddings of the k most similar training speakers. A speaker's vector is the mean over utterances of
  the mean over frames of the last layer, computed with the unknown speaker's embedding. k is the one that best gives the training
  speakers' own embeddings, each left out in turn.
- `adapted`: the most probable embedding e = c + L z by the masked-prediction loss of the speaker's audio, everything else frozen. The
  prior is that of eigenvoices (Kuhn et al. 2000): c is the nearest average, L Lᵀ the covariance of the training embeddings, shrunk
  towards a multiple of the identity (Chen et al. 2010). z minimises

      Σ_t CE_t(c + L z) / r + ‖z‖² / 2

  over frames t, each counted once however often it is masked; r is the mean length of a run of equal labels, because neighbouring
  frames carry the same information. A few seconds of audio stay near c, minutes move away from it; there is no step to stop at.

Embeddings are rows of the table; the model receives `SpeakerConditioning.vectors_from` them. Where they are added to the encoder's output,
the encoder runs once for all the embeddings that are tried.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ..core.cli import progress
from ..core.device import exact_arithmetic
from ..core.errors import InputError
from ..core.files import sha256
from ..core.parallel import cores, pool
from ..corpus.audio import FRAME_RATE, n_frames
from ..corpus.frame_labels import NO_LABEL, read_frame_labels
from ..corpus.manifest import UNKNOWN_SPEAKER
from ..data.frame_labelled import FrameLabelledSpeech
from ..data.masking import Masking, rng_for
from ..data.speaker_vectors import SpeakerVectors, from_utterances
from ..models.from_pretrained import load_encoder
from ..models.speaker_conditioning import UNKNOWN, SpeakerConditioning
from ..pseudo_labels.features import EncoderFeatures
from ..tasks.speaker_hubert_pretraining import label_file
from ..tasks.trained import load_trained
from .neighbours import cosine, numbers_of_neighbours, ranking
from .new_speakers import NewSpeakers

MASKS, HELD_OUT_MASKS = 3, 8
"""Masks of each utterance, when an embedding is fitted and when it is judged."""
_BATCH_SECONDS = 10.0
"""Audio in the model at once while fitting."""
_LEAST_SPREAD = 1e-3
"""Standard deviation of the prior where the table has none: its speakers have not moved from where they started."""


# --- the average of the most similar training speakers ----------------------------------------------------------------


def utterance_means(encoder, split, indices, **options):
    """Mean over frames of the last layer's features, with the unknown speaker's embedding: float64 (utterances, width).

    Args:
        encoder: from `load_encoder`.
        split: a manifest `Split`.
        indices: of utterances, a frame or longer.
        options: batch_seconds and workers of `EncoderFeatures`.
    """
    source, sums = EncoderFeatures(encoder, [encoder.n_layers], **options), {}

    def consume(extracted):
        (values,) = extracted.features.values()
        sums[extracted.piece.utterance, extracted.piece.first] = values.double().sum(0).cpu().numpy()

    for _ in progress(source.extract(replace(split, speakers=None), indices, consume), f"features of {split.name}", unit="pieces"):
        pass
    order, means = {index: row for row, index in enumerate(indices)}, np.zeros((len(indices), encoder.width))
    for (index, _), found in sorted(sums.items()):
        means[order[index]] += found / n_frames(int(split.n_samples[index]))
    return means


def nearest(encoder, train, split, indices, k=None, **options):
    """Averages of the embeddings of the most similar training speakers.

    Args:
        encoder: from `load_encoder`, of a speaker-conditioned model.
        train: split of the training speakers.
        split, indices: utterances of the new speakers.
        k: how many to average; None chooses it.
        options: of `utterance_means`.

    Returns:
        ({speaker: embedding}, {"k", "speakers": how many there were to choose from}).
    """
    table = table_of(encoder.model, encoder.path)
    known = [i for i in whole_frames(train) if train.speakers and train.speakers[i] in table and train.speakers[i] != UNKNOWN_SPEAKER]
    if len({train.speakers[i] for i in known}) < 2:
        raise InputError(
            f"{train.tsv}: fewer than 2 of its speakers are in the table of {encoder.path}; give its training split (--train-split DIR/SPLIT)"
        )
    training = from_utterances([train.speakers[i] for i in known], utterance_means(encoder, train, known, **options))
    new = from_utterances([split.speakers[i] for i in indices], utterance_means(encoder, split, indices, **options))
    rows = np.stack([table[name] for name in training.ids]).astype(np.float64)
    k = best_k(training, rows) if k is None else k
    order = ranking(cosine(new.vectors, training.vectors))[:, :k]
    return dict(zip(new.ids, rows[order].mean(1), strict=True)), {"k": k, "speakers": len(rows)}


def best_k(training, rows):
    """The k whose averages come nearest to the training speakers' own embeddings, each speaker left out in turn.

    Args:
        training: SpeakerVectors, two or more.
        rows: (speakers, width) their embeddings.
    """
    order = ranking(cosine(training.vectors, training.vectors), leave_one_out=True)
    errors = {k: round(float(((rows[order[:, :k]].mean(1) - rows) ** 2).sum()), 12) for k in numbers_of_neighbours(len(rows) - 1)}
    return min(errors, key=errors.get)


def table_of(model, path):
    """The speaker table of an encoder: {id: row}, float32 arrays; the unknown speaker's under `UNKNOWN_SPEAKER`."""
    if model.speaker_conditioning is None:
        raise InputError(
            f"{path}: the encoder is not conditioned on speakers (model.speaker_position=none); give a speaker-conditioned checkpoint"
        )
    weights = model.speaker_conditioning.embedding.weight.detach().cpu().numpy()
    return {UNKNOWN_SPEAKER: weights[UNKNOWN], **dict(zip(model.speakers, weights[1:], strict=True))}


def whole_frames(split):
    """Indices of the utterances of a frame or more."""
    return np.flatnonzero(n_frames(split.n_samples) > 0).tolist()


# --- an embedding fitted to the speaker's own audio -------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedUtterance:
    """An utterance before masks and speaker.

    Attributes:
        key: an integer that seeds its masks: its place in the split.
        features: (frames, width) tensor of `SpeakerHubertModel.before_speaker`.
        targets: one int64 tensor (frames) per label set.
    """

    key: int
    features: torch.Tensor
    targets: list


class SpeakerFitter:
    """Fits embeddings with a frozen pretrained model.

    Args:
        model: SpeakerHubertModel with prediction heads and a speaker table; is frozen and put in evaluation mode.
        iterations: most iterations of L-BFGS.
        seed: of masks.
        device: torch device.
    """

    def __init__(self, model, iterations=20, seed=1, device="cpu"):
        self.model = model.to(device).eval().requires_grad_(False)
        self.iterations, self.seed, self.device = iterations, seed, torch.device(device)
        self.masking = Masking.of(model.cfg)
        rows = model.speaker_conditioning.embedding.weight[1:].double().cpu().numpy()
        self.centre = rows.mean(0)
        from sklearn.covariance import oas  # a slow import

        values, vectors = np.linalg.eigh(oas(rows)[0])
        moved = values.max() > 1e-6 * _LEAST_SPREAD**2
        deviations = np.sqrt(np.maximum(values, 0)) if moved else np.full(len(values), _LEAST_SPREAD)
        self.prior = torch.from_numpy(vectors * deviations)  # L: (width, width)

    def utterances(self, dataset, indices):
        """Utterances of a FrameLabelledSpeech: list of EncodedUtterance."""
        found = []
        for index in map(int, indices):
            item = dataset[index]
            with torch.no_grad():
                x, _ = self.model.before_speaker(item["source"].to(self.device)[None], [len(item["source"])])
            found.append(EncodedUtterance(index, x[0], [torch.from_numpy(t).to(self.device) for t in item["targets"]]))
        return found

    def losses(self, utterances, masks, purpose="fit"):
        """Masked-prediction losses of utterances, in batches: a list of (loss, number of masked frames).

        A loss maps an embedding (width) to a tensor (label sets), the cross-entropy in nats summed over masked frames.

        Args:
            utterances: list of EncodedUtterance.
            masks: how many of each; they depend on the seed, on `purpose` and on the utterance.
            purpose: what the masks are for.
        """
        found = []
        for batch in _batches(utterances):
            x = pad_sequence([u.features for u in batch], batch_first=True)  # (batch, frames, width)
            frames = torch.tensor([len(u.features) for u in batch], device=self.device)
            own = torch.arange(x.size(1), device=self.device) < frames[:, None]
            found += [self._loss(batch, x, own, draw, purpose) for draw in range(masks)]
        return found

    def _loss(self, batch, x, own, draw, purpose):
        drawn = [self.masking.frames(len(u.features), rng_for(self.seed, draw, u.key, purpose)) for u in batch]
        masked = pad_sequence([torch.from_numpy(m) for m in drawn], batch_first=True).to(self.device)
        targets = [pad_sequence(t, batch_first=True)[masked] for t in zip(*(u.targets for u in batch), strict=True)]
        model, speaker = self.model, self.model.speaker_conditioning
        shared = type(speaker).before_encoder is SpeakerConditioning.before_encoder  # E(x) is the same for every speaker
        if shared:
            with torch.no_grad():
                f, _ = model.encoder(model.with_masks(x, masked), padding_mask=None if own.all() else ~own)
            f = f[own & masked].unsqueeze(0)  # (1, masked frames, width)

        def loss(embedding):
            e = speaker.vectors_from(embedding).unsqueeze(0)
            logits = model.logits(model.with_speaker(f, e)[0]) if shared else model.predict_masked(x, own, masked, e.expand(len(x), -1))
            terms = [F.cross_entropy(z, t, ignore_index=NO_LABEL, reduction="sum") for z, t in zip(logits, targets, strict=True)]
            return torch.stack(terms)

        return loss, int(masked.sum())

    def bits(self, utterances, embeddings):
        """{name: mean loss in bits per masked frame, summed over label sets} of {name: embedding}; NaN if nothing is masked."""
        losses, found = self.losses(utterances, HELD_OUT_MASKS, "held out"), {}
        count = sum(frames for _, frames in losses) or math.nan
        for name, embedding in embeddings.items():
            embedding = torch.as_tensor(np.asarray(embedding), dtype=self.model.mask_emb.dtype, device=self.device)
            with torch.no_grad():
                found[name] = sum(float(loss(embedding).sum()) for loss, _ in losses) / count / math.log(2)
        return found

    def fit(self, utterances, centre=None):
        """The most probable embedding for the speaker of some utterances: float32 array (width).

        Args:
            utterances: list of EncodedUtterance.
            centre: c (width); by default the mean of the table.
        """
        centre = torch.from_numpy(np.array(self.centre if centre is None else centre, dtype=np.float64))
        losses = self.losses(utterances, MASKS)
        share = sum(len(u.features) for u in utterances) / max(sum(frames for _, frames in losses), 1)
        weights = torch.tensor([share / run_length(t) for t in zip(*(u.targets for u in utterances), strict=True)])
        z = torch.zeros(self.prior.size(1), dtype=torch.float64)
        most = self.iterations
        optimiser = torch.optim.LBFGS([z], max_iter=most, max_eval=2 * most, history_size=most, line_search_fn="strong_wolfe")

        def objective():
            embedding = (centre + self.prior @ z).float().to(self.device).requires_grad_()
            evidence, gradient = 0.0, torch.zeros_like(centre)
            for loss, _ in losses:
                term = loss(embedding)
                term = term @ weights.to(term)
                gradient += torch.autograd.grad(term, embedding)[0].double().cpu()
                evidence += float(term.detach())
            z.grad = self.prior.T @ gradient + z
            return evidence + z @ z / 2

        optimiser.step(objective)
        return (centre + self.prior @ z).float().numpy()


def _batches(utterances):
    """Utterances in their order, in batches of at most `_BATCH_SECONDS`, or of one."""
    batch = []
    for utterance in utterances:
        if batch and sum(len(u.features) for u in [*batch, utterance]) > _BATCH_SECONDS * FRAME_RATE:
            yield batch
            batch = []
        batch.append(utterance)
    yield batch


def run_length(labels):
    """Mean length of a run of equal labels in some utterances: list of (frames) tensors."""
    return sum(map(len, labels)) / sum(1 + int((t[1:] != t[:-1]).sum()) for t in labels)


# --- speakers of a split ----------------------------------------------------------------------------------------------


def choose_utterances(split, known, holdout=0.0, seed=1):
    """{speaker: (indices to use, indices held out)} of the speakers of a split outside a table.

    Args:
        split: a manifest `Split`.
        known: ids in the table.
        holdout: share of the utterances that is held out, at least one if it is positive, and never the last one.
        seed: of the draw.
    """
    if split.speakers is None:
        raise InputError(f"{split.directory / split.name}.spk: no such file; embeddings are for speakers, make the manifest again")
    members = {}
    for i in whole_frames(split):
        if split.speakers[i] not in {*known, UNKNOWN_SPEAKER}:
            members.setdefault(split.speakers[i], []).append(i)
    if not members:
        raise InputError(f"{split.tsv}: every speaker has an embedding in the checkpoint already; give a split of other speakers")
    chosen = {}
    for name, indices in sorted(members.items()):
        order = rng_for(seed, 0, indices[0], "choose").permutation(indices).tolist()
        out = min(max(math.ceil(holdout * len(order)), 1), len(order) - 1) if holdout > 0 else 0
        chosen[name] = sorted(order[out:]), sorted(order[:out])
    return chosen


def adapt(checkpoint, split, chosen, label_dir, labels=None, centres=None, iterations=20, seed=1, device="cpu", workers=None):
    """Fit an embedding for each speaker.

    Args:
        checkpoint: path of a pretrained, speaker-conditioned checkpoint of ours.
        split: a manifest `Split`; nothing is read of it but audio and speakers.
        chosen: of `choose_utterances`.
        label_dir, labels: where the split's frame labels are, as `task.label_dir` and `task.labels` (default: the sets' own names).
        centres: {speaker: embedding}, of the prior; None: the mean of the table.
        iterations, seed, device: as for `SpeakerFitter`.
        workers: on a CPU, speakers that are fitted at the same time; by default one for each core.

    Returns:
        ({speaker: float32 array (width)}, {speaker: {"utterances", "bits": {"<unk>", "nearest", "adapted"}}} of those held out).
    """
    task, model = load_trained(checkpoint)
    if not hasattr(task, "label_sets"):
        raise InputError(
            f"{checkpoint}: has no prediction heads; give a pretrained checkpoint (task speaker_hubert_pretraining), or use nearest"
        )
    unknown = table_of(model, checkpoint)[UNKNOWN_SPEAKER]
    fitter, dataset = SpeakerFitter(model, iterations, seed, device), labelled(task, split, label_dir, labels, seed)

    def process(name):
        used, held_out = chosen[name]
        others = {"<unk>": unknown, **({} if centres is None else {"nearest": centres[name]})}
        embedding = fitter.fit(fitter.utterances(dataset, used), others.get("nearest"))
        if not held_out:
            return name, embedding, None
        bits = fitter.bits(fitter.utterances(dataset, held_out), {**others, "adapted": embedding})
        return name, embedding, {"utterances": len(held_out), "bits": bits}

    with exact_arithmetic(fitter.device):
        in_turn = pool(workers or cores()).map(process, chosen) if fitter.device.type == "cpu" else map(process, chosen)
        found = list(progress(in_turn, "adapting", total=len(chosen), unit="speakers"))
    return {name: embedding for name, embedding, _ in found}, {name: held_out for name, _, held_out in found if held_out}


def labelled(task, split, label_dir, labels=None, seed=1):
    """A FrameLabelledSpeech of a split with frame labels for the label sets of a pretraining task (see `adapt`)."""
    sets = task.label_sets
    names = list(labels or [s.name for s in sets])
    if len(names) != len(sets):
        raise InputError(
            f"--labels {' '.join(names)}: {len(names)} label sets, and the model predicts {len(sets)}; give one for each, in order"
        )
    files = [label_file(label_dir, name, split.name + ".{}") for name in names]
    read = [read_frame_labels(path, s.symbols, split.n_samples) for path, s in zip(files, sets, strict=True)]
    options = {"normalise": task.cfg.normalize, "max_samples": task.cfg.max_sample_size}
    return FrameLabelledSpeech(split, read, seed=seed, training=False, **options)


def make(checkpoint, split, method, train=None, holdout=0.0, k=None, seed=1, device="cpu", batch_seconds=100.0, workers=None, **fitting):
    """Embeddings of the speakers of a split that a checkpoint's table does not hold: (NewSpeakers, report for JSON).

    Args:
        checkpoint: path; for `adapted`, of a pretrained model, for `nearest` of any speaker-conditioned one.
        split: manifest `Split` of the speakers.
        method: one of METHODS.
        train: Split of the training speakers: needed for `nearest`; for `adapted` it gives the centre of the prior.
        holdout, k, seed, device, batch_seconds, workers: as above.
        fitting: label_dir, labels and iterations of `adapt`.
    """
    encoder = load_encoder(checkpoint, device)
    chosen = choose_utterances(split, table_of(encoder.model, checkpoint), holdout, seed)
    settings, embeddings, held_out = {"method": method, "holdout": holdout, "seed": seed}, None, {}
    if train is not None:
        indices = [i for used, _ in chosen.values() for i in used]
        options = {"batch_seconds": batch_seconds, "workers": workers}
        embeddings, settings["nearest"] = nearest(encoder, train, split, indices, k, **options)
    if method == "adapted":
        embeddings, held_out = adapt(checkpoint, split, chosen, centres=embeddings, seed=seed, device=device, workers=workers, **fitting)
    vectors = np.stack([embeddings[name] for name in chosen]).astype(np.float64)
    speakers = SpeakerVectors(list(chosen), vectors, np.array([len(used) for used, _ in chosen.values()]))
    rows = {}
    for name, (used, _) in chosen.items():
        rows[name] = {"utterances": len(used), "seconds": round(float(n_frames(split.n_samples[used]).sum()) / FRAME_RATE, 2)}
        rows[name] |= {"held_out": held_out[name]} if name in held_out else {}
    new = NewSpeakers(speakers, method, sha256(checkpoint), settings)
    return new, {"checkpoint": str(checkpoint), "sha256": new.checkpoint, "split": str(split.tsv), "settings": settings, "speakers": rows}
