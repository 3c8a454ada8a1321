"""wav2vec 1.0 (Schneider et al. 2019) under an emotion model: the emotion-state estimator of P-TAPT (Chen & Rudnicky 2023).

x → z (convolutions, 100 frames/s) → masks → c (causal convolutions) → Conv1d(k=4, s=2), ReLU → 50 frames/s

Layers and parameter names are those of `fairseq.models.wav2vec.Wav2VecModel`, which gives the same numbers for a single utterance; in
a batch every GroupNorm takes its statistics over an utterance's own frames, so that a batch gives what its utterances give alone.

The last convolution, `alignment`, is no part of wav2vec: it is initialised randomly and trained with the emotion model. Its frames are
those of HuBERT (`audio.n_frames`), one for each label: c gets two frames of zeros before it, and as many after it as frame counts
ask for (0 to 2, since c reaches 65 samples beyond HuBERT's window). So frame t sees c from 2t - 2 to 2t + 1, centred 3 ms before
HuBERT's. Without padding, as in the paper's implementation, frames would be 17 ms late, and one or two fewer than labels.
"""

import logging

import torch
from fairseq.models.wav2vec.wav2vec import ConvAggegator, ConvFeatureExtractionModel
from torch import nn
from torch.nn import functional as F

from ..core.errors import InputError
from ..corpus.audio import RECEPTIVE_FIELD, n_frames
from ..pretrained.types import LoadReport, mismatch
from ..pretrained.wav2vec1 import ACTIVATIONS, WINDOW, conv_layers
from .hubert import convolved, normalised_alone, own_frames

logger = logging.getLogger(__name__)

_BEFORE = 2  # frames of zeros before c


def is_aligned(pretrained):
    """Whether a wav2vec 1 comes with its alignment, that is from an emotion model."""
    return "alignment.weight" in pretrained.weights


def build_aligned(pretrained):
    """The Wav2Vec1Encoder of an emotion model, with its weights; InputError for fairseq's own, whose frames are of another rate."""
    if not is_aligned(pretrained):
        remedy = "fine-tune an emotion model on it (model.init_from), which learns to align them, and give the checkpoint of that"
        raise InputError(f"{pretrained.path}: a wav2vec 1 as pretrained has 100 frames a second, here there are 50; {remedy}")
    model = Wav2Vec1Encoder(pretrained.config)
    model.start_from(pretrained)
    return model


class _Extractor(ConvFeatureExtractionModel):
    """x → z, each utterance as if it were alone."""

    def forward(self, source, lengths):
        """source (batch, samples), lengths: list of int → z (batch, channels, frames), frames of each utterance."""
        x, lengths = convolved(self.conv_layers, source, lengths)
        return (x.abs() + 1).log() if self.log_compression else x, lengths


class _Aggregator(ConvAggegator):
    """z → c, each utterance as if it were alone: its convolutions look back only, so that only the norms could see the padding."""

    def forward(self, x, lengths):
        """z (batch, channels, frames), frames of each utterance → c (batch, width, frames)."""
        for block, projection in zip(self.conv_layers, self.residual_proj, strict=True):
            residual = x
            x = normalised_alone(block, x, lengths)
            if self.skip_connections:
                x = (x + (residual if projection is None else projection(residual))) * self.residual_scale
        return x


