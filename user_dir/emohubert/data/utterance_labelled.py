"""Speech with one emotion label per utterance: what fine-tuning learns from."""

import numpy as np
import torch

from ..audio import n_frames
from .speech import SpeechDataset


class UtteranceLabelledSpeech(SpeechDataset):
    """Utterances with a target each.

    Args:
        split: a `manifest.Split`.
        targets: (n,) class indices, -1 without one, or (n, dimensions) float32, NaN without one.
        options: see SpeechDataset; give a `masking` only for training.
    """

    def __init__(self, split, targets, *args, **options):
        super().__init__(split, *args, **options)
        self.targets = targets

    @property
    def has_target(self):
        """(n,) bool: which utterances have a complete target."""
        return self.targets >= 0 if self.targets.ndim == 1 else ~np.isnan(self.targets).any(axis=1)

    def __getitem__(self, index):
        start, stop = self.crop(index)
        source = self.waveform(index, start, stop)
        return {"id": index, "source": source, "target": self.targets[index], **self.drawn(index, n_frames(stop - start))}

    def collater(self, items):
        """A batch: `net_input` for EmotionHubertModel and `target`, (batch,) classes or (batch, dimensions)."""
        if not items:
            return {}
        batch = self.collate_inputs(items)
        batch["target"] = torch.from_numpy(np.stack([item["target"] for item in items]))
        return batch
