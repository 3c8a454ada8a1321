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
    """What `encode` of an EmotionHubertModel, frozen, gives for every utterance of an UtteranceLabelledSpeech, NaN in frames that are not
    pooled; one or two frames, where those hold all that is used (`are_few`). They are kept in `folder` under a name that identifies them, so that
    runs can share it; without, in memory. `checkpoint`: SHA-256 of what the encoder came from."""

    def __init__(self, model, dataset, folder=None, checkpoint=None, device="cpu"):
        self.are_few = model.few_frames is not None
        batches = [dataset.kept[b] for b in by_length(dataset.sizes[dataset.kept], _BATCH)]
        order = np.concatenate(batches)
        rows = np.full(len(order), model.few_frames) if self.are_few else n_frames(dataset.sizes[order])
        stops = np.cumsum(rows)
        self._rows = {int(index): slice(int(b - n), int(b)) for index, n, b in zip(order, rows, stops, strict=True)}
        computed = _computed(model, dataset, batches, device)
        if folder is None:
            self._array = np.concatenate(list(computed))
            return
        path = make_folder(folder) / f"{dataset.split.name}-{fingerprint(_settings(model, dataset, checkpoint))}.npy"
        if not path.is_file():
            shape = (int(stops[-1]), *[model.layers] * (model.layer_weights is not None), model.backbone.width)
            with atomic(path, "wb") as f:
                np.lib.format.write_array_header_2_0(f, {"descr": "<f4", "fortran_order": False, "shape": shape})
                for features in computed:
                    f.write(features.tobytes())
        self._array = np.load(path, mmap_mode="r", allow_pickle=False)
        logger.info("%s: features of %d utterances, %.1f MB", path, len(order), self._array.nbytes / 1e6)

    def __getitem__(self, index):
        """Features of an utterance by its index in the split: float32 (frames, width) or (frames, layers, width)."""
        return np.array(self._array[self._rows[int(index)]])


def _computed(model, dataset, batches, device):
    """The features of each utterance, in the order of the batches: float32 arrays."""
    model, dataset = model.to(device).eval(), copy.copy(dataset)
    dataset.speaker_dropout = 0.0  # that is for what is trained
    few = model.few_frames
    for batch in progress(batches, f"features of {dataset.split.name}", unit="batches"):
        inputs = dataset.collate_inputs([dataset.input(i) for i in batch])["net_input"]
        inputs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in inputs.items()}
        with torch.inference_mode():
            x, valid = model.encode(inputs["source"], inputs["lengths"], speaker=inputs.get("speaker"))
        for features, own, samples in zip(x.float(), valid, inputs["lengths"], strict=True):
            if few is None:
                kept = features.masked_fill(~own.view(-1, *[1] * (features.dim() - 1)), torch.nan)[: n_frames(samples)]
            else:  # one frame with the mean, or two with the mean and the standard deviation
                mean, deviation = features[own].mean(dim=0, keepdim=True), features[own].std(dim=0, correction=0, keepdim=True)
                kept = mean if few == 1 else torch.cat([mean - deviation, mean + deviation])
            yield kept.cpu().numpy()


def _settings(model, dataset, checkpoint):
    """All that the features depend on, JSON values."""
    split = dataset.split
    with_speakers = dataset.speaker_rows is not None and model.cfg.backbone.get("speaker_position", "none") != "none"
    return {
        "checkpoint": checkpoint,
        "encoder": json.loads(json.dumps(dict(model.cfg.backbone), default=str)),
        "frames": model.few_frames,
        "silence": model.cfg.silence_db,
        "layers": model.layers if model.layer_weights is not None else None,
        "normalise": dataset.normalise,
        "speeds": getattr(split, "factors", np.array([])).tolist(),
        "audio": [[str(split.audio(i)), int(split.n_samples[i]), locate(split.audio(i)).stat()[1]] for i in dataset.kept],
        "speakers": dataset.speaker_rows.tolist() if with_speakers else None,
        "hop": HOP,
    }
