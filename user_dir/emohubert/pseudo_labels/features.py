"""Frame features of recordings, to be clustered: MFCCs, or layers of an encoder, as fairseq's simple_kmeans makes them.

A recording is extracted in one *piece*, or, if it is longer than `max_chunk_seconds`, in several that overlap; each frame
is kept from one piece, so none is lost. On a CPU every piece goes through the encoder alone, several pieces at once in
threads of one core each: that is faster there than padded batches, and the bits of a feature depend on neither the batch
nor the number of cores. On a GPU pieces go in padded batches, which give the same up to the rounding of float32.
"""

import functools
import os
from dataclasses import dataclass

import numpy as np
import torch
import torchaudio

from ..core.batching import by_length
from ..core.device import autocast, exact_arithmetic
from ..core.errors import InputError
from ..core.parallel import as_finished, one_thread
from ..corpus import audio
from ..provenance import records

MFCC_HOP = audio.HOP // 2
MFCC = "mfcc"
_READ_AHEAD = 3  # batches that are being read or wait for a GPU
_CONTEXT_SECONDS = 5.0  # what a piece of a long recording gets on each side and that is not kept


@dataclass(frozen=True)
class Piece:
    """A part of a recording that is extracted at once."""

    utterance: int  # index in the split
    start: int  # samples that go in
    stop: int
    first: int  # frames of the recording that are kept
    last: int
    skip: int  # frames of the piece before `first`

    @property
    def samples(self):
        """Samples that go in."""
        return self.stop - self.start


def pieces(utterance, n_samples, max_samples, context_samples, hop=audio.HOP):
    """Cut a recording into pieces of at most `max_samples`, which reach `context_samples` beyond the frames that are kept from them."""
    frames = int(audio.n_frames(int(n_samples), hop))
    if n_samples <= max_samples:
        return [Piece(utterance, 0, int(n_samples), 0, frames, 0)] if frames else []
    window, context = int(audio.n_frames(int(max_samples), hop)), context_samples // hop
    found, first = [], 0
    while first < frames:
        start = min(max(first - context, 0), frames - window)  # the last piece is a whole window too
        end = start + window
        last = frames if end >= frames else end - context
        found.append(Piece(utterance, start * hop, (end - 1) * hop + audio.RECEPTIVE_FIELD, first, last, first - start))
        first = last
    return found


class MfccFeatures:
    """13 MFCCs with their deltas and delta-deltas, 100 frames a second (HuBERT's first iteration), as fairseq's `dump_mfcc_feature.py`. A
    recording longer than `max_chunk_seconds` is transformed in parts; deltas are taken over the whole."""

    names = (MFCC,)
    widths = {MFCC: 39}
    hop = MFCC_HOP
    settings = {}  # what else the numbers depend on
    sources = ()  # what they come from
    precision, device = "float32", torch.device("cpu")

    def __init__(self, workers=None, max_chunk_seconds=100.0):
        self.workers = workers
        self._chunk = audio.n_frames(int(max_chunk_seconds * audio.SAMPLE_RATE), MFCC_HOP)

    def describe(self, name):
        """What the features are, for `kmeans.npz`."""
        return {"kind": "mfcc", "width": 39, "sample_rate": audio.SAMPLE_RATE, "hop": MFCC_HOP}

    def extract(self, split, indices, consume, names=None):
        """As `EncoderFeatures.extract`; one piece per recording."""
        found = [p for i in indices for p in pieces(i, split.n_samples[i], split.n_samples[i], 0, self.hop)]

        def process(piece):
            consume(piece, {self.names[0]: self._features(split, piece)})
            return piece.samples / audio.SAMPLE_RATE

        with one_thread():
            yield from as_finished(process, [(piece, piece.samples) for piece in found], self.workers)

    def _features(self, split, piece):
        parts = []
        path, total = split.audio(piece.utterance), int(split.n_samples[piece.utterance])
        for first in range(0, piece.last, self._chunk):
            last = min(first + self._chunk, piece.last)
            stop = total if (first, last) == (0, piece.last) else (last - 1) * self.hop + audio.RECEPTIVE_FIELD
            waveform = torch.from_numpy(audio.read(path, first * self.hop, stop, total))
            parts.append(torchaudio.compliance.kaldi.mfcc(waveform[None], sample_frequency=audio.SAMPLE_RATE, use_energy=False))
        cepstra = torch.cat(parts).T  # (13, frames)
        deltas = torchaudio.functional.compute_deltas(cepstra)
        features = torch.cat([cepstra, deltas, torchaudio.functional.compute_deltas(deltas)]).T.contiguous()
        return finite(features, path)


