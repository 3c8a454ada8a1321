"""Starting a model from a pretrained encoder, and using one as a frozen feature extractor."""

import argparse
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf, open_dict

from ..core.errors import InputError, taken_apart
from ..corpus.audio import SAMPLE_RATE, n_frames
from ..pretrained.load import read_pretrained
from ..pretrained.types import ENCODER, LORA, LoadReport, mismatch, parse_conv_layers
from .hubert import SpeakerHubertConfig, SpeakerHubertModel

logger = logging.getLogger(__name__)

_RELATIVE_POSITIONS = ("relative_position_buckets", "relative_position_distance")
_SHAPELESS = ("encoder_attention_heads", "layer_norm_first", "activation_fn", "pos_conv_depth", *_RELATIVE_POSITIONS)
"""What the shapes of parameters do not tell of the architecture."""
_STOCK_SPECIALS = 4  # fairseq's label embeddings have as many rows more than labels: <s>, <pad>, </s> and <unk>


def initialise(model, pretrained):
    """Start a SpeakerHubertModel from a pretrained encoder; returns the LoadReport, also logged.

    Prediction heads follow the label sets: rows are kept where the number of classes agrees (fairseq's four special rows
    dropped) and new otherwise. Speakers keep their vectors by id; new speakers start as the unknown one.

    InputError: a part of the encoder is missing, has another shape or is computed differently.
    """
    _check_architecture(model, pretrained)
    state, source, report = model.state_dict(), dict(pretrained.weights), LoadReport()
    places = {n.replace(f"{LORA}original", ".weight"): n for n in state}
    own = {n: state[place] for n, place in places.items()}
    _fit_predictions(model, own, source, report)
    _fit_speakers(model, own, source, pretrained, report)
    needed = {n: w for n, w in own.items() if n.startswith(ENCODER) and LORA not in n}
    wrong = [n for n, w in needed.items() if n not in source or source[n].shape != w.shape]
    left = tuple(f"encoder.layers.{i}." for i in range(model.n_layers, pretrained.n_layers))  # layers that the model does without
    wrong += [n for n in source if n.startswith(ENCODER) and n not in own and not n.startswith(left)]
    if wrong:
        c = pretrained.config
        has = f"{c.get('encoder_layers')} layers × {c.get('encoder_embed_dim')} and extractor_mode={c.get('extractor_mode')}"
        what = f"the encoder does not fit the model: {mismatch(wrong, own, source)}; the checkpoint has {has}"
        raise InputError(f"{pretrained.path}: {what}: choose the config of that size (…_tiny, …_base, …_large)")
    fitting = {n: w for n, w in source.items() if n in own and own[n].shape == w.shape}
    report.skipped += [*(n for n in source if n not in fitting), *pretrained.left_out]
    report.new += [n for n in own if n not in fitting]
    report.loaded += [n for n in fitting if n not in report.resized]
    model.load_state_dict({places[n]: w for n, w in fitting.items()}, strict=False)
    logger.info("%s: %s", pretrained.path, report)
    return report


def adopt(cfg, pretrained):
    """Put into a model's configuration what the configurations for HuBERT leave open: how a WavLM or a data2vec knows positions, and how
    data2vec, of any size, normalises. Returns whether it is a data2vec."""
    theirs = encoder_config(pretrained.config)
    data2vec = theirs.pos_conv_depth > 1
    names = _RELATIVE_POSITIONS if theirs.relative_position_buckets else ()
    names = (*names, "pos_conv_depth", "conv_pos", "extractor_mode", "layer_norm_first") if data2vec else names
    with open_dict(cfg):
        cfg.update({name: theirs[name] for name in names})
    return data2vec


def _check_architecture(model, pretrained):
    theirs = encoder_config(pretrained.config)
    for name in _SHAPELESS:
        found, wanted = str(model.cfg[name]), str(theirs[name])
        if found != wanted:
            remedy = f"set model.{name}={wanted.lower() if wanted in ('True', 'False') else wanted}"
            what = f"the encoder does not fit the model: {name} is {found} in the model, {wanted} in the checkpoint"
            raise InputError(f"{pretrained.path}: {what}; {remedy}")


