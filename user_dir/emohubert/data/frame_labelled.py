"""Speech with frame labels and masks: what masked prediction learns from."""

from dataclasses import dataclass

import numpy as np
import torch

from ..audio import HOP, n_frames
from ..pseudo_labels.alignment import NO_LABEL
from .masking import span_mask
from .speech import SpeechDataset, pad_frames


@dataclass(frozen=True)
class Masking:
    """How frames and channels are masked (the `mask_*` values of a model's configuration)."""

    probability: float
    length: int
    channel_probability: float = 0.0
    channel_length: int = 10
    width: int = 0

    @classmethod
    def of(cls, model_cfg):
        """From a HubertConfig."""
        return cls(
            model_cfg.mask_prob,
            model_cfg.mask_length,
            model_cfg.mask_channel_prob,
            model_cfg.mask_channel_length,
            model_cfg.encoder_embed_dim,
        )


class FrameLabelledSpeech(SpeechDataset):
    """Utterances with frame labels, a speaker, and a mask that depends on (seed, epoch, utterance) alone.

    Args:
        split: a `manifest.Split`.
        labels: one `FrameLabels` per label set.
        masking: Masking.
        speaker_rows: row of the speaker table for each utterance, or None.
        speaker_dropout: probability of the unknown speaker (row 0) instead, in training.
        options: see SpeechDataset.
    """

    def __init__(self, split, labels, masking, speaker_rows=None, speaker_dropout=0.0, **options):
        super().__init__(split, **options)
        self.labels, self.masking, self.speaker_rows = labels, masking, speaker_rows
        self.speaker_dropout = speaker_dropout if self.training else 0.0

    def __getitem__(self, index):
        start, stop = self.crop(index)
        frames = n_frames(stop - start)
        item = {
            "id": index,
            "source": self.waveform(index, start, stop),
            "targets": [labels.targets(index, start // HOP, frames) for labels in self.labels],
            "mask": span_mask(frames, self.masking.probability, self.masking.length, self.rng(index, "mask")),
        }
        if self.masking.channel_probability > 0 and self.training:
            m = self.masking
            item["channels"] = span_mask(m.width, m.channel_probability, m.channel_length, self.rng(index, "channels"), min_spans=0)
        if self.speaker_rows is not None:
            dropped = self.speaker_dropout > 0 and self.rng(index, "speaker").random() < self.speaker_dropout
            item["speaker"] = 0 if dropped else int(self.speaker_rows[index])
        return item

    def collater(self, items):
        """A batch: `net_input` for SpeakerHubertModel and `target_list`, one (batch, frames) tensor per label set."""
        if not items:
            return {}
        batch = self.collate_audio(items)
        frames = max(len(item["mask"]) for item in items)
        batch["target_list"] = [pad_frames([item["targets"][k] for item in items], frames, NO_LABEL) for k in range(len(self.labels))]
        batch["net_input"]["mask_indices"] = pad_frames([item["mask"] for item in items], frames, False)
        if "channels" in items[0]:
            batch["net_input"]["mask_channel_indices"] = torch.from_numpy(np.stack([item["channels"] for item in items]))
        if self.speaker_rows is not None:
            batch["net_input"]["speaker"] = torch.tensor([item["speaker"] for item in items])
        return batch
