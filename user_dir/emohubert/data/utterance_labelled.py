"""Speech with one emotion label per utterance: what fine-tuning learns from."""

import numpy as np
import torch

from ..core.batching import divided
from ..corpus.audio import n_frames
from .masking import rng_for
from .speech import SpeechDataset


class UtteranceLabelledSpeech(SpeechDataset):
    """Utterances with a target each: `targets` are (n,) class indices, -1 without one, or (n, dimensions) float32, NaN without one.
    `shares`: what is learned in place of classes, (n, classes), rows that sum to 1, or to 0 without a label; float64, which training in
    half precision leaves as it is. `balanced`: in training, an epoch has as many utterances as the split, but equally many of each class:
    those of small classes are repeated, those of large ones sampled. The other options are of SpeechDataset; give a `masking` only for
    training."""

    features = None  # CachedFeatures to take the place of waveforms

    def __init__(self, split, targets, *args, balanced=False, shares=None, **options):
        super().__init__(split, *args, **options)
        self.targets, self.shares, self.balanced = targets, shares, balanced and self.training

    @property
    def has_target(self):
        """(n,) bool: which utterances have a complete target."""
        if self.shares is not None:
            return self.shares.any(axis=1)
        return self.targets >= 0 if self.targets.ndim == 1 else ~np.isnan(self.targets).any(axis=1)

    def __getitem__(self, index):
        labels = {"target": self.targets[index]} | ({} if self.shares is None else {"shares": self.shares[index]})
        if self.features is None:
            return labels | self.input(index)
        features = torch.from_numpy(self.features[index])
        return {**labels, "id": index, "features": features, **self.drawn(index, len(features))}

    def input(self, index):
        """A model's input for an utterance in this epoch, without its target."""
        start, stop = self.crop(index)
        source = self.waveform(index, start, stop)
        return {"id": index, "source": source, **self.drawn(index, n_frames(len(source)))}

    def ordered_indices(self):
        """Indices of the utterances of this epoch."""
        if not self.balanced:
            return super().ordered_indices()
        rng = rng_for(self.seed, self.epoch, 0, "balance")
        own = [self.kept[self.targets[self.kept] == c] for c in np.unique(self.targets[self.kept]) if c >= 0]
        share = -(-len(self.kept) // len(own))
        return np.concatenate([np.concatenate([rng.permutation(o) for _ in range(-(-share // len(o)))])[:share] for o in own])

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        """Batches as of any speech; but utterances of few cached frames have no length, so that any go together and only `max_sentences` counts."""
        if self.features is None or not self.features.are_few or max_sentences is None:
            return super().batch_by_size(indices, max_tokens, max_sentences, required_batch_size_multiple)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(indices) if self.training else np.asarray(indices)
        batches = divided(np.ones(len(order)), self.parts, None, max_sentences, required_batch_size_multiple)
        return [order[b] for b in batches]

    def collater(self, items):
        """A batch: `net_input` for EmotionHubertModel, `target`, (batch,) classes or (batch, dimensions), and `shares`, (batch, classes)."""
        if not items:
            return {}
        batch = self.collate_inputs(items)
        for key in {"target", "shares"} & items[0].keys():
            batch[key] = torch.from_numpy(np.stack([item[key] for item in items]))
        return batch
