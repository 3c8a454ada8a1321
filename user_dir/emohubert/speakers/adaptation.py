"""An embedding for a speaker outside the table of a speaker-conditioned model, without a label of theirs.

- `nearest`: the average of the embeddings of the training speakers who sound most alike, weighted by similarity. A speaker's
  vector is the mean over utterances of mean-pooled features of a layer, heard as the unknown speaker. Layer and number of
  neighbours are those that best give the training speakers' own embeddings, each left out in turn.
- `adapted`: fitted to the masked-prediction loss of the speaker's own audio; nothing else in the model changes, so the
  convolutional features are computed once. A few seconds of speech say little about hundreds of dimensions. So the
  embeddings of the training speakers are the prior (as of eigenvoices: Kuhn et al. 2000), and what is found is the most
  probable embedding e = c + L z: c is the nearest average, L Lᵀ the training embeddings' covariance Σ, and z minimises

      Σ_t CE_t(c + L z) / r + ‖z‖² / 2

  over frames t, each counted once however often it is masked; r is the mean length of a run of equal labels, because
  neighbouring frames say the same thing. Σ is shrunk towards a multiple of the identity (Chen et al. 2010), or nothing
  outside the span of a few training speakers could be found. Little audio stays near c, much audio goes its own way; there
  is nothing to choose and no step to stop at.

Vectors are rows of the table; the encoder hears them times √width (`SpeakerConditioning`).
"""

import json
import logging
import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ..core.cli import progress
from ..core.device import exact_arithmetic
from ..core.errors import InputError
from ..core.files import atomic, read_json, sha256
from ..core.parallel import cores, pool
from ..corpus.audio import FRAME_RATE, n_frames
from ..corpus.frame_labels import NO_LABEL, read_frame_labels
from ..corpus.manifest import UNKNOWN_SPEAKER
from ..data.frame_labelled import FrameLabelledSpeech
from ..data.masking import Masking, rng_for
from ..data.speaker_vectors import SpeakerVectors, cosine, from_utterances, nearest_speaker_weights, neighbour_weights, read_arrays
from ..data.speaker_vectors import read as read_vectors
from ..models.load import load_encoder
from ..models.speaker import UNKNOWN
from ..pseudo_labels.features import EncoderFeatures
from ..tasks.speaker_hubert_pretraining import label_file
from ..tasks.trained import load_trained

logger = logging.getLogger("emohubert")

METHODS = ("adapted", "nearest")
_AMOUNTS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50)
"""Numbers of neighbours to choose from."""
_LEAST_SPREAD = 1e-3
"""Standard deviation of the prior where the table has none: its speakers have not moved from where they started."""


@dataclass(frozen=True)
class Fitting:
    """How an embedding is fitted: by L-BFGS, with masks that stay as they are.

    Attributes:
        iterations: most iterations.
        masks: drawn for each utterance.
        batch_seconds: audio in the model at once; nothing depends on it but rounding.
    """

    iterations: int = 20
    masks: int = 3
    batch_seconds: float = 10.0


# --- the average of the nearest training speakers -----------------------------------------------------------------------


def utterance_means(encoder, split, indices, layers, batch_seconds=100.0, workers=None):
    """Mean over frames of the features of each utterance, heard as the unknown speaker.

    Args:
        encoder: from `checkpoints.load_encoder`.
        split: a manifest `Split`.
        indices: of utterances, a frame or longer.
        layers: 1-based.
        batch_seconds, workers: as for `EncoderFeatures`.

    Returns:
        {layer: float64 (utterances, width)}, in the order of `indices`.
    """
    source = EncoderFeatures(encoder, layers, batch_seconds, workers)
    sums = {}

    def consume(extracted):
        piece = extracted.piece
        found = {name: values.double().sum(0).cpu().numpy() for name, values in extracted.features.items()}
        sums[piece.utterance, piece.first] = found

    for _ in progress(source.extract(replace(split, speakers=None), indices, consume), f"hearing {split.name}", unit="pieces"):
        pass
    order = {index: row for row, index in enumerate(indices)}
    means = {layer: np.zeros((len(order), encoder.width)) for layer in source.layers.values()}
    for (index, _), found in sorted(sums.items()):
        for name, layer in source.layers.items():
            means[layer][order[index]] += found[name] / n_frames(int(split.n_samples[index]))
    return means


