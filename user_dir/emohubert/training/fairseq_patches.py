"""Patches to fairseq for current PyTorch, from outside. Each says what is broken and where."""

import contextlib
import errno
import logging
import os
import pickle
import shutil
import sys
import weakref
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.data import data_utils
from fairseq.data.iterators import EpochBatchIterator, FrozenBatchSampler
from fairseq.distributed import utils as fairseq_utils
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer
from hydra.core.hydra_config import HydraConfig
from omegaconf import ListConfig

from ..core.device import has_bf16
from ..core.errors import InputError, is_lack_of_memory
from ..core.files import atomic, make_folder
from ..corpus.audio import SAMPLE_RATE
from ..pretrained.safe_files import allow_checkpoint_classes, refused_checkpoint
from ..provenance import records
from . import failures, launch, processes, resuming
from .processes import patch

logger = logging.getLogger(__name__)


def apply():
    """Apply every patch; harmless when repeated."""
    allow_checkpoint_classes()
    patch(checkpoint_utils, "load_checkpoint_to_cpu", refusing_unfit_checkpoints)
    patch(checkpoint_utils, "load_checkpoint", resuming.loading_what_is_there)
    patch(checkpoint_utils, "verify_checkpoint_directory", preparing_output_folder)
    patch(checkpoint_utils, "torch_persistent_save", saving_whole)
    patch(PathManager, "copy", copying_whole, static=True)
    patch(data_utils, "_find_extra_valid_paths", looking_into_all_folders)
    patch(EpochBatchIterator, "__init__", ending_workers_with_their_iterator)
    patch(FrozenBatchSampler, "__init__", ending_iterators_with_their_epoch)
    patch(Trainer, "__init__", half_precision_without_a_gpu)
    patch(Trainer, "load_checkpoint", resuming.naming_unfit_states)
    patch(Trainer, "_build_optimizer", naming_unfit_optimizers)
    patch(Trainer, "get_train_iterator", recording_what_is_seen)
    patch(Trainer, "valid_step", marking_empty_batches)
    patch(Trainer, "train_step", without_empty_parts)
    patch(fairseq_utils, "call_main", processes.call_main)
    if "fairseq_cli.train" in sys.modules:
        patch(sys.modules["fairseq_cli.train"], "get_valid_stats", naming_metrics)
    if "fairseq_cli.hydra_train" in sys.modules:
        patch(sys.modules["fairseq_cli.hydra_train"], "_hydra_main", failures.in_one_line)


def refusing_unfit_checkpoints(load, path, *args, **kwargs):
    """torch's own message for a refused file tells the reader to switch the safety off; say what was found instead. For a damaged file fairseq
    has a traceback, and none for one of another training."""
    try:
        state = load(path, *args, **kwargs)
    except pickle.UnpicklingError as error:
        raise refused_checkpoint(path, error) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if is_lack_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"{path}: cannot be read ({error.strerror}); the same command goes on from there once it can") from error
        others = sorted(set(Path(path).parent.glob("checkpoint*.pt")) - {Path(path)}, key=lambda p: p.stat().st_mtime)
        remedy = f"copy {others[-1].name} over it to go on from there" if others else "remove it to start anew"
        raise InputError(f"{path}: not a checkpoint, or a damaged one ({' '.join(str(error).split())[:100]}); {remedy}") from error
    resuming.check(state, path)
    return state


def preparing_output_folder(_, save_dir):
    """fairseq dies with a traceback where `checkpoint.save_dir` cannot be written; say so in one line, and log into that folder. Hydra would
    do the logging, but makes its folder before any plug-in is loaded (config/_run.yaml keeps it from that)."""
    folder = make_folder(save_dir)
    resuming.only_here(folder)
    for part in folder.glob("checkpoint*.pt.tmp"):  # of a training that was killed
        part.unlink()
    if HydraConfig.initialized() or torch.distributed.is_initialized():
        handler = logging.FileHandler(folder / "hydra_train.log")
        handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
        handler.handleError = lambda _: None  # on a full disk, a traceback a line; saving a checkpoint will say so
        logging.getLogger().addHandler(handler)
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and processes.is_first():
            logging.getLogger().addHandler(launch.TerminalBar(folder))


def copying_whole(copy, src_path, dst_path, overwrite=False):
    """`checkpoint_last.pt` and `checkpoint_best.pt` are plain copies: a kill during one leaves half a file. Rename a whole copy instead."""
    if PathManager.path_requires_pathmanager(dst_path):
        return copy(src_path, dst_path, overwrite)
    with _replacing(dst_path) as new, open(src_path, "rb") as old:
        shutil.copyfileobj(old, new, 1 << 20)
    return True


def looking_into_all_folders(find, data):
    """fairseq takes `task.data` for one folder."""
    return set().union(*map(find, map(str, data if isinstance(data, (list, ListConfig)) else [data])))


