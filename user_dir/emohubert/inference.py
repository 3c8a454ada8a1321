"""Running a fine-tuned model over a manifest split."""

import logging

import numpy as np
import torch
from torch.utils.data import DataLoader

from . import audio
from .batching import by_length
from .cli import progress
from .errors import InputError
from .manifest import NO_EMOTION
from .predictions import DimensionPredictions, from_probabilities, known_references

logger = logging.getLogger(__name__)


def predict_split(task, model, split, batch_seconds=100.0, device="cpu", workers=0):
    """Predict every utterance of a split, once, in batches that change nothing.

    Args:
        task, model: from `checkpoints.load_trained`.
        split: a `manifest.Split`; references are taken from it and seen by no part of the model.
        batch_seconds: most audio in a batch, padding counted.
        device: torch device.
        workers: processes that read audio; 0: this one.

    Returns:
        (ClassPredictions or DimensionPredictions in the order of the split, embeddings (n, width) float32: the pooled
        vectors that the head sees). Utterances under one frame are left out, and named in the log.

    Raises:
        InputError: a file cannot be read.
    """
    dataset = task.make_dataset(split, training=False, targets=np.zeros(len(split), dtype=np.int64))
    batches = by_length(dataset.sizes[dataset.kept], int(batch_seconds * audio.SAMPLE_RATE))
    loader = DataLoader(
        dataset, batch_sampler=[dataset.kept[b].tolist() for b in batches], collate_fn=dataset.collater, num_workers=workers
    )
    model = model.to(device).eval()
    outputs, embeddings = [None] * len(split), [None] * len(split)
    with torch.inference_mode():
        for batch in progress(loader, f"predicting {split.name}", total=len(batches), unit="batches"):
            inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch["net_input"].items()}
            found = model(**inputs)
            values = found["output"].float()
            values = values.softmax(dim=1) if task.classes else values
            for row, index in enumerate(batch["id"].tolist()):
                outputs[index] = values[row].double().cpu().numpy()
                embeddings[index] = found["embedding"][row].float().cpu().numpy()
    kept = dataset.kept
    values, embeddings = np.stack([outputs[i] for i in kept]), np.stack([embeddings[i] for i in kept])
    if not np.isfinite(values).all():
        raise InputError(
            f"{split.audio(kept[~np.isfinite(values).all(axis=1)][0])}: the model's output is not finite; check the checkpoint"
        )
    ids = [split.ids[i] for i in kept]
    speakers = [split.speakers[i] if split.speakers else NO_EMOTION for i in kept]
    if task.classes:
        emotions = known_references([split.emotions[i] if split.emotions else NO_EMOTION for i in kept], task.classes, split.tsv)
        return from_probabilities(ids, speakers, emotions, task.classes, values), embeddings
    references = np.full(values.shape, np.nan)
    for column, name in enumerate(task.dimensions):
        if split.dimensions and name in split.dimensions:
            references[:, column] = split.dimensions[name][kept]
    return DimensionPredictions(ids, speakers, task.dimensions, references, values), embeddings


def speaker_setting(task, split):
    """In which setting a split's speakers are met: a sentence for reports.

    `seen`: in the labelled training data. `transductive`: not there, but their audio took part in pretraining, so that
    they have an embedding. `inductive`: met for the first time; where the model hears speakers, as the unknown one.
    """
    speakers = set(split.speakers or [])
    trained, table = set(task.training_speakers), set(task.speakers)
    kinds = {
        "seen": len(speakers & trained),
        "transductive": len((speakers & table) - trained),
        "inductive": len(speakers - table - trained),
    }
    how = f"speaker embedding at the {task.speaker_position}" if table else "no speaker embedding"
    return {"setting": ", ".join(f"{kind} ({n} speakers)" for kind, n in kinds.items() if n) or "no speakers", "speaker_embedding": how}