@dataclass(frozen=True)
class NearestAverage:
    """Embeddings of new speakers from those of similar training speakers. `choose` makes one.

    Attributes:
        training: SpeakerVectors by which similarity is judged.
        table: (speakers, width) embeddings, in the order of `training`.
        layer: of the features behind `training`.
        k: how many speakers are averaged.
        error: mean squared distance of such an average to a training speaker's own embedding, each left out in turn, as a share
            of that of the average of all the others: under 1, who sounds alike has a like embedding.
    """

    training: SpeakerVectors
    table: np.ndarray
    layer: int
    k: int
    error: float

    @classmethod
    def choose(cls, training, table, k=None):
        """The layer and k whose averages come nearest to the training speakers' own embeddings.

        Args:
            training: {layer: SpeakerVectors}, all of the same speakers.
            table: {speaker id: embedding}.
            k: or the given one.

        Raises:
            InputError: under two training speakers.
        """
        ids = next(iter(training.values())).ids
        if len(ids) < 2:
            raise InputError(f"{len(ids)} training speaker; the average of the nearest ones needs 2 or more, see --train-split")
        rows = np.stack([np.asarray(table[name], dtype=np.float64) for name in ids])
        usual = _left_out_error(np.where(np.eye(len(ids), dtype=bool), -np.inf, 0.0), rows, len(ids), "hard")
        amounts = [k] if k else sorted({min(n, len(ids) - 1) for n in (*_AMOUNTS, len(ids))})
        best = None
        for layer, vectors in training.items():
            similarities = cosine(vectors.vectors, vectors.vectors)
            np.fill_diagonal(similarities, -np.inf)
            for amount in amounts:
                error = _left_out_error(similarities, rows, amount, "similarity") / usual if usual else 1.0
                if best is None or error < best.error - 1e-12:
                    best = cls(vectors, rows, layer, amount, error)
        return best

    def embedding(self, vector):
        """The embedding (width) of a speaker with this vector."""
        return nearest_speaker_weights(vector, self.training, self.k) @ self.table


def _left_out_error(similarities, rows, k, weighting):
    return float(((neighbour_weights(similarities, k, weighting) @ rows - rows) ** 2).sum(1).mean())


def nearest_average(encoder, split, layers=None, k=None, **options):
    """A NearestAverage over the speakers of a split that the encoder has embeddings for.

    Args:
        encoder: from `checkpoints.load_encoder`, of a speaker-conditioned model.
        split: the training split.
        layers: to choose from; by default all.
        k: or the number of neighbours.
        options: of `utterance_means`.

    Raises:
        InputError: the encoder has no speaker table, a layer does not exist, or fewer than two of the split's speakers are in the table.
    """
    rows = table_of(encoder.model, encoder.path)
    if split.speakers is None:
        raise InputError(f"{split.directory / split.name}.spk: no such file; the nearest training speakers are found in it")
    known = [i for i in audible(split) if split.speakers[i] in rows]
    if len({split.speakers[i] for i in known}) < 2:
        raise InputError(
            f"{split.tsv}: fewer than 2 of its speakers are in the table of {encoder.path}; give its training split (--train-split DIR/SPLIT)"
        )
    layers = list(layers or range(1, encoder.n_layers + 1))
    encoder.check_layers(layers)
    means = utterance_means(encoder, split, known, layers, **options)
    speakers = [split.speakers[i] for i in known]
    return NearestAverage.choose({layer: from_utterances(speakers, values) for layer, values in means.items()}, rows, k)


def table_of(model, path):
    """The speaker table of an encoder: {id: row}, float32 arrays; the unknown speaker's under `UNKNOWN_SPEAKER`.

    Raises:
        InputError: the encoder hears no speakers.
    """
    if model.speaker_conditioning is None:
        raise InputError(f"{path}: the encoder hears no speakers (model.speaker_position=none); give a speaker-conditioned checkpoint")
    weights = model.speaker_conditioning.embedding.weight.detach().cpu().numpy()
    return {UNKNOWN_SPEAKER: weights[UNKNOWN], **dict(zip(model.speakers, weights[1:], strict=True))}


def audible(split):
    """Indices of the utterances of a frame or more."""
    return np.flatnonzero(n_frames(split.n_samples) > 0).tolist()