class Wav2Vec1Encoder(nn.Module):
    """wav2vec 1 with frames of HuBERT's rate, in place of a SpeakerHubertModel in an emotion model; `config` is from `read_config`."""

    n_layers = 1  # the aligned frames: there is no other layer of their rate
    speakers = ()
    speaker_conditioning = None

    def __init__(self, config):
        super().__init__()
        extractor, aggregator = conv_layers(config)
        shared = {name: config[name] for name in ("residual_scale", "non_affine_group_norm")}
        shared |= {"dropout": 0.0, "activation": ACTIVATIONS[config["activation"]]()}
        self.feature_extractor = _Extractor(extractor, log_compression=config["log_compression"], skip_connections=False, **shared)
        self.feature_aggregator = _Aggregator(
            aggregator,
            embed=extractor[-1][0],
            skip_connections=config["skip_connections_agg"],
            conv_bias=not config["no_conv_bias"],
            zero_pad=config["agg_zero_pad"],
            **shared,
        )
        self.width = aggregator[-1][0]
        self.alignment = nn.Conv1d(self.width, self.width, kernel_size=4, stride=2)

    def start_from(self, pretrained):
        """Load a checkpoint's weights; an alignment that it lacks stays random. Returns the LoadReport, also logged. InputError: no fit."""
        own, source = self.state_dict(), pretrained.weights
        new = [n for n in own if n.startswith("alignment.") and n not in source]
        wrong = [n for n, w in own.items() if n not in new and (n not in source or source[n].shape != w.shape)]
        wrong += [n for n in source if n not in own]
        if wrong:
            what = f"its weights do not fit its options: {mismatch(wrong, own, source)}"
            raise InputError(f"{pretrained.path}: {what}; copy or download it again")
        self.load_state_dict(source, strict=not new)
        report = LoadReport(loaded=list(source), new=new, skipped=list(pretrained.left_out))
        logger.info("%s: wav2vec 1, without dropout: %s", pretrained.path, report)
        return report

    def forward(self, source, lengths, features_only=True, **given):
        """Aligned frames, as SpeakerHubertModel's features: dict of `x` (batch, frames, width) and `padding_mask`, or None."""
        layers, own = self.layer_features(source, lengths, [1], **given)
        alike = not torch.is_tensor(lengths) and n_frames(min(lengths)) == own.size(1)
        return {"x": layers[1], "padding_mask": None if alike else ~own}

    def layer_features(self, source, lengths, layers, mask_indices=None, mask_channel_indices=None, **speaker):
        """Aligned frames, as SpeakerHubertModel's: ({1: (batch, frames, width)}, (batch, frames) bool: an utterance's own frames). `layers`
        is [1]; masks: see `context`; `speaker` is ignored, as in a SpeakerHubertModel without speaker conditioning."""
        c, _ = self.context(source, lengths, mask_indices, mask_channel_indices)
        traced = torch.is_tensor(lengths)
        frames = n_frames(lengths) if traced else [n_frames(n) for n in lengths]
        longest = n_frames(source.size(1)) if traced else max(frames)
        c = F.pad(c, (_BEFORE, 2 * longest - c.size(2)))
        x = F.relu(self.alignment(c)).transpose(1, 2)  # (batch, frames, width)
        return dict.fromkeys(layers, x), own_frames(frames, x.size(1), x.device)

    def context(self, source, lengths, mask_indices=None, mask_channel_indices=None):
        """c, wav2vec's own features, 100 a second: (batch, width, frames), zero past an utterance's own frames, and how many each has.

        Waveforms between one frame of HuBERT and one of wav2vec (400 to 464 samples) are padded with zeros. `mask_indices` (batch, frames),
        at 50 frames a second, and `mask_channel_indices` (batch, channels of z) say where z is zero (SpecAugment: wav2vec 1 has no mask
        embedding, and the paper's implementation puts zeros there too).
        """
        if torch.is_tensor(lengths):  # while a graph is traced
            lengths = torch.where(lengths < RECEPTIVE_FIELD, 0, lengths.clamp(min=WINDOW))
            z, own = self.feature_extractor(F.pad(source, (0, WINDOW - RECEPTIVE_FIELD)), lengths)
            return self.feature_aggregator(z, own), own
        if max(lengths) < RECEPTIVE_FIELD:
            raise InputError(f"the longest utterance has {max(lengths)} samples, under one frame ({RECEPTIVE_FIELD}); leave it out")
        lengths = [max(n, WINDOW) if n >= RECEPTIVE_FIELD else 0 for n in lengths]
        source = F.pad(source, (0, max(lengths) - source.size(1)))  # also takes surplus padding off
        z, own = self.feature_extractor(source, lengths)
        if mask_indices is not None:
            z = z.masked_fill(mask_indices.repeat_interleave(2, dim=1)[:, None, : z.size(2)], 0)
        if mask_channel_indices is not None:
            z = z.masked_fill(mask_channel_indices.unsqueeze(2), 0)
        return self.feature_aggregator(z, own), own
