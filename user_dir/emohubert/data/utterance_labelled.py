"""Speech with one emotion label per utterance: what fine-tuning learns from."""

import numpy as np
import torch

from ..audio import n_frames
from .masking import span_mask
from .speech import SpeechDataset, pad_frames


class UtteranceLabelledSpeech(SpeechDataset):
    """Utterances with a target each and, in training, time and channel masks.

    Args:
        split: a `manifest.Split`.
        targets: (n,) class indices, -1 without one, or (n, dimensions) float32, NaN without one.
        masking: a `Masking`, or None.
        speaker_rows: row of the speaker table for each utterance, or None.
        speaker_dropout: probability of the unknown speaker instead, in training.
        labelled_only: leave out utterances without a target.
        options: see SpeechDataset.
    """

    def __init__(self, split, targets, masking=None, speaker_rows=None, speaker_dropout=0.0, labelled_only=True, **options):
        super().__init__(split, **options)
        self.targets, self.speaker_rows = targets, speaker_rows
        self.masking = masking if self.training else None
        self.speaker_dropout = speaker_dropout if self.training else 0.0
        if labelled_only:
            self.kept = self.kept[self.has_target[self.kept]]

    @property
    def has_target(self):
        """(n,) bool: which utterances have a complete target."""
        return self.targets >= 0 if self.targets.ndim == 1 else ~np.isnan(self.targets).any(axis=1)

    def __getitem__(self, index):
        start, stop = self.crop(index)
        item = {"id": index, "source": self.waveform(index, start, stop), "target": self.targets[index]}
        m = self.masking
        if m is not None and m.probability > 0:
            item["mask"] = span_mask(n_frames(stop - start), m.probability, m.length, self.rng(index, "mask"))
        if m is not None and m.channel_probability > 0:
            item["channels"] = span_mask(m.width, m.channel_probability, m.channel_length, self.rng(index, "channels"), min_spans=0)
        if self.speaker_rows is not None:
            dropped = self.speaker_dropout > 0 and self.rng(index, "speaker").random() < self.speaker_dropout
            item["speaker"] = 0 if dropped else int(self.speaker_rows[index])
        return item

    def collater(self, items):
        """A batch: `net_input` for EmotionHubertModel and `target`, (batch,) classes or (batch, dimensions)."""
        if not items:
            return {}
        batch = self.collate_audio(items)
        batch["target"] = torch.from_numpy(np.stack([item["target"] for item in items]))
        net_input = batch["net_input"]
        if "mask" in items[0]:
            net_input["mask_indices"] = pad_frames([item["mask"] for item in items], max(len(item["mask"]) for item in items), False)
        if "channels" in items[0]:
            net_input["mask_channel_indices"] = torch.from_numpy(np.stack([item["channels"] for item in items]))
        if self.speaker_rows is not None:
            net_input["speaker"] = torch.tensor([item["speaker"] for item in items])
        return batch
