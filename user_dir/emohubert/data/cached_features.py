"""Features of a frozen encoder, computed once: what `model.freeze=all` trains on."""

import copy
import json
import logging

import numpy as np
import torch

from ..core.batching import by_length
from ..core.cli import progress
from ..core.files import atomic, fingerprint, make_folder
from ..corpus.audio import HOP, SAMPLE_RATE, locate, n_frames

logger = logging.getLogger(__name__)

_BATCH = 100 * SAMPLE_RATE


class CachedFeatures:
    """What `EmotionHubertModel.encode` gives for every utterance of a dataset, or its mean where that is all that is used.

    Args:
        model: EmotionHubertModel, frozen.
        dataset: UtteranceLabelledSpeech of one split.
        folder: where the features are kept, under a name that says what they are, so that runs can share the folder;
            None: in memory.
        checkpoint: SHA-256 of what the encoder came from.
        device: torch device to compute on.

    Attributes:
        are_means: whether there is one vector for each utterance.

    Raises:
        InputError: a file cannot be read, or the folder cannot be written to.
    """

    def __init__(self, model, dataset, folder=None, checkpoint=None, device="cpu"):
        self.are_means = model.mean_is_enough
        batches = by_length(dataset.sizes[dataset.kept], _BATCH)
        batches = [dataset.kept[b] for b in batches]
        order = np.concatenate(batches)
        rows = np.ones(len(order), dtype=np.int64) if model.mean_is_enough else n_frames(dataset.sizes[order])
        starts = np.concatenate([[0], np.cumsum(rows)])
        self._rows = {int(index): (int(a), int(b)) for index, a, b in zip(order, starts[:-1], starts[1:], strict=True)}
        width = model.backbone.width
        shape = (int(starts[-1]), model.layers, width) if model.layer_weights is not None else (int(starts[-1]), width)
        if folder is None:
            self._array = np.concatenate(list(self._computed(model, dataset, batches, device)))
            return
        name = f"{dataset.split.name}-{fingerprint(_what(model, dataset, checkpoint))}.npy"
        path = make_folder(folder) / name
        if not path.is_file():
            with atomic(path, "wb") as f:
                np.lib.format.write_array_header_2_0(f, {"descr": "<f4", "fortran_order": False, "shape": shape})
                for features in self._computed(model, dataset, batches, device):
                    f.write(features.tobytes())
        self._array = np.load(path, mmap_mode="r", allow_pickle=False)
        logger.info("%s: features of %d utterances, %.1f MB", path, len(order), self._array.nbytes / 1e6)

    def __getitem__(self, index):
        """Features of an utterance by its index in the split: float32 (frames or 1, width) or (frames or 1, layers, width)."""
        first, last = self._rows[int(index)]
        return np.array(self._array[first:last])

    @staticmethod
    def _computed(model, dataset, batches, device):
        model, dataset = model.to(device).eval(), copy.copy(dataset)
        dataset.speaker_dropout = 0.0  # that is for what is trained
        for batch in progress(batches, f"features of {dataset.split.name}", unit="batches"):
            inputs = dataset.collate_inputs([dataset.heard(i) for i in batch])["net_input"]
            inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in inputs.items()}
            with torch.inference_mode():
                x, valid = model.encode(inputs["source"], inputs["lengths"], speaker=inputs.get("speaker"))
            for features, own in zip(x.float(), valid, strict=True):
                features = features[own]
                yield (features.mean(dim=0, keepdim=True) if model.mean_is_enough else features).cpu().numpy()


def _what(model, dataset, checkpoint):
    """All that the features depend on, JSON values."""
    split = dataset.split
    heard = dataset.speaker_rows is not None and model.cfg.backbone.get("speaker_position", "none") != "none"
    return {
        "checkpoint": checkpoint,
        "encoder": json.loads(json.dumps(dict(model.cfg.backbone), default=str)),
        "mean": model.mean_is_enough,
        "layers": model.layers if model.layer_weights is not None else None,
        "normalise": dataset.normalise,
        "audio": [[str(split.audio(i)), int(split.n_samples[i]), locate(split.audio(i)).stat()[1]] for i in dataset.kept],
        "speakers": dataset.speaker_rows.tolist() if heard else None,
        "hop": HOP,
    }
