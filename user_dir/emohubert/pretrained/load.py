"""Pretrained encoders, ours and others', in fairseq's terms."""

import argparse
from pathlib import Path

import torch
from fairseq.models.hubert.hubert import HubertConfig
from omegaconf import OmegaConf

from ..core.errors import InputError, taken_apart
from ..core.programs import shipped
from .huggingface import read_folder
from .safe_files import load_state
from .types import ENCODER, LORA, Pretrained

_FAMILIES = ("hubert", "speaker_hubert", "wav2vec2", "wavlm", "data2vec_audio", "emotion_hubert")
_ONLY = {"layer_type": "transformer", "conv_pos_batch_norm": False, "quantize_input": False, "crop_seq_to_multiple": 1}
"""Options of fairseq's models, and the only value under which the encoder is the one here."""
_OURS = {"speaker_position", "speaker_fc", "relative_position_buckets", "relative_position_distance", "pos_conv_depth"}
"""Fields of SpeakerHubertConfig that fairseq's HubertConfig lacks, of those that say what the encoder computes."""


def read_pretrained(path):
    """Read a pretrained encoder: a HuBERT, wav2vec 2.0 or data2vec audio checkpoint of fairseq (`cfg` or old `args` style), Microsoft's
    WavLM, one of ours, its LoRA merged, or a Hugging Face model folder; `small`: the one in the package. InputError: not loadable, another
    kind of model, or one whose results the encoder would not reproduce."""
    path = shipped(path)
    with taken_apart(path):
        return read_folder(path) if Path(path).is_dir() else _read_file(path)


def _read_file(path):
    state = load_state(path)
    model, task = _configurations(state, path)
    family = model.get("_name") or model.get("arch")
    weights, left_out = dict(state["model"]), []
    if family == "emotion_hubert":
        model = dict(model["backbone"])
        task = {"normalize": model.get("normalize", False) if task.get("normalize") is None else task["normalize"]}
        left_out = [name for name in weights if not name.startswith("backbone.")]
        weights = {name.removeprefix("backbone."): w for name, w in weights.items() if name.startswith("backbone.")}
    if family not in _FAMILIES:
        raise InputError(f"{path}: holds a model “{family}”; supported are {', '.join(_FAMILIES)}")
    config = _hubert_config(model, path)
    if family in ("wav2vec2", "wavlm", "data2vec_audio"):  # their masks and prediction heads are not those of HuBERT
        other, keep = ("final_dim", "logit_temp", "target_glu", "mask_", "no_mask_"), (*ENCODER, "mask_emb")
        config = {k: v for k, v in config.items() if not k.startswith(other)}
        left_out += [k for k in weights if not k.startswith(keep)]
        weights = {k: w for k, w in weights.items() if k.startswith(keep)}
    _merge_lora(weights, model)
    task_state = state.get("task_state") or {}
    normalise = bool(task_state.get("normalise", task.get("normalize", False)))
    return Pretrained(Path(path), family, config, normalise, weights, task_state, left_out, [Path(path)])


def _hubert_config(model, path):
    """What fields of SpeakerHubertConfig a model's options give."""
    for name, supported in _ONLY.items():
        if model.get(name, supported) != supported:
            raise InputError(f"{path}: {name}={model[name]} is not supported, only {supported}; use another checkpoint")
    known = set(OmegaConf.structured(HubertConfig)) | _OURS
    known -= {"latent_temp"}  # legacy, and text in old checkpoints
    return {k: v for k, v in model.items() if k in known and v is not None}


def _merge_lora(weights, model):
    """Put W + α/r · B A of `models.lora` in the place of W, A and B."""
    for name in [name for name in weights if name.endswith(f"{LORA}original")]:
        name = name.removesuffix("original")
        weight, a, b = (weights.pop(name + part).float() for part in ("original", "0.lora_A", "0.lora_B"))
        weights[name.replace(LORA, ".weight")] = torch.addmm(weight, b, a, alpha=model["lora_alpha"] / model["lora_rank"])


def _configurations(state, path):
    """The model's and the task's configuration as dicts."""
    if state.get("cfg") is not None:
        cfg = OmegaConf.to_container(OmegaConf.create(state["cfg"], flags={"allow_objects": True}), resolve=False, enum_to_str=True)
        if "relative_position_embedding" in cfg:  # Microsoft's WavLM has one flat table
            cfg["_name"] = "wavlm"
            if cfg["relative_position_embedding"]:
                if not cfg.get("gru_rel_pos"):
                    what = "gru_rel_pos=False is not supported, only relative positions with gates"
                    raise InputError(f"{path}: {what}; use another checkpoint")
                buckets, distance = cfg.get("num_buckets", 320), cfg.get("max_distance", 1280)
                cfg |= {"relative_position_buckets": buckets, "relative_position_distance": distance}
            return cfg, cfg
        return dict(cfg.get("model") or {}), dict(cfg.get("task") or {})
    if isinstance(state.get("args"), argparse.Namespace):
        options = vars(state["args"])
        return options, options
    raise InputError(f"{path}: neither “cfg” nor “args” in this checkpoint, so its architecture is unknown; give one that fairseq wrote")
