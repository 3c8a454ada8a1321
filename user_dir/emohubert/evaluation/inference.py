"""Running a fine-tuned model over recordings."""

import contextlib
import hashlib
import itertools
import logging
import os
from dataclasses import dataclass

import numpy as np
import torch

from ..core.batching import by_length
from ..core.cli import progress
from ..core.device import autocast, check_precision, exact_arithmetic
from ..core.errors import InputError
from ..core.files import fingerprint
from ..core.parallel import as_finished
from ..corpus import audio
from ..corpus.manifest import NO_EMOTION, UNKNOWN_SPEAKER, by_speaker
from ..data.cached_features import CachedFeatures
from ..models.heads import values_of
from ..models.speaker_normalisation import OnlineNormalisation
from .predictions import DimensionPredictions, from_probabilities, known_references

logger = logging.getLogger(__name__)

BY_AUDIO = "normalised by unlabelled audio"
_READ_AHEAD = 3  # batches that are being read or wait for a GPU


@dataclass(frozen=True)
class Outcome:
    """What a model says about the utterance `index` of a dataset: `values`, float64, probabilities (classes) or (dimensions), the pooled
    vector `embedding`, float32 (width), and, where it is pooled by attention, the frames' weights `attention`, float32 (frames); or
    `error`, an InputError that says why there is nothing."""

    index: int
    values: np.ndarray | None = None
    embedding: np.ndarray | None = None
    attention: np.ndarray | None = None
    error: InputError | None = None


def run(task, model, dataset, load=None, batch_seconds=100.0, device="cpu", workers=0, padded=None, precision="float32"):
    """Run a model over the utterances that a dataset keeps: yields an Outcome for each, in the order of finishing, the longest first.

    As in `pseudo_labels.features`, every utterance goes through the model alone on a CPU, and in `padded` batches on a GPU.

    `task` and `model` are from `load_trained`, the dataset is of `task.make_dataset(…, training=False)`. `load`: index → item of it, called
    in threads, by default its own. `batch_seconds`: most audio in the model at once, padding counted; a longer utterance goes alone.
    `workers`: threads that read audio, and on a CPU run the model; 0: one for each core. `precision`: float32 or bf16.
    """
    check_precision(precision, torch.device(device))
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # compiled convolutions: every length is another one
    device, model = torch.device(device), model.to(device).eval()
    load = dataset.__getitem__ if load is None else load
    padded = device.type != "cpu" if padded is None else padded
    budget = int(batch_seconds * audio.SAMPLE_RATE)
    batches = [dataset.kept[b] for b in by_length(dataset.sizes[dataset.kept], budget, None if padded else 1)]
    jobs = [(batch.tolist(), int(dataset.sizes[batch].max()) * len(batch)) for batch in batches]

    def read(batch):
        items, failed = [], []
        for index in batch:
            try:
                items.append(load(index))
            except InputError as error:
                failed.append(Outcome(index, error=error))
        return items, failed

    def outcomes(items, failed):
        return failed + (list(_forward(task, model, dataset, items, device, precision)) if items else [])

    with exact_arithmetic(device):
        if padded:
            found = itertools.starmap(outcomes, as_finished(read, jobs, workers, _READ_AHEAD * budget))
        else:
            found = as_finished(lambda batch: outcomes(*read(batch)), jobs, workers, budget)
        yield from itertools.chain.from_iterable(found)


def _forward(task, model, dataset, items, device, precision):
    batch = dataset.collater(items)
    dtype = next(model.parameters()).dtype  # half precision in training on a GPU, or float32
    inputs = {
        k: v.to(device, dtype if v.is_floating_point() else v.dtype) if torch.is_tensor(v) else v for k, v in batch["net_input"].items()
    }
    with torch.inference_mode():
        with autocast(device, precision):
            found = model(**inputs)
        values = values_of(task.outputs, found["output"].float()).double().cpu().numpy()
        embeddings = found["embedding"].float().cpu().numpy()
        attention = _attention(model, found, dataset.sizes[batch["id"].numpy()])
    for index, *row in zip(batch["id"].tolist(), values, embeddings, attention, strict=True):
        if all(np.isfinite(x).all() for x in row[:2]):
            yield Outcome(index, *row)
        else:
            what = f"{dataset.split.audio(index)}: the model's output is not finite; check the checkpoint"
            yield Outcome(index, error=InputError(what))


