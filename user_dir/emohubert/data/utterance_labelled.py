"""Speech with one emotion label per utterance: what fine-tuning learns from."""

import numpy as np
import torch

from ..core.batching import divided
from ..corpus.audio import n_frames
from .masking import rng_for
from .speech import SpeechDataset


class UtteranceLabelledSpeech(SpeechDataset):
    """Utterances with a target each: `targets` are (n,) class indices, -1 without one, or (n, dimensions) float32, NaN without one. With
    `several`, (n, targets) float64, class indices (those of the first target first) and dimensions, NaN without one; any of them is enough.
    `shares`: what is learned in place of classes, (n, classes), rows that sum to 1, or to 0 without a label; float64, which training in
    half precision leaves as it is. `balanced`: in training, an epoch has as many utterances as the split, but equally many of each class:
    those of small classes are repeated, those of large ones sampled (those without a class are one more, where another target is known).
    `corpora`: bool (n, corpora), whose each utterance is; with a `temperature` T, corpora share training epochs, and the classes in them,
    in proportion to their utterances^(1/T): 1 as they are, infinity equally. The other options are of SpeechDataset; give a `masking` only
    for training."""

    features = None  # CachedFeatures to take the place of waveforms

    def __init__(self, split, targets, *args, balanced=False, shares=None, several=False, corpora=None, temperature=1.0, **options):
        super().__init__(split, *args, **options)
        self.targets, self.shares, self.balanced = targets, shares, balanced and self.training
        self.several, self.corpora = several, corpora
        self.temperature = temperature if self.training and corpora is not None else 1.0

    @property
    def has_target(self):
        """(n,) bool: which utterances have a complete target, or any of `several`."""
        if self.several:
            return ~np.isnan(self.targets).all(axis=1) | (self.shares is not None and self.shares.any(axis=1))
        if self.shares is not None:
            return self.shares.any(axis=1)
        return self.targets >= 0 if self.targets.ndim == 1 else ~np.isnan(self.targets).any(axis=1)

    def __getitem__(self, index):
        given = {"target": self.targets, "shares": self.shares, "corpora": self.corpora}
        labels = {name: rows[index] for name, rows in given.items() if rows is not None}
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
        if not self.balanced and self.temperature == 1:
            return super().ordered_indices()
        rng, own = rng_for(self.seed, self.epoch, 0, "balance"), [self.kept]
        if self.balanced:
            classes = self.targets[self.kept] if self.targets.ndim == 1 else np.nan_to_num(self.targets[self.kept, 0], nan=np.inf)
            own = [self.kept[classes == c] for c in np.unique(classes) if c >= 0]
        share = -(-len(self.kept) // len(own))
        own = [part for group in own for part in self._of_corpora(group, share)]
        return np.concatenate([np.concatenate([rng.permutation(o) for _ in range(-(-n // len(o)))])[:n] for o, n in own])

    def _of_corpora(self, group, share):
        """[(those of the utterances `group` that are of a corpus, how many of `share` are to be theirs)]."""
        if self.temperature == 1:
            return [(group, share)]
        own = [found for corpus in self.corpora.T if len(found := group[corpus[group]])]
        weights = np.array([len(found) for found in own]) ** (1 / self.temperature)
        return list(zip(own, np.ceil(share * weights / weights.sum() - 1e-9).astype(int), strict=True))

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
        for key in {"target", "shares", "corpora"} & items[0].keys():
            batch[key] = torch.from_numpy(np.stack([item[key] for item in items]))
        return batch