def saving_whole(save, state, path, async_write=False):
    """fairseq leaves a `.tmp` where the disk is full, after three tries."""
    if async_write:
        return save(state, path, async_write)
    with _replacing(path) as f:
        try:
            torch.save(state, f.name)
        except RuntimeError as error:  # torch's own writer does not say why
            if not any(writer in str(error) for writer in ("inline_container", "iostream")):
                raise
            raise OSError(errno.ENOSPC, "is the disk full?") from error


def _replacing(path):
    """A new file that takes the place of a checkpoint once it is whole."""
    return atomic(path, "wb", "the checkpoints before it are whole. Free some space: the same command goes on from the last")


def ending_workers_with_their_iterator(init, self, *args, **kwargs):
    """fairseq has loaders keep their worker processes for the next epoch or validation, but makes new loaders for it. Only garbage collection
    ends the old ones, in any thread and with closed queues: torch then waits five seconds for each worker before it kills it."""
    init(self, *args, **{**kwargs, "persistent_workers": False})


def ending_iterators_with_their_epoch(init, self, ordered_batches, *args, **kwargs):
    """An epoch's iterator refers to itself through its batch sampler, so that only garbage collection ends it. The sampler must not hold it."""
    method = weakref.WeakMethod(ordered_batches)
    init(self, lambda *values: method()(*values), *args, **kwargs)


def half_precision_without_a_gpu(init, self, cfg, task, *args, **kwargs):
    """fairseq asks for an NVIDIA driver where a config wants half precision and there is no GPU. bf16 is then torch's autocast in
    `SpeechTask.train_step`, with float32 weights, where the processor has it; all else is float32."""
    if not torch.cuda.is_available() or cfg.common.cpu:
        wanted = [name for name in ("bf16", "fp16", "amp") if cfg.common[name]]
        for name in wanted:
            cfg.common[name] = False
        if wanted[:1] == ["bf16"] and has_bf16(torch.device("cpu")):
            task.precision = "bf16"
        elif wanted:
            logger.warning("common.%s: this machine cannot do that at speed; training in float32", wanted[0])
    init(self, cfg, task, *args, **kwargs)


def recording_what_is_seen(get, self, epoch, combine=True, load_dataset=True, **options):
    """fairseq keeps no list of what a model was trained on: write it beside the checkpoints once all data is there (see `records`)."""
    iterator = get(self, epoch, combine, load_dataset, **options)
    if load_dataset and self.is_data_parallel_master and hasattr(self.task, "label_folders"):
        dataset = self.task.datasets[self.cfg.dataset.train_subset]
        resuming.check_data(self.cfg.checkpoint.save_dir, dataset.split, dataset.seen)
        records.write_training(self.cfg, self.task)
    return iterator


def naming_unfit_optimizers(build, self):
    """Values that torch refuses in an optimizer or a schedule are tracebacks."""
    try:
        return build(self)
    except (AssertionError, ValueError, TypeError, NameError, ArithmeticError, SyntaxError) as error:
        raise InputError(f"optimizer, lr_scheduler, optimization: {type(error).__name__}: {error}; correct these settings") from error


def naming_metrics(get, cfg, trainer, stats, *more):
    """For an unknown metric fairseq has a KeyError, which does not say what there is."""
    if (metric := cfg.checkpoint.best_checkpoint_metric) not in stats:
        what = f"validation gives no such metric; use one of {', '.join(sorted(stats))}"
        raise InputError(f"checkpoint.best_checkpoint_metric={metric}: {what}")
    return get(cfg, trainer, stats, *more)


def marking_empty_batches(step, self, sample, *args, **kwargs):
    """Where a process has no batch, fairseq takes an old one and ignores the result: criterions over all processes must leave it out."""
    processes.count_hang_from_now()
    self._criterion.stands_in = not sample
    with _naming_the_longest(self, [sample], self.cfg.dataset.valid_subset.split(",")):
        return step(self, sample, *args, **kwargs)


def without_empty_parts(step, self, samples, *args, **kwargs):
    """fairseq takes all of an update for empty where its last part is."""
    processes.count_hang_from_now()
    parts = [sample for sample in samples if sample]
    self._criterion.stands_in = not parts
    with _naming_the_longest(self, parts, [self.cfg.dataset.train_subset]):
        return step(self, parts or samples[:1], raise_oom=True)  # fairseq would go on without the batch


@contextlib.contextmanager
def _naming_the_longest(trainer, samples, subsets):
    """Around a step: memory that is not there is mostly due to the longest utterance of a batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error) or not any(samples):
            raise
        length, index = max(max(zip(s["net_input"]["lengths"], s["id"].tolist(), strict=True)) for s in samples if s)
        splits = [trainer.task.datasets[name].split for name in subsets]
        split = next((s for s in splits if index < len(s) and s.n_samples[index] >= length), splits[0])
        seconds = split.n_samples[index] / SAMPLE_RATE
        what = f"the longest utterance, {split.audio(index)}, has {seconds:.0f} s"
        remedy = "set task.max_sample_size (samples; 160000: 10 s), or cut it; or lower dataset.max_tokens and dataset.batch_size"
        raise InputError(f"too little memory for a batch of {split.name}: {what}; {remedy}") from error