# --- an embedding fitted to the speaker's own audio ---------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """An utterance as far as no speaker is heard in it.

    Attributes:
        key: an integer that seeds its masks: its place in the split.
        features: (frames, width) tensor of `SpeakerHubertModel.before_speaker`.
        targets: one int64 tensor (frames) per label set.
    """

    key: int
    features: torch.Tensor
    targets: list

    def __len__(self):
        return len(self.features)

    @property
    def seconds(self):
        """Its length."""
        return len(self) / FRAME_RATE


class SpeakerFitter:
    """Fits embeddings with a frozen pretrained model.

    Args:
        model: SpeakerHubertModel with prediction heads and a speaker table; is frozen and put in evaluation mode.
        fitting: a Fitting.
        seed: of masks.
        device: torch device.
    """

    def __init__(self, model, fitting=None, seed=1, device="cpu"):
        self.model = model.to(device).eval().requires_grad_(False)
        self.fitting, self.seed, self.device = fitting or Fitting(), seed, torch.device(device)
        self.masking = Masking.of(model.cfg)
        rows = model.speaker_conditioning.embedding.weight[1:].double().cpu().numpy()
        self.centre = rows.mean(0)
        from sklearn.covariance import oas  # a slow import

        values, vectors = np.linalg.eigh(oas(rows)[0])
        moved = values.max() > 1e-6 * _LEAST_SPREAD**2
        deviations = np.sqrt(np.maximum(values, 0)) if moved else np.full(len(values), _LEAST_SPREAD)
        self.prior = torch.from_numpy(vectors * deviations)  # L: (width, width)

    def hear(self, dataset, indices):
        """The utterances of a FrameLabelledSpeech: list of Heard."""
        heard = []
        for index in indices:
            item = dataset[int(index)]
            with torch.no_grad():
                x, _ = self.model.before_speaker(item["source"].to(self.device)[None], [len(item["source"])])
            heard.append(Heard(int(index), x[0], [torch.from_numpy(t).to(self.device) for t in item["targets"]]))
        return heard

    def loss(self, utterances, vector, draw, purpose="fit"):
        """Masked-prediction loss of some utterances: a tensor (label sets), summed over masked frames, in nats; and their number.

        Args:
            utterances: list of Heard.
            vector: (width), a row of the table.
            draw: number of the masks; they depend on the seed, on this, on `purpose` and on the utterance.
            purpose: what the masks are for.
        """
        x = pad_sequence([u.features for u in utterances], batch_first=True)
        frames = torch.tensor([len(u) for u in utterances], device=self.device)
        valid = torch.arange(x.size(1), device=self.device) < frames[:, None]
        drawn = [self.masking.frames(len(u), rng_for(self.seed, draw, u.key, purpose)) for u in utterances]
        masked = pad_sequence([torch.from_numpy(m) for m in drawn], batch_first=True).to(self.device)
        heard = (vector * self.model.speaker_conditioning.scale).expand(len(x), -1)
        logits = self.model.predict_masked(x, valid, masked, heard)
        targets = [pad_sequence(t, batch_first=True)[masked] for t in zip(*(u.targets for u in utterances), strict=True)]
        terms = [F.cross_entropy(z, t, ignore_index=NO_LABEL, reduction="sum") for z, t in zip(logits, targets, strict=True)]
        return torch.stack(terms), int(masked.sum())

    def bits(self, utterances, vector, masks, purpose):
        """Mean loss in bits per masked frame, summed over label sets, over several masks of each utterance; NaN if nothing is masked.

        Args:
            utterances, purpose: as for `loss`.
            vector: (width) array, a row of the table.
            masks: how many of each utterance.
        """
        vector, total, count = self._tensor(vector), 0.0, 0
        with torch.no_grad():
            for draw in range(masks):
                for batch in self._batches(utterances):
                    loss, frames = self.loss(batch, vector, draw, purpose)
                    total, count = total + float(loss.sum()), count + frames
        return total / count / math.log(2) if count else float("nan")

    def fit(self, utterances, centre=None):
        """The most probable embedding for the speaker of some utterances.

        Args:
            utterances: list of Heard.
            centre: (width) array, of the prior; by default the mean of the table.

        Returns:
            (float32 array (width), number of times that the loss was computed).
        """
        centre = torch.from_numpy(np.array(self.centre if centre is None else centre, dtype=np.float64))
        z = torch.zeros(self.prior.size(1), dtype=torch.float64)
        most, evaluations = self.fitting.iterations, 0
        optimiser = torch.optim.LBFGS([z], max_iter=most, max_eval=2 * most, history_size=most, line_search_fn="strong_wolfe")

        def objective():
            nonlocal evaluations
            evaluations += 1
            evidence, gradient = self._evidence(utterances, (centre + self.prior @ z).float())
            z.grad = self.prior.T @ gradient + z
            return evidence + z @ z / 2

        optimiser.step(objective)
        return (centre + self.prior @ z).float().numpy(), evaluations

    def _evidence(self, utterances, vector):
        """Σ_t CE_t / r and its gradient, float64 on the CPU; every frame counts once, however often it is masked."""
        vector = vector.to(self.device).requires_grad_()
        total, gradient, count = 0.0, torch.zeros(len(vector), dtype=torch.float64), 0
        weights = torch.tensor([1 / run_length([u.targets[k] for u in utterances]) for k in range(len(utterances[0].targets))])
        for draw in range(self.fitting.masks):
            for batch in self._batches(utterances):
                losses, frames = self.loss(batch, vector, draw)
                loss = losses @ weights.to(losses)
                gradient += torch.autograd.grad(loss, vector)[0].double().cpu()
                total, count = total + float(loss.detach()), count + frames
        share = sum(map(len, utterances)) / max(count, 1)
        return total * share, gradient * share

    def _tensor(self, vector):
        return torch.as_tensor(np.asarray(vector), dtype=self.model.mask_emb.dtype, device=self.device)

    def _batches(self, utterances):
        """Utterances in their order, in batches of at most `batch_seconds`, or of one."""
        batch = []
        for utterance in utterances:
            if batch and sum(u.seconds for u in batch) + utterance.seconds > self.fitting.batch_seconds:
                yield batch
                batch = []
            batch.append(utterance)
        yield batch


def run_length(labels):
    """Mean length of a run of equal labels in some utterances: list of (frames) tensors."""
    runs = sum(1 + int((t[1:] != t[:-1]).sum()) for t in labels)
    return sum(map(len, labels)) / runs


# --- speakers of a split ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """Which utterances of a speaker are used: indices in the split, `fitted` to and `held_out`."""

    fitted: list
    held_out: list


def choose_utterances(split, known, most=None, holdout=0.0, seed=1):
    """For each speaker of a split outside a table, the utterances to use.

    Args:
        split: a manifest `Split`.
        known: ids in the table.
        most: of the utterances that are not held out, so many at random; None: all.
        holdout: share of the utterances that is kept out, at least one if it is positive, and never the last one.
        seed: of the draw; a smaller `most` takes from the same order, and holds out the same.

    Returns:
        {speaker id: Chosen}.

    Raises:
        InputError: no speaker sidecar, or no speaker outside the table.
    """
    if split.speakers is None:
        raise InputError(f"{split.directory / split.name}.spk: no such file; embeddings are for speakers, make the manifest again")
    members = {}
    for i in audible(split):
        if split.speakers[i] not in known and split.speakers[i] != UNKNOWN_SPEAKER:
            members.setdefault(split.speakers[i], []).append(i)
    if not members:
        raise InputError(f"{split.tsv}: every speaker has an embedding in the checkpoint already; give a split of other speakers")
    chosen = {}
    for name, indices in sorted(members.items()):
        order = rng_for(seed, 0, indices[0], "choose").permutation(indices).tolist()
        out = min(max(math.ceil(holdout * len(order)), 1), len(order) - 1) if holdout > 0 else 0
        if holdout > 0 and not out:
            logger.warning("%s: speaker “%s” has one utterance, and none is held out", split.tsv, name)
        fitted = order[out:]
        chosen[name] = Chosen(sorted(fitted[:most]), sorted(order[:out]))
    return chosen


def nearest_embeddings(average, encoder, split, chosen, **options):
    """{speaker id: embedding} of a NearestAverage for speakers as `choose_utterances` gives them."""
    indices = [i for c in chosen.values() for i in c.fitted]
    means = utterance_means(encoder, split, indices, [average.layer], **options)[average.layer]
    vectors = from_utterances([split.speakers[i] for i in indices], means)
    return {name: average.embedding(vector) for name, vector in zip(vectors.ids, vectors.vectors, strict=True)}


def adapt(
    checkpoint, split, chosen, label_dir, labels=None, nearest=None, fitting=None, seed=1, device="cpu", held_out_masks=8, workers=None
):
    """Fit an embedding for each speaker.

    Args:
        checkpoint: path of a pretrained, speaker-conditioned checkpoint of ours.
        split: a manifest `Split`; nothing is read of it but audio and speakers.
        chosen: of `choose_utterances`.
        label_dir, labels: where the split's frame labels are, as `task.label_dir` and `task.labels`; by default the label sets'
            own names.
        nearest: {speaker id: embedding}, the centres of the prior; None: the mean of the table.
        fitting, seed, device: as for `SpeakerFitter`.
        held_out_masks: masks of each utterance that is held out.
        workers: on a CPU, speakers that are fitted at the same time; by default one for each core.

    Returns:
        {speaker id: (float32 array (width), report)}; the report is a dict with `utterances`, `seconds`, `evaluations` (of the
        loss) and, with utterances held out, `held_out`: {"utterances", "bits": {"<unk>": …, "nearest": …, "adapted": …}}.

    Raises:
        InputError: another kind of checkpoint, or labels that do not fit.
    """
    task, model = load_trained(checkpoint)
    if not hasattr(task, "label_sets"):
        raise InputError(
            f"{checkpoint}: has no prediction heads; give a pretrained checkpoint (task speaker_hubert_pretraining), or use nearest"
        )
    unknown = table_of(model, checkpoint)[UNKNOWN_SPEAKER]
    fitter = SpeakerFitter(model, fitting, seed, device)
    dataset = labelled(task, split, label_dir, labels, seed)

    def process(name):
        audio, others = chosen[name], {"<unk>": unknown, **({} if nearest is None else {"nearest": nearest[name]})}
        heard = fitter.hear(dataset, audio.fitted)
        vector, evaluations = fitter.fit(heard, others.get("nearest"))
        report = {"utterances": len(heard), "seconds": round(sum(u.seconds for u in heard), 2), "evaluations": evaluations}
        if audio.held_out:
            out = fitter.hear(dataset, audio.held_out)
            bits = {k: fitter.bits(out, v, held_out_masks, "held out") for k, v in {**others, "adapted": vector}.items()}
            report["held_out"] = {"utterances": len(out), "seconds": round(sum(u.seconds for u in out), 2), "bits": bits}
        return name, (vector, report)

    names = sorted(chosen)
    with exact_arithmetic(fitter.device):
        in_turn = pool(workers or cores()).map(process, names) if fitter.device.type == "cpu" else map(process, names)
        return dict(progress(in_turn, "adapting", total=len(names), unit="speakers"))


def labelled(task, split, label_dir, labels=None, seed=1):
    """A split with its frame labels, as a pretraining task hears it.

    Args:
        task: of `checkpoints.load_trained`, pretraining.
        split, label_dir, labels, seed: as for `adapt`.

    Raises:
        InputError: missing labels, or another number of label sets than the model predicts.
    """
    sets = task.label_sets
    names = list(labels or [s.name for s in sets])
    if len(names) != len(sets):
        raise InputError(
            f"--labels {' '.join(names)}: {len(names)} label sets, and the model predicts {len(sets)}; give one for each, in order"
        )
    read = [
        read_frame_labels(label_file(label_dir, name, split.name + ".{}"), s.symbols, split.n_samples)
        for name, s in zip(names, sets, strict=True)
    ]
    options = {"normalise": task.cfg.normalize, "max_samples": task.cfg.max_sample_size}
    return FrameLabelledSpeech(split, read, seed=seed, training=False, **options)


def summarise(reports):
    """What the utterances held out say, over speakers: {"speakers", "bits": means, "below": {"<unk>": how many …, "nearest": …}}."""
    rows = [r["held_out"]["bits"] for r in reports.values() if "held_out" in r]
    if not rows:
        return {"speakers": 0}
    others = [name for name in rows[0] if name != "adapted"]
    return {
        "speakers": len(rows),
        "bits": {name: float(np.mean([r[name] for r in rows])) for name in rows[0]},
        "below": {name: sum(r["adapted"] < r[name] for r in rows) for name in others},
    }


# --- files, and the model that hears the new speakers -------------------------------------------------------------------


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
        s = self.speakers
        arrays = {"ids": np.array(s.ids, dtype=np.str_), "vectors": s.vectors, "counts": s.counts, "within": s.within}
        about = {"method": self.method, "checkpoint": self.checkpoint, "settings": json.dumps(self.settings, sort_keys=True)}
        with atomic(path, "wb") as f:
            np.savez(f, **arrays, **{name: np.array(text, dtype=np.str_) for name, text in about.items()})

    @classmethod
    def read(cls, path):
        """Read what `write` wrote; nothing in the file can run.

        Raises:
            InputError: missing, or not such a file.
        """
        speakers = read_vectors(path)
        about = {name: str(a) for name, a in read_arrays(path, ("method", "checkpoint", "settings"), "speaker embeddings").items()}
        if about["method"] not in METHODS:
            raise InputError(
                f"{path}: made by the method “{about['method']}”, known are {', '.join(METHODS)}; make it with tools/adapt_speaker.py"
            )
        try:
            settings = json.loads(about["settings"])
        except ValueError as error:
            raise InputError(f"{path}: its settings are not JSON ({error}); make it again with tools/adapt_speaker.py") from error
        return cls(speakers, about["method"], about["checkpoint"], settings)

    def add_to(self, task, model, where):
        """Give a fine-tuned model a row of its table for each of these speakers; those it knows already keep theirs.

        Args:
            task, model: from `checkpoints.load_trained`, fine-tuning; changed in place, in memory.
            where: the file of the embeddings, for messages.

        Returns:
            ids of the speakers that were added.

        Raises:
            InputError: the model hears no speakers, or its embeddings have another width.
        """
        encoder = getattr(model, "backbone", model)
        conditioning = encoder.speaker_conditioning
        if conditioning is None:
            raise InputError(
                f"{where}: the checkpoint's encoder hears no speakers (model.speaker_position=none); leave --speaker-vectors out"
            )
        width, found = conditioning.embedding.embedding_dim, self.speakers.vectors.shape[1]
        if found != width:
            raise InputError(
                f"{where}: embeddings of width {found}, and the checkpoint's have {width}; make them with the model it started from"
            )
        known = set(task.speakers)
        added = [name for name in self.speakers.ids if name not in known]
        if len(added) < len(self.speakers):
            names = ", ".join(sorted(known & set(self.speakers.ids))[:5])
            logger.warning(
                "%s: %d of %d speakers have an embedding in the checkpoint and keep it: %s",
                where,
                len(self.speakers) - len(added),
                len(self.speakers),
                names,
            )
        if not added:
            return []
        rows = torch.from_numpy(self.speakers.take(added).vectors)
        conditioning.embedding = _longer(conditioning.embedding, rows)
        at_head = getattr(getattr(model, "speaker_at_head", None), "embedding", None)
        if at_head is not None:  # the head was not adapted: it goes on hearing the unknown speaker
            model.speaker_at_head.embedding = _longer(at_head, at_head.weight[UNKNOWN].expand(len(added), -1))
        speakers = [*task.speakers, *added]
        encoder.speakers = list(speakers)
        task.state.merge_state_dict({"speakers": speakers})
        return added


def _longer(embedding, rows):
    """An Embedding with more rows."""
    weight = embedding.weight.detach()
    return nn.Embedding.from_pretrained(torch.cat([weight, rows.detach().to(weight)]))


def make(
    checkpoint,
    split,
    method,
    train=None,
    label_dir=None,
    labels=None,
    layers=None,
    k=None,
    most=None,
    holdout=0.0,
    fitting=None,
    seed=1,
    device="cpu",
    batch_seconds=100.0,
    workers=None,
):
    """Embeddings of the speakers of a split that a checkpoint's table does not hold, and a report of how they were made.

    Args:
        checkpoint: path; for `adapted`, of a pretrained model, for `nearest` of any speaker-conditioned one.
        split: manifest `Split` of the speakers.
        method: one of METHODS.
        train: Split of the training speakers: needed for `nearest`; for `adapted` a better start, and compared with.
        label_dir, labels, fitting, seed, device: as for `adapt`.
        layers, k: as for `nearest_average`.
        most, holdout: as for `choose_utterances`.
        batch_seconds, workers: as for `utterance_means` and `adapt`.

    Returns:
        (NewSpeakers, report: a dict for JSON).
    """
    if method not in METHODS:
        raise InputError(f"--method {method}: unknown; use one of {', '.join(METHODS)}")
    if not 0 <= holdout < 1:
        raise InputError(f"--holdout {holdout}: a share of the utterances; give 0 or more, and less than 1")
    if method == "nearest" and train is None:
        raise InputError("the nearest training speakers are found in the training split; give it with --train-split DIR/SPLIT")
    if method == "adapted" and label_dir is None:
        raise InputError(
            "an embedding is adapted to frame labels of the split; give their folder with --label-dir (tools/make_labels.py --splits)"
        )
    encoder = load_encoder(checkpoint, device)
    chosen = choose_utterances(split, table_of(encoder.model, checkpoint), most, holdout, seed)
    settings = {"method": method, "utterances": most, "holdout": holdout, "seed": seed}
    embeddings, options = None, {"batch_seconds": batch_seconds, "workers": workers}
    if train is not None:
        average = nearest_average(encoder, train, layers, k, **options)
        embeddings = nearest_embeddings(average, encoder, split, chosen, **options)
        settings["nearest"] = {"layer": average.layer, "k": average.k, "speakers": len(average.table), "error": average.error}
    rows = {name: {"utterances": len(c.fitted), "seconds": round(_seconds(split, c.fitted), 2)} for name, c in chosen.items()}
    if method == "adapted":
        settings["fitting"] = asdict(fitting or Fitting())
        found = adapt(checkpoint, split, chosen, label_dir, labels, embeddings, fitting, seed, device, workers=workers)
        embeddings, rows = {name: v for name, (v, _) in found.items()}, {name: r for name, (_, r) in found.items()}
    ids = sorted(embeddings)
    counts = np.array([len(chosen[name].fitted) for name in ids], dtype=np.int64)
    vectors = SpeakerVectors(ids, np.stack([np.asarray(embeddings[name], dtype=np.float64) for name in ids]), counts)
    new = NewSpeakers(vectors, method, sha256(checkpoint), settings)
    report = {"checkpoint": str(checkpoint), "sha256": new.checkpoint, "split": str(split.tsv), "settings": settings}
    return new, {**report, "speakers": rows, "summary": summarise(rows)}


def _seconds(split, indices):
    return float(n_frames(split.n_samples[indices]).sum() / FRAME_RATE)


def table(report):
    """The report of `make` as text: a line per speaker, and what the utterances held out say."""
    lines = []
    for name, r in report["speakers"].items():
        line = f"{name}  {r['utterances']} utterances, {r['seconds']:.1f} s"
        if "held_out" in r:
            bits = "  ".join(f"{k} {v:.4f}" for k, v in r["held_out"]["bits"].items())
            line += f"; {r['held_out']['utterances']} held out, bits per masked frame: {bits}"
        lines.append(line)
    summary = report["summary"]
    if summary["speakers"]:
        means = "  ".join(f"{k} {v:.4f}" for k, v in summary["bits"].items())
        below = ", ".join(f"{n} of {summary['speakers']} below {name}" for name, n in summary["below"].items())
        lines.append(f"held out, mean over speakers: {means}; adapted: {below}")
    return "\n".join(lines)


def held_out_table(paths):
    """What several reports of tools/adapt_speaker.py (with --holdout) say of held-out utterances.

    Args:
        paths: of JSON reports; a speaker may be in one of them only.

    Returns:
        (lines of a Markdown table, {"speakers": {id: bits}, "summary": see `summarise`}).

    Raises:
        InputError: a file is no such report, holds nothing held out, or a speaker is in two.
    """
    speakers = {}
    for path in paths:
        found = read_json(path).get("speakers")
        if not isinstance(found, dict) or not any("held_out" in r for r in found.values()):
            raise InputError(f"{path}: no report of tools/adapt_speaker.py with held-out utterances; make it with --holdout")
        if twice := set(found) & set(speakers):
            raise InputError(f"{path}: the speaker “{min(twice)}” is in another report too; give each speaker once")
        speakers |= {name: r for name, r in found.items() if "held_out" in r}
    summary = summarise(speakers)
    methods = list(summary["bits"])
    lines = ["| speaker | s heard | " + " | ".join(methods) + " |", "| --- " * (len(methods) + 2) + "|"]
    for name, r in speakers.items():
        lines.append(f"| {name} | {r['seconds']:.0f} | " + " | ".join(f"{r['held_out']['bits'][m]:.3f}" for m in methods) + " |")
    lines.append(f"| mean of {len(speakers)} | | " + " | ".join(f"{summary['bits'][m]:.3f}" for m in methods) + " |")
    below = ", ".join(f"below {name} for {n} of {len(speakers)} speakers" for name, n in summary["below"].items())
    bits = {name: r["held_out"]["bits"] for name, r in speakers.items()}
    return [*lines, "", f"adapted: {below}"], {"speakers": bits, "summary": summary}