class EncoderFeatures:
    """Layers (1-based) of a pretrained encoder, a FrozenEncoder, 50 frames a second: what fairseq's `dump_hubert_feature.py` gives for each.
    `batch_seconds`: audio in the model at once, padding counted; a longer piece goes alone. `workers`: threads (default: one a core) that
    read and on a CPU run the model. `max_chunk_seconds`: longer recordings are cut. `padded`: in batches (default: on a GPU only)."""

    hop = audio.HOP

    def __init__(self, encoder, layers, batch_seconds=100.0, workers=None, precision="float32", max_chunk_seconds=100.0, padded=None):
        encoder.check_layers(layers)
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # compiled convolutions: every length is another one
        self.encoder, self.precision = encoder, precision
        self.device, self.workers = encoder.device, workers
        self.layers = {f"L{layer}": layer for layer in sorted(set(layers))}
        self.names, self.widths = tuple(self.layers), dict.fromkeys(self.layers, encoder.width)
        self.settings = {"precision": precision, "max_chunk_seconds": max_chunk_seconds}
        self.sources = [records.source("checkpoint", encoder.path, sha256=encoder.sha256)]
        self.padded = self.device.type != "cpu" if padded is None else padded
        self._budget = int(batch_seconds * audio.SAMPLE_RATE)
        self._max_samples = int(max_chunk_seconds * audio.SAMPLE_RATE)
        self._context = int(min(_CONTEXT_SECONDS, max_chunk_seconds / 4) * audio.SAMPLE_RATE)

    def describe(self, name):
        """What the features are, for `kmeans.npz`."""
        encoder, form = self.encoder, {"sample_rate": audio.SAMPLE_RATE, "hop": self.hop, "normalise": self.encoder.normalise}
        return {"kind": "encoder", "checkpoint": encoder.sha256, "layer": self.layers[name], "width": encoder.width, **form}

    def extract(self, split, indices, consume, names=None):
        """Call `consume(Piece, {name: (frames, width) float32 tensor})` for each piece of some utterances of a Split, in several threads
        at once; yields the seconds done. `names`: which features, all by default."""
        layers = {name: self.layers[name] for name in names or self.names}
        found = [p for i in indices for p in pieces(i, split.n_samples[i], self._max_samples, self._context)]
        grouping = by_length([p.samples for p in found], self._budget, None if self.padded else 1)
        jobs = [([found[i] for i in batch], len(batch) * found[batch[0]].samples) for batch in grouping]  # the longest comes first
        statistics = functools.cache(lambda utterance: mean_and_variance(split, utterance)) if self.encoder.normalise else None

        def load(batch):
            return batch, [_waveform(split, piece, statistics) for piece in batch]

        def process(loaded):
            batch, waveforms = loaded
            for piece, features in zip(batch, self._forward(split, batch, waveforms, layers), strict=True):
                consume(piece, features)
            return sum(piece.samples for piece in batch) / audio.SAMPLE_RATE

        with exact_arithmetic(self.device):
            if self.padded:
                yield from map(process, as_finished(load, jobs, self.workers, _READ_AHEAD * self._budget))
            else:
                yield from as_finished(lambda batch: process(load(batch)), jobs, self.workers, self._budget)

    def _forward(self, split, batch, waveforms, layers):
        lengths = [len(w) for w in waveforms]
        source = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waveforms], batch_first=True)
        speakers = [split.speakers[p.utterance] for p in batch] if split.speakers else None
        with autocast(self.encoder.device, self.precision):
            features, _ = self.encoder.features(source, lengths, sorted(layers.values()), speakers)
        kept = []
        for i, piece in enumerate(batch):
            rows = slice(piece.skip, piece.skip + piece.last - piece.first)
            kept.append({name: finite(features[layer][i, rows].float(), split.audio(piece.utterance)) for name, layer in layers.items()})
        return kept


def collect(features, split, indices, arrays):
    """`features.extract` into arrays, {name: (frames, width) float32}, utterance after utterance; yields the seconds done."""
    frames = audio.n_frames(split.n_samples[indices], features.hop)
    first = dict(zip(map(int, indices), (np.cumsum(frames) - frames).tolist(), strict=True))

    def keep(piece, found):
        row = first[piece.utterance] + piece.first
        for name, values in found.items():
            arrays[name][row : row + len(values)] = values.cpu().numpy()

    yield from features.extract(split, indices, keep, list(arrays))


def finite(features, path):
    """The features, or InputError naming the recording where one is not a finite number."""
    if not torch.isfinite(features).all():
        raise InputError(f"{path}: its features are not finite numbers; look for damaged audio or a damaged checkpoint")
    return features


def _waveform(split, piece, statistics):
    total = int(split.n_samples[piece.utterance])
    waveform = audio.read(split.audio(piece.utterance), piece.start, piece.stop, total)
    if statistics is None:
        return waveform
    if piece.samples == total:
        return audio.normalise(waveform)
    mean, variance = statistics(piece.utterance)
    return ((waveform - mean) / np.sqrt(variance + 1e-5)).astype(np.float32)


def mean_and_variance(split, utterance):
    """Mean and variance of a recording: one in several pieces is normalised as a whole."""
    waveform = audio.read(split.audio(utterance))
    return waveform.mean(dtype=np.float64), waveform.var(dtype=np.float64)