def _fit_predictions(model, own, source, report):
    """Fit label embeddings and projection to the label sets; an untied projection gives every set the checkpoint's first block."""
    name = "label_embs_concat"
    if name in own and name in source:
        rows, wanted = len(source[name]), model.num_classes
        if rows == sum(k + _STOCK_SPECIALS for k in wanted):
            parts = source[name].split([k + _STOCK_SPECIALS for k in wanted])
            source[name] = torch.cat([p[_STOCK_SPECIALS:] for p in parts])
            report.resized.append(name)
        elif rows != sum(wanted):
            logger.info("label embeddings: %d in the checkpoint, %s wanted: they start anew", rows, "+".join(map(str, wanted)))
    for name in ("final_proj.weight", "final_proj.bias"):
        if name not in own or name not in source or source[name].shape == own[name].shape:
            continue
        block = len(own[name]) // len(model.num_classes) if model.untie_final_proj else len(own[name])
        if source[name].shape[1:] == own[name].shape[1:] and len(source[name]) >= block:
            source[name] = torch.cat([source[name][:block]] * (len(own[name]) // block))
            report.resized.append(name)


def _fit_speakers(model, own, source, pretrained, report):
    """Choose the rows of the model's speakers. Conditioning at another position starts anew, or without the checkpoint's `fc`."""
    name = "speaker_conditioning.embedding.weight"
    if name not in own or name not in source:
        return
    theirs = pretrained.config
    if theirs.get("speaker_position") != model.cfg.speaker_position or (theirs.get("speaker_fc") and not model.cfg.speaker_fc):
        for name in [n for n in source if n.startswith("speaker_conditioning.")]:
            del source[name]
        return
    rows = {speaker: i for i, speaker in enumerate(pretrained.speakers, 1)}
    wanted = [0, *(rows.get(s, 0) for s in model.speakers)]
    if wanted != list(range(len(source[name]))):
        source[name] = source[name][wanted]
        report.resized.append(name)
        known = sum(w > 0 for w in wanted)
        logger.info("speakers: %d of %d known to the checkpoint, the others start as the unknown speaker", known, len(model.speakers))


def encoder_config(values, **changes):
    """A SpeakerHubertConfig, as a DictConfig, with some values."""
    return OmegaConf.merge(OmegaConf.structured(SpeakerHubertConfig), {**values, **changes})


def build_encoder(pretrained, **changes):
    """A SpeakerHubertModel without prediction heads, with the architecture, weights and speakers of a Pretrained but for `changes` of its
    SpeakerHubertConfig, such as dropouts."""
    with warnings.catch_warnings(), taken_apart(pretrained.path):
        warnings.simplefilter("ignore", FutureWarning)  # fairseq uses torch's old weight_norm
        check_sizes(pretrained.config, pretrained.weights, pretrained.path)
        cfg = encoder_config(pretrained.config, **changes)
        model = SpeakerHubertModel(cfg, argparse.Namespace(sample_rate=SAMPLE_RATE), [], pretrained.speakers)
    initialise(model, pretrained)
    return model


def check_sizes(config, weights, path):
    """Raise InputError where values of a SpeakerHubertConfig are not of the size of the weights {name: tensor} that come with them: whoever
    builds that encoder would take any memory and time that it asks for."""
    with taken_apart(path):
        cfg = encoder_config(config)
        width, convolutions = cfg.encoder_embed_dim, parse_conv_layers(cfg.conv_feature_layers)
    expected = {f"encoder.layers.{cfg.encoder_layers - 1}.fc1.weight": (cfg.encoder_ffn_embed_dim, width)}
    if cfg.pos_conv_depth == 1:
        expected["encoder.pos_conv.0.weight_v"] = (width, width // max(cfg.conv_pos_groups, 1), cfg.conv_pos)
    for i, (channels, kernel, _) in enumerate(convolutions):
        expected[f"feature_extractor.conv_layers.{i}.0.weight"] = (channels, convolutions[i - 1][0] if i else 1, kernel)
    found = {name.replace(f"{LORA}original", ".weight"): tuple(w.shape) for name, w in weights.items()}
    found = {name: found.get(name, "not there") for name in expected}
    wrong = [f"{name} should be {shape} and is {found[name]}" for name, shape in expected.items() if found[name] != shape]
    if cfg.final_dim > max(4096, *weights.get("final_proj.weight", torch.empty(0)).shape):
        wrong.append(f"final_dim is {cfg.final_dim}")
    if wrong:
        raise InputError(f"{path}: the configuration is of another model than the weights: {wrong[0]}; copy both from one model")


class FrozenEncoder:
    """A pretrained encoder for features: nothing masked, nothing dropped, no gradients. Of it are `path`, `sha256` (of a folder: of all
    that was read from it), `n_layers` and `width`, `speakers`, ids it has vectors for, and `normalise`: whether waveforms must go through
    `audio.normalise` first."""

    def __init__(self, path, device="cpu"):
        pretrained = read_pretrained(path)
        self.path, self.sha256 = Path(pretrained.path), pretrained.sha256
        self.device = torch.device(device)
        self.model = build_encoder(pretrained).eval().requires_grad_(False).to(self.device)
        self.normalise = pretrained.normalise
        self.n_layers, self.width = self.model.n_layers, self.model.width
        self.speakers = self.model.speakers if self.model.speaker_conditioning is not None else []

    def check_layers(self, layers):
        """Raise InputError unless all `layers` (1-based) exist."""
        if wrong := [layer for layer in layers if not 1 <= layer <= self.n_layers]:
            has = f"layers 1 to {self.n_layers}" if self.n_layers > 1 else "one layer; use --layers 1"
            raise InputError(f"--layers {' '.join(map(str, wrong))}: {self.path} has {has}")

    def features(self, source, lengths, layers, speakers=None):
        """Features of several layers in one pass, exact under padding: ({layer: (batch, frames, width)}, frames of each utterance).
        `source`: (batch, samples) float32 tensor, zero-padded, normalised where `normalise` says so; `lengths`: samples of each utterance;
        `layers`: 1-based; `speakers`: id of each utterance's, where ids without a vector, and None, are the unknown speaker."""
        lengths = [int(n) for n in lengths]
        rows = None
        if self.speakers and speakers is not None:
            table = {s: i for i, s in enumerate(self.speakers, 1)}
            rows = torch.tensor([table.get(s, 0) for s in speakers], device=self.device)
        with torch.inference_mode():
            features, _ = self.model.layer_features(source.to(self.device), lengths, layers, speaker=rows)
        return features, np.array([n_frames(n) for n in lengths], dtype=np.int64)


def load_encoder(path, device="cpu"):
    """Load what `read_pretrained` reads as a FrozenEncoder; InputError as from there."""
    return FrozenEncoder(path, device)
