"""Checkpoints, ours and others': loading them safely, starting a model from them, using one as a feature extractor."""

import argparse
import hashlib
import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from fairseq import tasks
from fairseq.logging.meters import AverageMeter, StopwatchMeter, TimeMeter
from fairseq.models.hubert.hubert import HubertConfig
from omegaconf import OmegaConf

from ..corpus.audio import SAMPLE_RATE, n_frames
from ..core.errors import InputError
from ..training.patches import refused_checkpoint
from ..core.files import sha256

logger = logging.getLogger(__name__)

ENCODER = ("feature_extractor.", "layer_norm.", "post_extract_proj.", "encoder.")
"""What makes the encoder, by parameter name: all of it must load, or training does not start."""
_FAMILIES = ("hubert", "speaker_hubert", "wav2vec2", "wav2vec", "emotion_hubert")
WAV2VEC1 = "wav2vec"
"""fairseq's name for wav2vec 1.0, which only emotion models are built on (`models.wav2vec1`)."""
_CTC = ("wav2vec_ctc", "hubert_ctc")
"""fairseq's fine-tuned models: a pretrained one inside, under `w2v_encoder.w2v_model.`."""
_METERS = [(meter, f"fairseq.meters.{meter.__name__}") for meter in (AverageMeter, TimeMeter, StopwatchMeter)]
"""What fairseq of 2019, the time of wav2vec 1, kept of running means in its checkpoints; rebuilding them runs no code."""
_UNSUPPORTED = {
    "layer_type": "transformer",
    "conv_pos_batch_norm": False,
    "quantize_input": False,
    "pos_conv_depth": 1,
    "crop_seq_to_multiple": 1,
}
"""Options of fairseq's models, and the only value under which the encoder is the one here."""
_SHAPELESS = ("encoder_attention_heads", "layer_norm_first", "activation_fn")
"""Parts of the architecture that no parameter's shape tells."""
_STOCK_SPECIALS = 4
"""fairseq's dictionaries start with <s>, <pad>, </s> and <unk>: its label embeddings have four rows more than labels."""


@dataclass
class LabelSet:
    """One set of frame labels: its name in `task.labels`, its symbols, in order, and how often each occurs in training, where that is
    known. `len()` is the number of classes."""

    name: str
    symbols: list
    counts: list | None = None

    def __len__(self):
        return len(self.symbols)


@dataclass
class Pretrained:
    """A checkpoint's encoder in fairseq's terms, wherever it comes from.

    Attributes:
        path: of the file.
        family: hubert, speaker_hubert, wav2vec2, wav2vec or emotion_hubert.
        config: values for fields of SpeakerHubertConfig, or those of `models.wav2vec1.read_config`.
        normalise: whether waveforms are normalised before they go in.
        weights: parameter name → tensor, in the names of HubertModel or Wav2Vec1Encoder.
        speakers: ids of the rows of its speaker table after the unknown one.
        label_symbols: per label set its symbols, where known.
        left_out: names of parameters that are no part of the encoder: heads, quantisers.
        files: all that was read.
    """

    path: Path
    family: str
    config: dict
    normalise: bool
    weights: dict
    speakers: list = field(default_factory=list)
    label_symbols: list = field(default_factory=list)
    left_out: list = field(default_factory=list)
    files: list = field(default_factory=list)

    @property
    def n_layers(self):
        """Layers whose features can be had."""
        return self.config.get("encoder_layers", 12)

    @property
    def is_wav2vec1(self):
        """Whether it is a wav2vec 1.0, or an emotion model on one."""
        return self.config.get("_name") == WAV2VEC1

    def require_transformer(self):
        """Raise InputError for a wav2vec 1, which masked prediction cannot be continued from."""
        if self.is_wav2vec1:
            raise InputError(
                f"{self.path}: wav2vec 1 has no Transformer to pretrain; start from a HuBERT or wav2vec 2.0 "
                "(wav2vec 1 is for emotion_hubert, such as the estimator of recipes/ptapt.sh)"
            )

    @property
    def sha256(self):
        """SHA-256 of the file, or of the names and SHA-256s of several."""
        if len(self.files) == 1:
            return sha256(self.files[0])
        return hashlib.sha256("".join(f"{Path(f).name} {sha256(f)}\n" for f in self.files).encode()).hexdigest()


