"""Checkpoints, ours and others': loading them safely, starting a model from them, using one as a feature extractor."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

from fairseq.models.hubert.hubert import HubertConfig
from omegaconf import OmegaConf

from ..core.errors import InputError
from . import wav2vec1
from .huggingface import read_folder
from .safe_files import load_state
from .types import ENCODER, WAV2VEC1, Pretrained

logger = logging.getLogger(__name__)

_FAMILIES = ("hubert", "speaker_hubert", "wav2vec2", "wav2vec", "emotion_hubert")
_CTC = ("wav2vec_ctc", "hubert_ctc")
"""fairseq's fine-tuned models: a pretrained one inside, under `w2v_encoder.w2v_model.`."""
_UNSUPPORTED = {
    "layer_type": "transformer",
    "conv_pos_batch_norm": False,
    "quantize_input": False,
    "pos_conv_depth": 1,
    "crop_seq_to_multiple": 1,
}
"""Options of fairseq's models, and the only value under which the encoder is the one here."""


def read_pretrained(path):
    """Read a pretrained encoder: a fairseq HuBERT or wav2vec 2.0 checkpoint (`cfg` or old `args` style, pretrained or
    fine-tuned with CTC), a wav2vec 1.0 of fairseq, one of ours, or a Hugging Face model folder.

    Raises:
        InputError: not loadable, another kind of model, or one whose results the encoder would not reproduce.
    """
    if Path(path).is_dir():
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
