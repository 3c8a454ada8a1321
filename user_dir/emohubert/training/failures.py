"""What ends a training, as one line: settings that fairseq does not know, and what input, memory or other programs do to it meanwhile."""

import difflib
import errno
import os
import re

from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY
from fairseq.utils import import_user_module
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..core.errors import InputError, is_lack_of_memory, print_error, wants_traceback

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_WORKERS = re.compile(r"DataLoader worker \(pid.*|.*(?:/torch_\S+>|received \d+ items of ancdata|Too many open files).*")


def in_one_line(main, cfg, **options):
    """fairseq's training from its configuration on; what `as_input_error` knows ends it with one line `error: …` and exit status 2."""
    for folder in getattr(import_user_module, "memo", ()):  # that config/_run.yaml found by its own place, which is not known any more
        os.environ.setdefault("EMOHUBERT_USER_DIR", folder)
    try:
        check_settings(cfg)
        return main(cfg, **options)
    except Exception as error:
        if (known := as_input_error(error)) is None:
            raise
        print_error(known)
        raise SystemExit(2) from None


def as_input_error(error):
    """The InputError that an exception of a training stands for, or None: then a traceback is due."""
    if wants_traceback():
        return None
    text = str(error)
    if isinstance(error, InputError):  # a data worker's holds its traceback
        return InputError(text.rpartition("InputError: ")[2].rpartition("WriteError: ")[2].strip())
    if isinstance(error, OmegaConfBaseException):
        return InputError(f"{error.full_key or 'configuration'}: {text.splitlines()[0]}; correct it")
    if isinstance(error, OSError) and error.errno in _FULL:
        remedy = "free some space: the same command goes on from the last checkpoint"
        return InputError(f"{error.filename or 'the log'}: cannot be written ({error.strerror}); {remedy}")
    if is_lack_of_memory(error):
        remedy = "lower task.max_sample_size, dataset.max_tokens, dataset.batch_size or dataset.num_workers"
        return InputError(f"too little memory ({(text.splitlines() or [type(error).__name__])[0]:.100}); {remedy}")
    if isinstance(error, FloatingPointError):
        return InputError(f"the training diverges ({text}); lower optimization.lr, or set optimization.clip_norm, and start again")
    if isinstance(error, RuntimeError) and (found := _WORKERS.search(text)):
        remedy = "it may have had too little memory, shared memory (/dev/shm) or open files: lower dataset.num_workers"
        return InputError(f"dataset.num_workers: a worker failed ({found[0]:.200}); {remedy}")
    return None


def check_settings(cfg):
    """Raise InputError for a task, model, criterion, optimizer or schedule that nobody has registered, and for options that it does not
    have, or values of another type. fairseq says a KeyError, or lists what it knows."""
    groups = {name: (known["registry"], known["dataclass_registry"]) for name, known in REGISTRIES.items()}
    groups |= {"task": (TASK_REGISTRY, TASK_DATACLASS_REGISTRY)}
    groups |= {"model": ({**ARCH_MODEL_REGISTRY, **MODEL_REGISTRY}, MODEL_DATACLASS_REGISTRY)}
    for group, (classes, options) in groups.items():
        given = cfg.get(group)
        name = given if isinstance(given, str) else given and given.get("_name")
        if name is None and group in ("task", "model", "criterion", "optimizer"):
            raise InputError(f"{group}._name is missing; give a configuration that has it, such as those in config/")
        if name is not None and name not in classes:
            ours = [n for n, c in classes.items() if group != "lr_scheduler" and c.__module__.startswith("emohubert.")]
            raise InputError(f"{group}._name={name}: unknown; use one of {', '.join(ours or sorted(classes))}")
        if OmegaConf.is_config(given) and options.get(name) is not None:
            _check_options(group, given, options[name])


def _check_options(group, given, options):
    known = OmegaConf.structured(options)
    names = [*known]  # `in` finds none whose value is missing
    for key in given:
        if key not in names:
            similar = difflib.get_close_matches(key, names, n=1) or [", ".join(names)]
            raise InputError(f"{group}.{key}: there is no such option; use {group}.{similar[0]}")
    try:
        merged = OmegaConf.merge(known, given)
        merged.__dict__["_parent"] = given.__dict__["_parent"]  # for what it takes from other groups; as fairseq does
        missing = OmegaConf.missing_keys(merged)
    except OmegaConfBaseException as error:
        raise InputError(f"{group}.{error.full_key}: {str(error).splitlines()[0]}; correct it") from None
    if missing:
        raise InputError(f"{group}.{min(missing)} is missing; give {group}.{min(missing)}=…")
