"""Patches to fairseq for current PyTorch, from outside. Each says what is broken and where."""

import logging
import os
import pickle
import shutil
import sys
import weakref
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.data.iterators import FrozenBatchSampler
from fairseq.distributed import utils as fairseq_utils
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer
from hydra.core.hydra_config import HydraConfig

from ..core.device import has_bf16
from ..core.errors import InputError, exit_on_input_error
from ..core.files import make_folder
from ..pretrained.safe_files import allow_checkpoint_classes, refused_checkpoint
from ..provenance import records
from . import launch, processes, resuming
from .processes import patch

logger = logging.getLogger(__name__)


def apply():
    """Apply every patch; harmless when repeated."""
    allow_checkpoint_classes()
    patch(checkpoint_utils, "load_checkpoint_to_cpu", refusing_unfit_checkpoints)
    patch(checkpoint_utils, "load_checkpoint", resuming.loading_what_is_there)
    patch(checkpoint_utils, "verify_checkpoint_directory", preparing_output_folder)
    patch(PathManager, "copy", copying_whole, static=True)
    patch(FrozenBatchSampler, "__init__", ending_workers_with_their_epoch)
    patch(Trainer, "__init__", half_precision_without_a_gpu)
    patch(Trainer, "get_train_iterator", recording_what_is_seen)
    patch(Trainer, "valid_step", marking_empty_batches)
    patch(Trainer, "train_step", without_empty_parts)
    patch(fairseq_utils, "call_main", processes.call_main)
    if "fairseq_cli.train" in sys.modules:
        patch(sys.modules["fairseq_cli.train"], "get_valid_stats", naming_metrics)


def refusing_unfit_checkpoints(load, path, *args, **kwargs):
    """torch's own message for a refused file tells the reader to switch the safety off; say what was found instead. A damaged file is a
    traceback, and one of another training passes."""
    try:
        state = load(path, *args, **kwargs)
    except pickle.UnpicklingError as error:
        raise refused_checkpoint(path, error) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        others = sorted(set(Path(path).parent.glob("checkpoint*.pt")) - {Path(path)}, key=lambda p: p.stat().st_mtime)
        remedy = f"copy {others[-1].name} over it to go on from there" if others else "remove it to start anew"
        raise InputError(f"{path}: not a checkpoint, or a damaged one ({' '.join(str(error).split())[:100]}); {remedy}") from error
    resuming.check(state, path)
    return state


@exit_on_input_error
def preparing_output_folder(_, save_dir):
    """fairseq dies with a traceback where `checkpoint.save_dir` cannot be written; say so in one line, and log into that folder. Hydra would
    do the logging, but makes its folder before any plug-in is loaded (config/_run.yaml keeps it from that)."""
    folder = make_folder(save_dir)
    resuming.only_here(folder)
    if HydraConfig.initialized() or torch.distributed.is_initialized():
        handler = logging.FileHandler(folder / "hydra_train.log")
        handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
        logging.getLogger().addHandler(handler)
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and processes.is_first():
            logging.getLogger().addHandler(launch.TerminalBar(folder))


def copying_whole(copy, src_path, dst_path, overwrite=False):
    """`checkpoint_last.pt` and `checkpoint_best.pt` are plain copies: a kill during one leaves half a file. Rename a whole copy instead."""
    if PathManager.path_requires_pathmanager(dst_path):
        return copy(src_path, dst_path, overwrite)
    temporary = f"{dst_path}.tmp"
    shutil.copyfile(src_path, temporary)
    os.replace(temporary, dst_path)
    return True


def ending_workers_with_their_epoch(init, self, ordered_batches, *args, **kwargs):
    """An epoch's iterator refers to itself through its batch sampler, so only garbage collection ends it. By then the queues to its worker
    processes are closed, and in every epoch torch waits five seconds for each worker before it kills it. The sampler must not hold the
    iterator."""
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


@exit_on_input_error
def recording_what_is_seen(get, self, epoch, combine=True, load_dataset=True, **options):
    """fairseq keeps no list of what a model was trained on: write it beside the checkpoints once all data is there (see `records`)."""
    iterator = get(self, epoch, combine, load_dataset, **options)
    if load_dataset and self.is_data_parallel_master and hasattr(self.task, "label_folders"):
        dataset = self.task.datasets[self.cfg.dataset.train_subset]
        resuming.check_data(self.cfg.checkpoint.save_dir, dataset.split, dataset.seen)
        records.write_training(self.cfg, self.task)
    return iterator


@exit_on_input_error
def naming_metrics(get, cfg, trainer, stats, *more):
    """An unknown metric is a KeyError, and not the first."""
    if (metric := cfg.checkpoint.best_checkpoint_metric) not in stats:
        raise InputError(
            f"checkpoint.best_checkpoint_metric={metric}: validation gives no such metric; use one of {', '.join(sorted(stats))}"
        )
    return get(cfg, trainer, stats, *more)


def marking_empty_batches(step, self, sample, *args, **kwargs):
    """Where a process has no batch, fairseq takes an old one and ignores the result: criterions over all processes must leave it out."""
    processes.count_hang_from_now()
    self._criterion.stands_in = not sample
    return step(self, sample, *args, **kwargs)


def without_empty_parts(step, self, samples, *args, **kwargs):
    """fairseq takes all of an update for empty where its last part is."""
    processes.count_hang_from_now()
    parts = [sample for sample in samples if sample]
    self._criterion.stands_in = not parts
    return step(self, parts or samples[:1], *args, **kwargs)
