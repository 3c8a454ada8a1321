"""The processes of a training: rank discovery, failure handling, hang detection, preemption.

fairseq chooses processes before it loads a plug-in, with GPUs in mind: it divides by their number and starts as many workers as there
are. config/_run.yaml loads the plug-in first; `call_main` takes its place.
"""

import atexit
import contextlib
import datetime
import faulthandler
import functools
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as fairseq_utils
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from ..core.errors import InputError, print_error
from ..core.files import atomic
from .failures import as_input_error
from .launch import PREEMPTED
from .schedule import DecayToTheEnd

logger = logging.getLogger(__name__)

_AHEAD = 2  # updates from the one at which a process is preempted to the one at which all stop: none can be further ahead
_LAST_WORD = 3  # seconds that a process whose failure another's caused stays, so that launchers see the cause first
_store = None
_timeout = -1
_signals = []


class Place(NamedTuple):
    """Which process of a training this is."""

    rank: int
    size: int  # of the training
    local_rank: int  # on its machine
    method: str  # torch.distributed's `init_method`


def place(environment=os.environ):
    """The Place that torchrun or srun gave this process; None where neither did, or srun started it alone."""
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        return Place(rank, size, int(environment.get("LOCAL_RANK", rank)), "env://")
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    host = environment.get("MASTER_ADDR") or _first_node(environment["SLURM_STEP_NODELIST"])
    port = environment.get("MASTER_PORT") or 20_000 + int(environment["SLURM_JOB_ID"]) % 20_000  # jobs that share a node differ
    return Place(*(int(environment[f"SLURM_{name}"]) for name in ("PROCID", "STEP_NUM_TASKS", "LOCALID")), f"tcp://{host}:{port}")