@dataclass
class LoadReport:
    """What became of each parameter: names by outcome."""

    loaded: list = field(default_factory=list)
    resized: list = field(default_factory=list)
    new: list = field(default_factory=list)
    skipped: list = field(default_factory=list)

    def __str__(self):
        parts = [f"{len(self.loaded)} parameters loaded"]
        for outcome in ("resized", "new", "skipped"):
            if names := getattr(self, outcome):
                parts.append(f"{len(names)} {outcome} ({', '.join(names[:6])}{', …' if len(names) > 6 else ''})")
        return "; ".join(parts)


def load_file(path):
    """Load a file that torch.save wrote without running anything in it.

    Returns:
        what it holds, tensors on the CPU.

    Raises:
        InputError: missing, damaged, or holding anything but tensors, plain values and fairseq's dictionaries and meters.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'a folder, not a checkpoint file' if path.is_dir() else 'no such checkpoint'}; correct the path")
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: weights without their architecture; give the folder that also holds its config.json")
    try:
        with torch.serialization.safe_globals(_METERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise refused_checkpoint(path, error) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        what = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: not a checkpoint, or a damaged one ({what}); copy or download it again") from error


def load_state(path):
    """Load a checkpoint of fairseq or ours without running anything in it.

    Returns:
        the dict it holds, tensors on the CPU.

    Raises:
        InputError: as from `load_file`, or not a checkpoint.
    """
    state = load_file(path)
    if not isinstance(state, Mapping) or not isinstance(state.get("model"), Mapping):
        raise InputError(f"{path}: not a fairseq checkpoint (no “model” in it); give one that fairseq or emohubert wrote")
    return state


def read_pretrained(path):
    """Read a pretrained encoder: a fairseq HuBERT or wav2vec 2.0 checkpoint (`cfg` or old `args` style, pretrained or
    fine-tuned with CTC), a wav2vec 1.0 of fairseq, one of ours, or a Hugging Face model folder.

    Raises:
        InputError: not loadable, another kind of model, or one whose results the encoder would not reproduce.
    """
    if Path(path).is_dir():
        from .huggingface import read_folder

        return read_folder(path)
    state = load_state(path)
    model, task = _configurations(state, path)
    family = model.get("_name") or model.get("arch")
    weights, left_out, backbone = dict(state["model"]), [], {}
    if family in _CTC:
        model = _inside_ctc(model, path)
        family = model.get("_name") or model.get("arch")
        weights, left_out = _under("w2v_encoder.w2v_model.", weights)
    if family == "emotion_hubert":
        backbone = dict(model["backbone"])
        model = {**backbone, "_name": family}
        weights, left_out = _under("backbone.", weights)
        task = {"normalize": model.get("normalize", False)}
    if any(name.startswith("feature_aggregator.") for name in weights) and family not in _FAMILIES:
        family = WAV2VEC1  # known by its parameters: the published one also names a task that fairseq does not have
    if family not in _FAMILIES:
        raise InputError(f"{path}: holds a model “{family}”; supported are {', '.join(_FAMILIES)}")
    if family == WAV2VEC1 or backbone.get("_name") == WAV2VEC1:
        from ..models import wav2vec1

        left_out += [k for k in weights if not k.startswith(wav2vec1.ENCODER)]
        weights = {k: w for k, w in weights.items() if k.startswith(wav2vec1.ENCODER)}
        config = wav2vec1.read_config(model, path)
        return Pretrained(Path(path), family, config, bool(task.get("normalize", False)), weights, left_out=left_out, files=[Path(path)])
    for name, supported in _UNSUPPORTED.items():
        if model.get(name, supported) != supported:
            raise InputError(f"{path}: {name}={model[name]} is not supported, only {supported}; use another checkpoint")
    known = (set(OmegaConf.structured(HubertConfig)) | {"speaker_position"}) - {"latent_temp"}  # legacy, and text in old checkpoints
    config = {k: v for k, v in model.items() if k in known and v is not None}
    if family == "wav2vec2":  # its masks and prediction heads are not those of HuBERT
        other = ("final_dim", "logit_temp", "target_glu", "mask_", "no_mask_")
        config = {k: v for k, v in config.items() if not k.startswith(other)}
        left_out += [k for k in weights if not k.startswith((*ENCODER, "mask_emb"))]
        weights = {k: v for k, v in weights.items() if k.startswith((*ENCODER, "mask_emb"))}
    task_state = state.get("task_state") or {}
    return Pretrained(
        path=Path(path),
        family=family,
        config=config,
        normalise=bool(task.get("normalize", False)),
        weights=weights,
        speakers=list(task_state.get("speakers") or []),
        label_symbols=_label_symbols(task_state),
        left_out=left_out,
        files=[Path(path)],
    )


def _configurations(state, path):
    """The model's and the task's configuration as dicts."""
    if state.get("cfg") is not None:
        cfg = OmegaConf.to_container(OmegaConf.create(state["cfg"], flags={"allow_objects": True}), resolve=False, enum_to_str=True)
        return dict(cfg.get("model") or {}), dict(cfg.get("task") or {})
    if isinstance(state.get("args"), argparse.Namespace):
        options = vars(state["args"])
        return options, options
    raise InputError(f"{path}: neither “cfg” nor “args” in this checkpoint, so its architecture is unknown; give one that fairseq wrote")


def _under(prefix, weights):
    """The weights under a prefix, without it, and the names of the others."""
    inside = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    return inside, [name for name in weights if not name.startswith(prefix)]


def _inside_ctc(model, path):
    """The configuration of the pretrained model inside a fine-tuned one."""
    pretraining = model.get("w2v_args")
    if isinstance(pretraining, Mapping):
        pretraining = pretraining.get("model") or pretraining.get("args")
    if isinstance(pretraining, argparse.Namespace):
        pretraining = vars(pretraining)
    if not isinstance(pretraining, Mapping):
        raise InputError(
            f"{path}: fine-tuned with CTC, without the options of its pretraining (“w2v_args”); give the pretrained checkpoint it started from"
        )
    return dict(pretraining)


def _label_symbols(task_state):
    if "label_sets" in task_state:
        return [list(s["symbols"]) for s in task_state["label_sets"]]
    return [list(d.symbols) for d in task_state.get("dictionaries") or [] if hasattr(d, "symbols")]


def initialise(model, pretrained):
    """Start a SpeakerHubertModel from a pretrained encoder.

    Prediction heads follow the label sets: rows are kept where the number of classes agrees (fairseq's four special rows
    dropped) and new otherwise. Speakers keep their vectors by id; new speakers start as the unknown one.

    Returns:
        LoadReport, also logged.

    Raises:
        InputError: a part of the encoder is missing, has another shape or is computed with differently; or a wav2vec 1.
    """
    pretrained.require_transformer()
    report = LoadReport()
    _check_architecture(model, pretrained)
    own = model.state_dict()
    source = dict(pretrained.weights)
    _fit_label_embeddings(model, own, source, report)
    _fit_final_projection(model, own, source, report)
    _fit_speakers(model, own, source, pretrained, report)
    wrong = [n for n, w in own.items() if n.startswith(ENCODER) and (n not in source or source[n].shape != w.shape)]
    wrong += [n for n in source if n.startswith(ENCODER) and n not in own and not _is_layer_after(n, len(model.encoder.layers))]
    if wrong:
        raise InputError(
            f"{pretrained.path}: the encoder does not fit the model: {mismatch(wrong, own, source)}; {_architecture_remedy(pretrained)}"
        )
    fitting = {n: w for n, w in source.items() if n in own and own[n].shape == w.shape}
    report.skipped += [*(n for n in source if n not in fitting), *pretrained.left_out]
    report.new += [n for n in own if n not in fitting]
    report.loaded += [n for n in fitting if n not in report.resized]
    model.load_state_dict(fitting, strict=False)
    logger.info("%s: %s", pretrained.path, report)
    return report


def _check_architecture(model, pretrained):
    theirs = encoder_config(pretrained)
    for name in _SHAPELESS:
        found, wanted = (str(getattr(c[name], "value", c[name])) for c in (model.cfg, theirs))
        if found != wanted:
            raise InputError(
                f"{pretrained.path}: the encoder does not fit the model: {name} is {found} in the model, {wanted} in the checkpoint; "
                f"set model.{name}={wanted.lower() if wanted in ('True', 'False') else wanted}"
            )


def _is_layer_after(name, layers):
    """Whether a parameter is of a Transformer layer that a model of so many layers does not keep."""
    found = re.match(r"encoder\.layers\.(\d+)\.", name)
    return found is not None and int(found.group(1)) >= layers


def mismatch(wrong, own, source):
    """What does not fit, as text: names of parameters in `own` and `source`, {name: tensor}."""
    first = wrong[0]
    if first not in own:
        return f"{len(wrong)} parameters differ, first {first}: the model lacks it"
    found = f"it is {tuple(source[first].shape)} in the checkpoint" if first in source else "the checkpoint lacks it"
    return f"{len(wrong)} parameters differ, first {first}: {tuple(own[first].shape)} in the model, {found}"


def _architecture_remedy(pretrained):
    c = pretrained.config
    return (
        f"the checkpoint has {c.get('encoder_layers')} layers × {c.get('encoder_embed_dim')} and extractor_mode={c.get('extractor_mode')}: "
        "choose the config of that size (…_tiny, …_base, …_large)"
    )


def _fit_label_embeddings(model, own, source, report):
    name = "label_embs_concat"
    if name not in own or name not in source:
        source.pop(name, None)
        return
    rows, wanted = len(source[name]), model.num_classes
    if rows == sum(k + _STOCK_SPECIALS for k in wanted) and rows != sum(wanted):
        parts = source[name].split([k + _STOCK_SPECIALS for k in wanted])
        source[name] = torch.cat([p[_STOCK_SPECIALS:] for p in parts])
        report.resized.append(name)
    elif rows != sum(wanted):
        logger.info("%s: %d label embeddings in the checkpoint, %s wanted: they start anew", name, rows, "+".join(map(str, wanted)))


def _fit_final_projection(model, own, source, report):
    """An untied projection has one block per label set: give every set the checkpoint's first block."""
    for name in ("final_proj.weight", "final_proj.bias"):
        if name not in own or name not in source or source[name].shape == own[name].shape:
            continue
        block = len(own[name]) // len(model.num_classes) if model.untie_final_proj else len(own[name])
        if source[name].shape[1:] == own[name].shape[1:] and len(source[name]) >= block:
            source[name] = torch.cat([source[name][:block]] * (len(own[name]) // block))
            report.resized.append(name)


def _fit_speakers(model, own, source, pretrained, report):
    name = "speaker_conditioning.embedding.weight"
    if name not in own or name not in source or source[name].shape[1:] != own[name].shape[1:]:
        return
    if pretrained.config.get("speaker_position") != model.speaker_conditioning.position:
        del source[name]
        return
    rows = {speaker: i for i, speaker in enumerate(pretrained.speakers, 1)}
    wanted = [0, *(rows.get(s, 0) for s in model.speakers)]
    if wanted != list(range(len(source[name]))):
        source[name] = source[name][wanted]
        report.resized.append(name)
        logger.info(
            "speakers: %d of %d known to the checkpoint, the others start as the unknown speaker",
            sum(w > 0 for w in wanted),
            len(model.speakers),
        )


def encoder_config(pretrained, **changes):
    """A SpeakerHubertConfig (as a DictConfig) with the architecture of a checkpoint, and some values changed."""
    from ..models.hubert import SpeakerHubertConfig

    return OmegaConf.merge(OmegaConf.structured(SpeakerHubertConfig), {**pretrained.config, **changes})


def build_encoder(pretrained, **changes):
    """A SpeakerHubertModel without prediction heads, with the architecture, weights and speakers of a checkpoint; the
    Wav2Vec1Encoder of an emotion model on wav2vec 1.

    Args:
        pretrained: from `read_pretrained`.
        changes: values of SpeakerHubertConfig to change, such as dropouts.
    """
    from ..models.hubert import SpeakerHubertModel
    from ..models.wav2vec1 import build_aligned

    if pretrained.is_wav2vec1:
        return build_aligned(pretrained)
    cfg = encoder_config(pretrained, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fairseq uses torch's old weight_norm
        model = SpeakerHubertModel(cfg, argparse.Namespace(sample_rate=SAMPLE_RATE), [], pretrained.speakers)
    initialise(model, pretrained)
    return model


class FrozenEncoder:
    """A pretrained encoder for features: nothing masked, nothing dropped, no gradients.

    Attributes:
        path, sha256: of the checkpoint; for a folder, the hash of all that was read from it.
        normalise: whether waveforms must be normalised (`audio.normalise`) first.
        n_layers, width: of its Transformer; of wav2vec 1, 1 and the width of its aligned frames.
        speakers: ids it has vectors for; empty without speaker conditioning.
    """

    def __init__(self, path, device="cpu"):
        pretrained = read_pretrained(path)
        self.path, self.sha256 = Path(path), pretrained.sha256
        self.device = torch.device(device)
        self.model = build_encoder(pretrained).eval().requires_grad_(False).to(self.device)
        self.normalise = pretrained.normalise
        self.n_layers, self.width = self.model.n_layers, self.model.width
        self.speakers = self.model.speakers if self.model.speaker_conditioning is not None else []

    def check_layers(self, layers):
        """Raise InputError unless all `layers` (1-based) exist."""
        wrong = [layer for layer in layers if not 1 <= layer <= self.n_layers]
        if wrong:
            has = f"layers 1 to {self.n_layers}" if self.n_layers > 1 else "one layer; use --layers 1"
            raise InputError(f"--layers {' '.join(map(str, wrong))}: {self.path} has {has}")

    def features(self, source, lengths, layers, speakers=None):
        """Features of several layers in one pass, exact under padding.

        Args:
            source: (batch, samples) float32 tensor, zero-padded; normalised where `normalise` says so.
            lengths: samples of each utterance.
            layers: 1-based, as fairseq's `output_layer`.
            speakers: speaker id of each utterance; ids without a vector, and None, are the unknown speaker.

        Returns:
            ({layer: (batch, frames, width) tensor}, frames of each utterance as an int64 array).
        """
        lengths = [int(n) for n in lengths]
        rows = None
        if self.speakers and speakers is not None:
            table = {s: i for i, s in enumerate(self.speakers, 1)}
            rows = torch.tensor([table.get(s, 0) for s in speakers], device=self.device)
        with torch.inference_mode():
            features, _ = self.model.layer_features(source.to(self.device), lengths, layers, speaker=rows)
        return features, np.array([n_frames(n) for n in lengths], dtype=np.int64)


def load_encoder(path, device="cpu"):
    """Load what `read_pretrained` reads as a FrozenEncoder.

    Raises:
        InputError: it cannot be loaded, is not a HuBERT or wav2vec 2.0, or is a wav2vec 1 without an emotion model's alignment.
    """
    return FrozenEncoder(path, device)


def load_trained(path):
    """Load one of our checkpoints with its task, as it was saved; nothing but the file is needed.

    Returns:
        (task, model): the model in eval mode on the CPU; `task.selection` is what `selection` says of the checkpoint.

    Raises:
        InputError: not loadable, or not one of ours.
    """
    state = load_state(path)
    cfg = OmegaConf.create(state.get("cfg") or {}, flags={"allow_objects": True})
    name = OmegaConf.select(cfg, "task._name")
    if name not in ("speaker_hubert_pretraining", "emotion_finetuning"):
        raise InputError(f"{path}: trained by the task “{name}”; give a checkpoint that emohubert trained")
    task = tasks.setup_task(cfg.task)
    task.load_state_dict(state.get("task_state") or {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = task.build_model(cfg.model, from_checkpoint=True)
    model.load_state_dict(state["model"], strict=True)
    task.selection = selection(state)
    return task, model.eval()


def selection(state):
    """How far a checkpoint of ours was trained and why it was kept: `epoch`, `update`, and `selected`, a phrase for reports.

    Args:
        state: from `load_state`.
    """
    cfg, extra = OmegaConf.create(state["cfg"], flags={"allow_objects": True}), state.get("extra_state") or {}
    position = extra.get("train_iterator") or {}
    done = position.get("iterations_in_epoch", 0) == 0
    epoch = position.get("epoch", 1) - done
    updates = (state.get("optimizer_history") or [{}])[-1].get("num_updates")
    metric, value, best = cfg.checkpoint.best_checkpoint_metric, extra.get("val_loss"), extra.get("best")
    if value is None:
        selected = f"the last epoch ({epoch}); nothing was selected on validation data"
    elif value == best:
        selected = f"epoch {epoch}, the best on validation data so far ({metric} {value:.3f})"
    else:
        selected = f"epoch {epoch}, not the best on validation data ({metric} {value:.3f}, best {best:.3f})"
    return {"epoch": epoch, "update": updates, "selected": selected}
