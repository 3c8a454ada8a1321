"""Utterances of a manifest split as a fairseq dataset: reading, cropping, batching. Subclasses add the labels."""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from fairseq.data import FairseqDataset
from torch.utils.data import default_collate

from ..core.batching import divided
from ..core.errors import InputError
from ..corpus import audio
from .masking import rng_for

logger = logging.getLogger(__name__)

MOST_HEADERS = 20_000  # audio headers read before training starts; in a larger corpus, as many chosen at random


class SpeechDataset(FairseqDataset):
    """Waveforms of one split, with masks and speakers that depend on (seed, epoch, utterance) alone.

    Each utterance has a row of the speaker table (`speaker_rows`), or in `training`, with the probability `speaker_dropout`, row 0, and
    `speaker_features`, (n, width) float32. Those over `max_samples` are cropped, at a random multiple of the hop; those under `min_samples`
    are left out, and counted in the log. `transform`, like an `Augmentation`, is applied after the crop and before waveforms are brought
    to zero mean and unit variance (`normalise`). In `training` batches and crops change from epoch to epoch.
    """

    parts = 1  # into how many each batch is divided, for processes and for accumulated gradients
    voices = None  # (n,): row of each utterance's speaker in the table of speaker normalisation
    can_reuse_epoch_itr_across_epochs = False  # batches, crops and masks are made for each epoch

    def __init__(
        self,
        split,
        masking=None,
        speaker_rows=None,
        speaker_dropout=0.0,
        seed=1,
        training=True,
        normalise=False,
        max_samples=None,
        min_samples=audio.RECEPTIVE_FIELD,
        speaker_features=None,
        transform=None,
    ):
        self.speaker_features, self.transform = speaker_features, transform
        self.split, self.seed, self.training, self.normalise = split, seed, training, normalise
        self.masking, self.speaker_rows = masking, speaker_rows
        self.speaker_dropout = speaker_dropout if training else 0.0
        self.max_samples = None if max_samples is None else max(int(max_samples), audio.RECEPTIVE_FIELD)
        self.cropped = split.n_samples if self.max_samples is None else np.minimum(split.n_samples, self.max_samples)
        min_samples = max(int(min_samples), audio.RECEPTIVE_FIELD)
        self.kept, short = (np.flatnonzero(x) for x in (split.n_samples >= min_samples, split.n_samples < min_samples))
        if len(self.kept) == 0:
            raise InputError(f"{split.tsv}: every utterance is shorter than {min_samples} samples; lower task.min_sample_size")
        if len(short):
            names = ", ".join(split.paths[i] for i in short[:5]) + (", …" if len(short) > 5 else "")
            counts = f"{len(short)} of {len(split)} utterances are under {min_samples} samples"
            logger.warning("%s: %s and left out: %s", split.tsv, counts, names)
        self.set_epoch(1)

    def check_audio(self):
        """Read the headers of the audio files, in a very large corpus of some; InputError as from `Split.check_header`."""
        chosen = self.kept
        if len(chosen) > MOST_HEADERS:
            chosen = np.sort(np.random.default_rng(self.seed).choice(chosen, MOST_HEADERS, replace=False))
            logger.info("%s: checking the headers of %d of %d files", self.split.tsv, MOST_HEADERS, len(self.kept))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self.split.check_header, chosen))

    def set_epoch(self, epoch):
        """Choose the epoch that crops, transforms, masks and batches are drawn for (fairseq calls this)."""
        self.epoch = epoch
        self.sizes = self.cropped
        if self.transform is not None and not self.transform.keeps_length:
            self.sizes = self.cropped.copy()
            self.sizes[self.kept] = [self.transform.length(int(self.cropped[i]), self.rng(i, "augment")) for i in self.kept]

    def rng(self, index, purpose):
        """The random generator of an utterance in this epoch; the same in every epoch outside of training."""
        return rng_for(self.seed, self.epoch if self.training else 0, int(index), purpose)

    def crop(self, index):
        """The part of an utterance that is read in this epoch: (start, stop) in samples, start on a frame."""
        n, size = int(self.split.n_samples[index]), int(self.cropped[index])
        if size == n:
            return 0, n
        start = int(self.rng(index, "crop").integers((n - size) // audio.HOP + 1)) * audio.HOP
        return start, start + size

    def waveform(self, index, start, stop):
        """Samples [start, stop) of an utterance, transformed and normalised, as a float32 tensor; nothing else is decoded."""
        samples = self.split.read(index, start, stop)
        if self.transform is not None:
            samples = self.transform(samples, self.rng(index, "augment"))
        return torch.from_numpy(audio.normalise(samples) if self.normalise else samples)

    def drawn(self, index, frames):
        """What is drawn for an utterance in this epoch, as a dict: `mask`, bool (frames,), where frames are masked; in training
        `channels`, bool (width,), where channels are; `speaker` and `voice`, rows of tables; `speaker_features`, (width,)."""
        item = {}
        if self.masking is not None and self.masking.probability > 0:
            item["mask"] = self.masking.frames(frames, self.rng(index, "mask"))
        if self.masking is not None and self.masking.channel_probability > 0 and self.training:
            item["channels"] = self.masking.channels(self.rng(index, "channels"))
        dropped = self.speaker_dropout > 0 and self.rng(index, "speaker").random() < self.speaker_dropout
        if self.speaker_rows is not None:
            item["speaker"] = 0 if dropped else int(self.speaker_rows[index])
        if self.voices is not None:
            item["voice"] = int(self.voices[index])
        if self.speaker_features is not None:
            item["speaker_features"] = torch.from_numpy(self.speaker_features[index] * (not dropped))
        return item

    def collate_inputs(self, items):
        """A batch of dicts with `id`, `source` (or, in its place, `features` (frames, …)), and what `drawn` returns.

        Returns {"id": (batch,), "nsentences", "ntokens": samples, "net_input": {"source": (batch, samples) padded with zeros, "lengths":
        list of int, and where drawn "mask_indices": (batch, frames), "mask_channel_indices": (batch, width), "speaker": (batch,), "voice":
        (batch,), "speaker_features": (batch, width)}}.
        """
        key = "features" if "features" in items[0] else "source"
        lengths = [len(item[key]) for item in items]
        net_input = {key: torch.nn.utils.rnn.pad_sequence([item[key] for item in items], batch_first=True), "lengths": lengths}
        if "mask" in items[0]:
            net_input["mask_indices"] = pad_frames([item["mask"] for item in items], audio.n_frames(max(lengths)), False)
        others = {"channels": "mask_channel_indices", **{name: name for name in ("speaker", "voice", "speaker_features")}}
        net_input |= {name: default_collate([item[key] for item in items]) for key, name in others.items() if key in items[0]}
        ids = torch.tensor([item["id"] for item in items])
        return {"id": ids, "nsentences": len(items), "ntokens": sum(lengths), "net_input": net_input}

    @property
    def seen(self):
        """Indices of the utterances that training uses: those kept; all, where speakers are described by their audio."""
        return self.kept if self.speaker_features is None else np.arange(len(self.split))

    def __len__(self):
        return len(self.split)

    def size(self, index):
        """Samples of an utterance in this epoch (fairseq's notion of size)."""
        return int(self.sizes[index])

    num_tokens = size  # budgets (`dataset.max_tokens`) are in samples

    def num_tokens_vec(self, indices):
        """`num_tokens` of several utterances."""
        return self.sizes[indices]

    def ordered_indices(self):
        """Indices of the utterances that are used."""
        return self.kept

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        """Length-bucketed batches under a budget of samples, padding counted; shuffled in training. See `batching.divided`."""
        rng = np.random.default_rng([self.seed, self.epoch]) if self.training else None
        batches = divided(self.sizes[indices], self.parts, max_tokens, max_sentences, required_batch_size_multiple, rng)
        return [indices[b] for b in batches]


def pad_frames(rows, frames, value):
    """Stack per-utterance arrays of frames into one tensor, padded with `value`. Returns (batch, frames)."""
    return torch.from_numpy(np.stack([np.pad(row, (0, frames - len(row)), constant_values=value) for row in rows]))