def _first_node(nodes):
    """Name of the first of some Slurm nodes, such as `node[3-5]`."""
    try:
        found = subprocess.run(["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True, timeout=60)
        return found.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise InputError(f"{nodes}: scontrol does not say which nodes that is ({error}); set MASTER_ADDR to the first one's") from None


def is_first():
    """Whether this process is the first of a training, or alone."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def call_main(fairseqs, cfg, main, **kwargs):
    """Run fairseq's `main(cfg, **kwargs)` in all processes of a training; takes the place of `fairseq.distributed.utils.call_main`.
    Started by torchrun or srun, this is one of them; alone, with `distributed_training.distributed_world_size` above one (fairseq's
    default is the number of GPUs), it starts them on this machine. NCCL connects GPUs, gloo processes without. Whoever sets
    `distributed_init_method` gets `fairseqs` own."""
    if cfg.dataset.num_workers < 0:
        raise InputError(f"dataset.num_workers={cfg.dataset.num_workers}: give 0 or more")
    training = cfg.distributed_training
    if training.distributed_init_method is not None:
        return fairseqs(cfg, main, **kwargs)
    here = place()
    if here is None and training.distributed_world_size > 1:
        return _spawn(training.distributed_world_size, cfg, main, kwargs)
    if here is not None and here.size > 1:
        return _run(here, cfg, main, kwargs)
    training.distributed_world_size = 1
    with watching(cfg.checkpoint.save_dir):
        return main(cfg, **kwargs)


def _spawn(size, cfg, main, kwargs):
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at a free port, until all have ended
    try:
        torch.multiprocessing.spawn(_spawned, (size, store.port, cfg, main, kwargs), nprocs=size)
    except torch.multiprocessing.ProcessExitedException as error:  # it has printed why
        raise SystemExit(error.exit_code if error.exit_code > 0 else 1) from None


def _spawned(rank, size, port, cfg, main, kwargs):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    _run(Place(rank, size, rank, "env://"), cfg, main, kwargs)


def _run(here, cfg, main, kwargs):
    """One process of several, from the meeting to its end. A failure ends it at once: nothing may wait for what other processes do."""
    global _store
    training = cfg.distributed_training
    gpus = 0 if cfg.common.cpu else torch.cuda.device_count()
    seconds, training.heartbeat_timeout = training.heartbeat_timeout, -1  # fairseq's would interrupt a hanging process without a word
    training.distributed_world_size, training.distributed_rank, training.distributed_no_spawn = here.size, here.rank, True
    training.distributed_init_method = here.method
    training.device_id = here.local_rank % gpus if gpus else 0
    if gpus:
        torch.cuda.set_device(training.device_id)
    else:
        training.distributed_backend, training.ddp_backend = "gloo", "legacy_ddp"  # the other ones need GPUs
    try:
        store, _, _ = next(distributed.rendezvous(here.method, here.rank, here.size, timeout=datetime.timedelta(minutes=10)))
        distributed.init_process_group(training.distributed_backend, store=store, rank=here.rank, world_size=here.size)
        _store = distributed.PrefixStore("emohubert", store)
        with watching(cfg.checkpoint.save_dir, seconds), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Distributed is already initialized")
            fairseq_utils.distributed_main(training.device_id, main, cfg, kwargs)
        distributed.destroy_process_group()
        atexit._run_exitfuncs()
        _end_now(0)  # at an ordinary end a thread of gloo's, still there, sometimes aborts the process
    except SystemExit as end:
        _end_now(end.code or 0)
    except BaseException as error:
        if (known := as_input_error(error)) is not None:
            print_error(known)
            _end_now(2)
        _say_failure(here, error)
        _end_now(1)


def _say_failure(here, error):
    """Print an exception. Others than the first process to fail wait: launchers, which count seconds, would take theirs for the cause."""
    try:
        first = here.rank if _store is None else int(_store.compare_set("failed", "", str(here.rank)))
    except RuntimeError:  # the store has gone with the process that failed first
        first = None
    who = f"process {here.rank} of {here.size}"
    if first == here.rank:
        with contextlib.suppress(Exception):
            get_error_handler().record_exception(error)  # for torchrun
        text = "".join(traceback.format_exception(error))
        print(f"{who} on {os.uname().nodename} failed:\n{text}", file=sys.stderr, flush=True)
        return
    cause = "another process" if first is None else f"process {first}"
    line = (str(error).strip().splitlines() or [""])[0]
    print(f"{who} ends after {cause} failed ({type(error).__name__}: {line})", file=sys.stderr, flush=True)
    time.sleep(_LAST_WORD)


def _end_now(status):
    """Leave without waiting for threads, communication, or workers that read data."""
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(status)


@contextlib.contextmanager
def watching(folder, seconds=-1):
    """Around a training: SIGUSR1 (under Slurm SIGTERM, too) asks for a checkpoint and a stop; a hang ends it. `folder`: of the checkpoints;
    `stopped` in it, of an earlier training, is removed. `seconds`: without a new step of training or validation for so long, a process
    prints where each of its threads stands, and ends, which ends the others; never before the first step, or with 0 or less."""
    global _timeout
    if is_first():
        with contextlib.suppress(NotADirectoryError):  # fairseq is about to look at the folder
            (Path(folder) / "stopped").unlink(missing_ok=True)
    _signals.clear()
    from fairseq_cli import train as fairseq_train  # importing it sets up logging: only for what trains

    patch(fairseq_train, "validate_and_save", _stopping_on_request)
    patch(fairseq_train, "train", _within_bounds)
    numbers = [signal.SIGUSR1] + [signal.SIGTERM] * ("SLURM_JOB_ID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ)
    before = [(s, signal.signal(s, lambda number, _: _signals.append(number))) for s in numbers]
    _timeout = seconds
    try:
        yield
    finally:
        _timeout = -1
        faulthandler.cancel_dump_traceback_later()
        for s, handler in before:
            signal.signal(s, handler)


def patch(owner, name, function, static=False):
    """Put `function(original, …)` in the place of a function of fairseq, once."""
    original = getattr(owner, name)
    if not hasattr(original, "by_emohubert"):
        patched = functools.wraps(original)(lambda *args, **kwargs: function(original, *args, **kwargs))
        patched.by_emohubert = True
        setattr(owner, name, staticmethod(patched) if static else patched)


def count_hang_from_now():
    """Each step of the trainer begins with this (see `watching`)."""
    if _timeout > 0:
        faulthandler.dump_traceback_later(_timeout, exit=True)


def _within_bounds(train, cfg, trainer, task, epoch_itr):
    """An epoch. The first says how many updates there will be, for `launch` and a `schedule`. After the last, fairseq would go on."""
    done, settings = trainer.get_num_updates(), cfg.optimization
    if 0 < settings.max_update <= done:
        logger.info("trained already: %d updates, optimization.max_update=%d", done, settings.max_update)
        return [None], True
    if not hasattr(trainer, "first_update"):
        trainer.first_update = done
        per_epoch = -(-len(epoch_itr) // settings.update_freq[0])
        ends = [n for n in (settings.max_update, settings.max_epoch * per_epoch) if n > 0]
        logger.info("training from update %d to %s", done, min(ends, default="the end"))
        if ends and isinstance(trainer.lr_scheduler, DecayToTheEnd):
            trainer.lr_scheduler.set_length(min(ends))
    return train(cfg, trainer, task, epoch_itr)


def _stopping_on_request(validate_and_save, cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch):
    """What fairseq does after every update; when preempted, save a checkpoint in place of it, and stop."""
    if end_of_epoch or not _all_stop(trainer.get_num_updates()):
        return validate_and_save(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
    checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
    if is_first():
        with atomic(Path(cfg.checkpoint.save_dir) / "stopped") as f:
            f.write(f"{trainer.get_num_updates()} updates\n")
    logger.warning("preempted after %d updates; the same command resumes from there", trainer.get_num_updates())
    if _store is not None:
        distributed.barrier()
    raise SystemExit(PREEMPTED)


def _all_stop(updates):
    """Whether to stop now: all processes answer alike, after the same update."""
    if _store is None:
        return bool(_signals)
    if _signals and not _store.check(["stop"]):
        _store.compare_set("stop", "", str(updates + _AHEAD))
    return _store.check(["stop"]) and updates >= int(_store.get("stop"))
