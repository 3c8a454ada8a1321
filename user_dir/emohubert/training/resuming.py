"""What a training goes on from: from the checkpoints of its own folder only as the same training, with the same data and settings."""

import fcntl
from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf

from ..core.errors import InputError, is_lack_of_memory
from ..core.files import make_folder, sha256
from ..corpus.union import as_in
from ..provenance import records

_FIXED = ("optimization.lr", "common.seed", "task", "model", "criterion", "optimizer")
"""Settings, and groups of them, that a training cannot change on its way."""
_FREE = ("task.data", "task.feature_cache", "task.check_audio")
"""Those that it can: what matters of the data is compared itself."""
_AGAIN = "or choose another checkpoint.save_dir (model.init_from starts a training from this one's weights)"
_locks = {}
_trainer = None


def loading_what_is_there(load, cfg, trainer, **options):
    """fairseq's `load_checkpoint` says nothing where a given file is missing, and ends with a traceback where it does not fit."""
    global _trainer
    for name in ("restore_file", "finetune_from_model", "continue_once"):
        path = cfg.get(name)
        if path and path != "checkpoint_last.pt" and not Path(path).exists():
            raise InputError(f"checkpoint.{name}={path}: no such file; correct the path")
    if cfg.finetune_from_model and (cfg.restore_file != "checkpoint_last.pt" or cfg.reset_optimizer or cfg.reset_dataloader):
        raise InputError("checkpoint.finetune_from_model: give it without checkpoint.restore_file and checkpoint.reset_…")
    _trainer = trainer
    try:
        return load(cfg, trainer, **options)
    finally:
        _trainer = None


def naming_unfit_states(load, trainer, path, *args, **options):
    """What a checkpoint holds is taken as it is by fairseq: one of another model or training, or of another program, is a traceback."""
    try:
        return load(trainer, path, *args, **options)
    except (InputError, ImportError, NameError):
        raise
    except Exception as error:
        if "ensure that the architectures match" in str(error):
            raise InputError(f"{path}: is of another architecture; give a checkpoint of this model") from error
        if is_lack_of_memory(error):
            raise
        what = f"cannot be gone on from ({type(error).__name__}: {(str(error).splitlines() or [''])[0]:.100})"
        raise InputError(f"{path}: {what}; start from its weights with model.init_from or checkpoint.finetune_from_model") from error


def check(state, path):
    """Raise InputError unless a training that is being started may go on from the state of a checkpoint file: one of its own folder must be
    of the same training; of any other the speakers that it was trained on are kept in mind."""
    if not isinstance(state, Mapping) or not isinstance(state.get("model"), Mapping):
        raise InputError(f"{path}: not a checkpoint that fairseq wrote; give one that it did")
    if _trainer is None:
        return
    task_state, own = state.get("task_state") or {}, _trainer.task.state
    if Path(path).resolve().parent != Path(_trainer.cfg.checkpoint.save_dir).resolve():
        if "training_speakers" in task_state:
            own.merge_state_dict({"earlier_speakers": earlier_speakers(getattr(own, "earlier_speakers", ()), task_state)})
        return
    own.merge_state_dict({name: value for name, value in task_state.items() if name == "earlier_speakers"})
    before = _fixed(OmegaConf.create(state.get("cfg") or {}, flags={"allow_objects": True}), task_state)
    now = _fixed(_trainer.cfg, own.state_dict)
    changed = [name for name in now if name in before and not _same(name, before[name], now[name])]
    if changed:
        more = f" ({len(changed)} differences in all)" if len(changed) > 1 else ""
        what = f"{changed[0]} was {before[changed[0]]:.80} and is now {now[changed[0]]:.80}{more}"
        raise InputError(f"{path}: is of a training with other settings: {what}; use those to go on, {_AGAIN}")


def _fixed(cfg, task_state):
    """{name: value} of what is fixed in a configuration, and of a task's state."""
    found = {f"the task's {name}": value for name, value in task_state.items()}
    for name in _FIXED:
        value = OmegaConf.select(cfg, name)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True, enum_to_str=True)
        found |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return {name: str(value) for name, value in found.items() if name not in _FREE}


def _same(name, before, now):
    """Whether two values differ in nothing but spaces, or are paths to the same file or the same label files, or to what has moved."""
    if name in ("task.label_dir", "model.init_from") and before != now and "None" not in (before, now):
        return not Path(before).exists() or _content(Path(before)) == _content(Path(now))
    return before.replace(" ", "") == now.replace(" ", "")


def _content(path):
    files = [path] if path.is_file() else sorted(path.rglob("*.km"))
    return [(file.name, sha256(file)) for file in files]


def earlier_speakers(known, task_state):
    """The speakers that a model has been trained on before this training: those `known` and those of another task's state."""
    own = as_in(None, task_state.get("training_speakers", ()), task_state.get("corpus"))  # as ids without a corpus
    return sorted({*known, *task_state.get("earlier_speakers", ()), *own})


def check_data(folder, split, kept):
    """Raise InputError if a folder's training has seen other utterances than a split's, of which `kept` are the indices."""
    utterances = [([s.paths[i] for i in own], [int(s.n_samples[i]) for i in own]) for s, own in split.of_directories(kept)]
    for path in sorted(Path(folder).glob(f"{split.name}-*{records.SUFFIX}")):
        seen = records.read(path).utterances
        if (seen.paths, seen.n_samples) not in utterances:
            raise InputError(f"{folder}: its training has seen other data ({path.name}) than {split.tsv}; go on with that, {_AGAIN}")


def only_here(folder):
    """Make a training's folder this process's for as long as it lives; InputError if another has it."""
    path = make_folder(folder) / ".lock"
    if path in _locks:
        return
    try:
        _locks[path] = open(path, "w")  # noqa: SIM115  kept open
        fcntl.flock(_locks[path], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        del _locks[path]
        remedy = "wait for it, or choose another checkpoint.save_dir"
        raise InputError(f"{folder}: another training is at work in this folder; {remedy}") from None
    except OSError:  # a file system without locks
        pass
