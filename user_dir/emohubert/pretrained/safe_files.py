"""Reading checkpoint files without running anything that is in them."""

import argparse
import functools
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..core.errors import InputError, taken_apart


def load_file(path):
    """Load a file of torch.save, to the CPU, without running anything in it; InputError if it is missing, damaged, or holds anything but
    tensors, plain values and fairseq's dictionaries."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'a folder, not a checkpoint file' if path.is_dir() else 'no such checkpoint'}; correct the path")
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: weights without their architecture; give the folder that also holds its config.json")
    allow_checkpoint_classes()
    with taken_apart(path):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise refused_checkpoint(path, error) from None


def load_state(path):
    """Load a checkpoint of fairseq or ours, a dict; InputError as from `load_file`, or if it is not one."""
    state = load_file(path)
    if not isinstance(state, Mapping) or not isinstance(state.get("model"), Mapping):
        raise InputError(f"{path}: not a fairseq checkpoint (no “model” in it); give one that fairseq or emohubert wrote")
    for name, w in state["model"].items():
        if not isinstance(name, str) or not isinstance(w, torch.Tensor) and name != "_ema":  # data2vec's teacher
            raise InputError(f"{path}: {name!s:.100} in its “model” is no tensor; copy or download it again")
    return state


def refused_checkpoint(path, error):
    """The InputError for a file that torch refused to unpickle: code in it, or no checkpoint at all."""
    with open(path, "rb") as f:
        begin = f.read(200).lstrip()
    if begin.startswith(b"version https://git-lfs"):
        return InputError(f"{path}: a pointer of git-lfs, not the file itself; get it with: git lfs pull")
    if begin[:1] in (b"<", b"{", b"["):
        return InputError(f"{path}: {'a web page' if begin[:1] == b'<' else 'JSON'}, no checkpoint; download the file itself")
    if begin[:2] not in (b"PK", b"\x80\x02"):
        return InputError(f"{path}: not a checkpoint, or a damaged one; copy or download it again")
    found = re.search(r"(?:GLOBAL|global|function|class)\s+`?([\w.]+\.[\w.]+)", str(error))
    what = f"it holds {found.group(1)}, which could run code" if found else "it is not made of tensors and plain values only"
    return InputError(f"{path}: refused: {what}; nothing in it was run. Use a checkpoint that you trust, saved again without it")


@functools.cache
def allow_checkpoint_classes():
    """Allow the two classes that fairseq's checkpoints hold: `Dictionary` (label dictionaries in the task's state) and `argparse.Namespace`
    (the options of old checkpoints). Rebuilding either runs no code from the file. torch ≥ 2.6 loads nothing but tensors and plain
    containers by default, so that fairseq could neither resume nor load."""
    from fairseq.data.dictionary import Dictionary

    torch.serialization.add_safe_globals([Dictionary, argparse.Namespace])