def _attention(model, found, sizes):
    """The weights of each utterance's frames, padding left out, of a model that pools by attention; otherwise None for each."""
    if model.pooling.weights is None:
        return [None] * len(sizes)
    weights = model.pooling.weights(found["frames"], found["valid"]).float().cpu().numpy()
    frames = audio.n_frames(sizes)
    own = -(-weights.shape[1] * frames // max(frames.max(), 1))  # also where frames have another rate
    return [row[:n] for row, n in zip(weights, own, strict=True)]


def predict_split(task, model, split, transform=None, average=None, feature_cache=None, attention=None, others=None, **options):
    """Predict every utterance of a split once, as `run` does, with its `options`; the model sees no reference.

    `transform` is applied to waveforms, as for `task.make_dataset`. With `average`, an AverageSpeaker, the head sees each speaker's pooled
    vectors normalised by all of that speaker's utterances in the split; without, a model that was trained so takes the average speaker's.
    `feature_cache`: a folder for the features of a frozen encoder, as far as they are one or two frames an utterance; other models with the
    same encoder find them there. `attention`: a dict that takes, where the model pools by attention, id → weights of the frames. `others`: a
    dict that takes, of a model with several targets, target → predictions, of all but the first.

    Returns (ClassPredictions or DimensionPredictions in the order of the split, embeddings (n, width) float32: the pooled vectors, not
    normalised). Utterances under one frame are left out, and named in the log. InputError: a file cannot be read.
    """
    dataset = task.make_dataset(split, training=False, targets=np.zeros(len(split), dtype=np.int64), transform=transform)
    few = str(model.cfg.freeze) == "all" and model.few_frames is not None and transform is None and options.get("precision") != "bf16"
    if feature_cache is not None and few:
        dataset.features = CachedFeatures(model, dataset, feature_cache, _hash_of(model.backbone), options.get("device", "cpu"))
    kept = dataset.kept
    outcomes = [None] * len(split)
    with contextlib.closing(run(task, model, dataset, **options)) as found:
        for outcome in progress(found, f"predicting {split.name}", total=len(kept), unit="utterances"):
            if outcome.error is not None:
                raise outcome.error
            outcomes[outcome.index] = outcome
    values, embeddings = np.stack([outcomes[i].values for i in kept]), np.stack([outcomes[i].embedding for i in kept])
    ids = np.array(split.ids, dtype=object)[kept].tolist()
    speakers = [split.speakers[i] if split.speakers else UNKNOWN_SPEAKER for i in kept]
    if attention is not None:
        attention |= {name: outcomes[i].attention for name, i in zip(ids, kept, strict=True) if outcomes[i].attention is not None}
    if average is not None:
        for rows in by_speaker(speakers).values():
            values[rows] = from_vectors(task, model, average, embeddings[rows])
    found = {o.target: _with_references(o, split, kept, ids, speakers, values[:, o.columns]) for o in task.outputs}
    first = found.pop(task.outputs[0].target)
    if others is not None:
        others |= found
    return first, embeddings


def _with_references(output, split, kept, ids, speakers, values):
    """Predictions of one Output, with the references that the split has."""
    if output.are_classes:
        column = split.emotions if output.target == "emo" else (split.meta or {}).get(output.target)
        emotions = known_references([column[i].strip() or NO_EMOTION if column else NO_EMOTION for i in kept], output.names, split.tsv)
        return from_probabilities(ids, speakers, emotions, output.names, values, output.target)
    references = np.full(values.shape, np.nan)
    for column, name in enumerate(output.names):
        if split.dimensions and name in split.dimensions:
            references[:, column] = split.dimensions[name][kept]
    return DimensionPredictions(ids, speakers, list(output.names), references, values)


def _hash_of(module):
    return fingerprint({name: hashlib.sha256(x.cpu().numpy().tobytes()).hexdigest() for name, x in module.state_dict().items()})


def from_vectors(task, model, average, vectors):
    """Probabilities or dimensions, float64, of one speaker's pooled vectors (n, width), normalised by them. InputError: the head is
    conditioned on speakers, or `average` is of another width."""
    if average.mean.shape != vectors.shape[1:]:
        what = f"training embeddings of width {len(average.mean)}, the checkpoint's have {vectors.shape[1]}"
        raise InputError(f"{what}; make them with tools/evaluate.py --embeddings from this checkpoint")
    return from_normalised(task, model, average.normalised(vectors, model.normalisation is None))


def from_normalised(task, model, vectors):
    """Probabilities or dimensions, float64, of normalised vectors (n, width); InputError if the head is conditioned on speakers."""
    if model.speaker_at_head is not None:
        raise InputError(f"model.head_speaker={model.cfg.head_speaker}: the head knows the speaker itself; leave out the normalisation")
    with torch.inference_mode():
        output = model.head(torch.from_numpy(vectors).to(next(model.head.parameters())))["output"].double()
        return values_of(task.outputs, output).cpu().numpy()


def online(task, model):
    """For one speaker of a model that was trained with speaker normalisation: a function from a pooled vector (width) to the
    prediction by the statistics of the speaker's vectors so far, this one included."""
    speaker = OnlineNormalisation(model.normalisation.average)
    return lambda vector: from_normalised(task, model, speaker.add(vector)[None])[0]


def speaker_setting(task, split, added=(), normalised=False):
    """In which setting a split's speakers are predicted: a sentence for reports.

    `seen`: in the labelled training data (see `share_people`). `transductive`: not there, but their audio took part in pretraining, so that they
    have an embedding. `adapted`: in neither, with embeddings that `NewSpeakers` gave the model, ids `added`. `inductive`: in neither; a
    speaker-conditioned model takes them for the unknown one. `normalised`: by each speaker's audio in the split, so that nobody is inductive.
    """
    speakers, added = set(split.speakers or []) - {UNKNOWN_SPEAKER}, set(added)
    trained = {*task.state.earlier_speakers, *task.as_in(split, task.state.training_speakers)}
    table = {*task.speakers_for(split)} - added
    kinds = {
        "seen": len(speakers & trained),
        "transductive": len((speakers & table) - trained),
        "adapted": len(speakers & added),
        "inductive": len(speakers - table - trained - added),
    }
    if normalised:
        kinds = {BY_AUDIO if kind == "inductive" else f"{kind} and normalised": n for kind, n in kinds.items()}
    known = [f"{kind} ({n} speakers)" for kind, n in kinds.items() if n]
    unknown = (split.speakers or []).count(UNKNOWN_SPEAKER)
    setting = ", ".join([*known, *[f"unknown speakers ({unknown} utterances)"] * bool(unknown)]) or "no speakers"
    return {"setting": setting, "speaker_embedding": task.speaker_embedding}
