"""Speech with frame labels and masks: what masked prediction learns from."""

from ..corpus.audio import HOP, n_frames
from ..corpus.frame_labels import NO_LABEL
from .speech import SpeechDataset, pad_frames


class FrameLabelledSpeech(SpeechDataset):
    """Utterances with one FrameLabels per label set; frames are masked in validation too, in every epoch alike."""

    def __init__(self, split, labels, *args, **options):
        super().__init__(split, *args, **options)
        self.labels = labels

    def __getitem__(self, index):
        start, stop = self.crop(index)
        frames = n_frames(stop - start)
        targets = [labels.targets(index, start // HOP, frames) for labels in self.labels]
        return {"id": index, "source": self.waveform(index, start, stop), "targets": targets, **self.drawn(index, frames)}

    def collater(self, items):
        """A batch: `net_input` for SpeakerHubertModel and `target_list`, one (batch, frames) tensor per label set."""
        if not items:
            return {}
        batch = self.collate_inputs(items)
        frames = max(len(item["targets"][0]) for item in items)
        batch["target_list"] = [pad_frames([item["targets"][k] for item in items], frames, NO_LABEL) for k in range(len(self.labels))]
        return batch
