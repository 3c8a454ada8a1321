"""One training on many processes: which of them this one is, whoever started it, and how all end when one fails or is told to stop.

fairseq chooses processes before it loads a plug-in, with GPUs in mind: it divides by their number, starts as many workers as
there are, and hopes that the first node's name resolves. config/_run.yaml loads the plug-in first; `call_main` takes its place.
"""

import contextlib
import datetime
import faulthandler
import fcntl
import functools
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as fairseq_utils
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from ..core.errors import InputError, print_error
from ..core.files import atomic, make_folder

logger = logging.getLogger(__name__)

STOPPED = 75
"""Exit status (EX_TEMPFAIL) of a training that was told to stop: it has saved a checkpoint, and the same command goes on from it."""
FIRST_PORT, PORTS = 20_000, 20_000
"""Ports that Slurm jobs meet at, one for each job step."""
_AHEAD = 2  # updates from the one at which a process is told to stop to the one at which all do: none can be further ahead
_LAST_WORD = 3  # seconds that a process whose failure another's caused stays, so that launchers see the cause first
_store = None
_patience = -1
_stop_signals = []


@dataclass(frozen=True)
class Place:
    """Which of the processes of a training this is.

    Attributes:
        rank, size: among all.
        local_rank: among those of this machine.
        address: `host:port` where they meet.
    """

    rank: int
    size: int
    local_rank: int
    address: str


def place(environment=os.environ):
    """The place that torchrun or srun gave this process.

    Returns:
        Place, or None for a process that neither started, or srun by itself.

    Raises:
        InputError: the launcher's variables are incomplete, or no address of the first node can be found.
    """
    if "TORCHELASTIC_RUN_ID" in environment or {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        local = _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else rank
        host, port = environment.get("MASTER_ADDR"), _number(environment, "MASTER_PORT")
    elif "SLURM_STEP_ID" in environment and environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        rank, size, local = (_number(environment, f"SLURM_{name}") for name in ("PROCID", "STEP_NUM_TASKS", "LOCALID"))
        host = environment.get("MASTER_ADDR") or first_address(environment.get("SLURM_STEP_NODELIST", ""))
        port = _number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else slurm_port(environment)
    else:
        return None
    return Place(rank, size, local, f"{host}:{port}")


def _number(environment, name):
    value = environment.get(name, "")
    if not value.isdecimal():
        raise InputError(f"{name}={value}: not a number; start the processes with torchrun or srun, which set it, or with neither")
    return int(value)


def slurm_port(environment):
    """A port for a job step: steps of one job, and jobs that follow each other such as those of an array, have different ones."""
    step = environment["SLURM_STEP_ID"]
    return FIRST_PORT + (_number(environment, "SLURM_JOB_ID") * 7 + (int(step) if step.isdecimal() else 0)) % PORTS


def first_address(nodes):
    """An address of the first of some Slurm nodes (such as `node[3-5]`): its name, or where that does not resolve, what Slurm knows.

    Raises:
        InputError: `scontrol` is missing or does not know them.
    """
    try:
        name = _output("scontrol", "show", "hostnames", nodes).split()[0]
        found = dict(word.split("=", 1) for word in _output("scontrol", "--oneliner", "show", "node", name).split() if "=" in word)
        return next((address for address in (name, found["NodeAddr"]) if _resolves(address)), found["NodeAddr"])
    except (OSError, subprocess.SubprocessError, LookupError) as error:
        raise InputError(
            f"SLURM_STEP_NODELIST={nodes}: scontrol does not say where that is ({error}); set MASTER_ADDR to its address"
        ) from None


def _resolves(name):
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def _output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def free_port():
    """A TCP port that nothing listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def interface_towards(host, port):
    """Name of the network interface that this machine reaches a host by, or None: gloo looks for one by this machine's own name."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((host, port))
        own = s.getsockname()[0]
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                found = fcntl.ioctl(s.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
                if socket.inet_ntoa(found[20:24]) == own:
                    return name
    return None


def torchrun(processes):
    """The command that starts a program as several processes on this machine, at a free port and needing no name; [] for one or None."""
    if processes in (None, 1):
        return []
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={processes}",
        "--no-python",
    ]


def is_first():
    """Whether this process is the first of a training, or alone."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def first_alone(function):
    """Run a function on the first process, which may take any time, and then on the others, which find what it made.

    Returns:
        What the function returns.
    """
    if _store is None:
        return function()
    first_alone.calls = getattr(first_alone, "calls", 0) + 1
    key = f"first_alone/{first_alone.calls}"
    if distributed.get_rank() > 0:
        _store.wait([key], datetime.timedelta(days=30))
        return function()
    result = function()
    _store.set(key, "done")
    return result


# --- starting ----------------------------------------------------------------------------------------------------------


def call_main(cfg, main, **kwargs):
    """Run fairseq's `main(cfg, **kwargs)` in all processes of a training; takes the place of `fairseq.distributed.utils.call_main`.

    Started by torchrun or srun, this is one of them; alone, with `distributed_training.distributed_world_size` above one (fairseq's
    default is the number of GPUs), it starts them on this machine. NCCL connects GPUs, gloo processes without.
    """
    training = cfg.distributed_training
    with _errors_in_one_line():
        here = place() if training.distributed_init_method is None else None
        if here is None and training.distributed_world_size > 1:
            if training.distributed_init_method is None or not training.distributed_no_spawn:
                return _spawn(cfg, main, kwargs)
            here = Place(training.distributed_rank, training.distributed_world_size, max(training.device_id, 0), "")
        if here is not None and here.size > 1:
            return _run(here, cfg, main, kwargs)
    training.distributed_world_size = 1
    with watching(cfg.checkpoint.save_dir):
        return main(cfg, **kwargs)


@contextlib.contextmanager
def _errors_in_one_line():
    try:
        yield
    except InputError as error:
        print_error(error)
        raise SystemExit(2) from None


def _spawn(cfg, main, kwargs):
    """Start this machine's processes: all, or where an address to meet at is given, one for each GPU."""
    training, gpus = cfg.distributed_training, _gpus(cfg)
    size, first, own, address = training.distributed_world_size, 0, training.distributed_world_size, f"127.0.0.1:{free_port()}"
    if training.distributed_init_method is not None:
        first, own, address = training.distributed_rank, min(size, gpus or 1), ""
    if gpus and own > gpus:
        raise InputError(
            f"distributed_training.distributed_world_size={size}: this machine has {gpus} GPUs; start processes on several machines with srun or torchrun"
        )
    try:
        torch.multiprocessing.spawn(_spawned, (first, size, address, cfg, main, kwargs), nprocs=own)
    except torch.multiprocessing.ProcessExitedException as error:  # it has printed why
        raise SystemExit(error.exit_code if error.exit_code > 0 else 1) from None


def _spawned(local_rank, first, size, address, cfg, main, kwargs):
    _run(Place(first + local_rank, size, local_rank, address), cfg, main, kwargs)


def _gpus(cfg):
    return 0 if cfg.common.cpu or not torch.cuda.is_available() else torch.cuda.device_count()


def _run(here, cfg, main, kwargs):
    """One process of several, from the meeting to the end. A failure ends it at once: nothing may wait for what other processes do."""
    training, gpus = cfg.distributed_training, _gpus(cfg)
    seconds = training.heartbeat_timeout
    training.distributed_world_size, training.distributed_rank, training.distributed_no_spawn = here.size, here.rank, True
    training.device_id = here.local_rank % gpus if gpus else 0
    training.heartbeat_timeout = -1  # fairseq's would interrupt this process without a word where it hangs
    training.distributed_backend = training.distributed_backend if gpus else "gloo"
    if not gpus and training.ddp_backend in ("c10d", "pytorch_ddp"):
        logger.warning("distributed_training.ddp_backend=%s needs GPUs: using legacy_ddp", training.ddp_backend)
        training.ddp_backend = "legacy_ddp"
    folder = cfg.checkpoint.save_dir
    if gpus:
        torch.cuda.set_device(training.device_id)
    try:
        _meet(here, training)
        with watching(folder, seconds), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Distributed is already initialized")
            fairseq_utils.distributed_main(training.device_id, main, cfg, kwargs)
        distributed.destroy_process_group()
    except InputError as error:  # in a process that Hydra did not start
        print_error(error)
        _end_now(2)
    except SystemExit as end:
        _end_now(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException as error:
        if (first := _first_failed(here)) == here.rank:
            _record_failure(folder, here, error)
        else:
            _record_consequence(folder, here, error, first)
        _end_now(130 if isinstance(error, KeyboardInterrupt) else 1)


def _meet(here, training):
    """Join the process group."""
    global _store
    method = f"tcp://{here.address}" if here.address else training.distributed_init_method
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        method = "env://"  # torchrun's own process listens there
    training.distributed_init_method = method
    if training.distributed_backend == "gloo" and "GLOO_SOCKET_IFNAME" not in os.environ and here.address:
        host, _, port = here.address.rpartition(":")
        if name := interface_towards(host, int(port)):
            os.environ["GLOO_SOCKET_IFNAME"] = name
    store, _, _ = next(distributed.rendezvous(method, here.rank, here.size, timeout=datetime.timedelta(minutes=10)))
    distributed.init_process_group(training.distributed_backend, store=store, rank=here.rank, world_size=here.size)
    _store = distributed.PrefixStore("emohubert", store)


def _first_failed(here):
    """Rank of the process that failed first, which may be this one; None where the processes' meeting place has gone with it."""
    if _store is None:
        return here.rank
    try:
        return int(_store.compare_set("failed", "", str(here.rank)))
    except RuntimeError:
        return None


def _record_failure(folder, here, error):
    """Put an exception where launchers and people look: torchrun's error file, failed/rankN.log in the folder, standard error."""
    with contextlib.suppress(Exception):
        get_error_handler().record_exception(error)
    text = _write_failure(folder, here, error)
    print(f"process {here.rank} of {here.size} on {socket.gethostname()} failed:\n{text}", file=sys.stderr, flush=True)


def _record_consequence(folder, here, error, first):
    """After another process has failed, this one has, too: leave the last word to the cause, also with launchers, which count seconds."""
    _write_failure(folder, here, error)
    cause = "another process" if first is None else f"process {first}"
    line = (str(error).strip().splitlines() or [""])[0]
    print(f"process {here.rank} of {here.size} ends after {cause} failed ({type(error).__name__}: {line})", file=sys.stderr, flush=True)
    time.sleep(_LAST_WORD)


def _write_failure(folder, here, error):
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError, InputError), atomic(make_folder(Path(folder) / "failed") / f"rank{here.rank}.log") as f:
        f.write(text)
    return text


def _end_now(status):
    """Leave without waiting for threads, communication, or workers that read data."""
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(status)


# --- running -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watching(folder, seconds=-1):
    """Around a training: SIGUSR1 (under Slurm SIGTERM, too) asks for a checkpoint and a stop; a standstill ends it.

    Args:
        folder: of the checkpoints; `stopped` and `failed/` in it, of an earlier training, are removed.
        seconds: without a new step of training or validation for so long, a process prints where each of its threads stands, and
            ends, which ends the others; before the first step, never. 0 or less: never.
    """
    global _patience
    if is_first():
        with contextlib.suppress(OSError):
            (Path(folder) / "stopped").unlink(missing_ok=True)
            for path in (Path(folder) / "failed").glob("rank*.log"):
                path.unlink(missing_ok=True)
    _stop_signals.clear()
    from fairseq_cli import train as fairseq_train  # importing it sets up logging: only for what trains

    if not hasattr(fairseq_train.validate_and_save, "__wrapped__"):
        fairseq_train.validate_and_save = stopping_on_request(fairseq_train.validate_and_save)
        fairseq_train.train = not_beyond_the_end(fairseq_train.train)
    signals = [signal.SIGUSR1] + [signal.SIGTERM] * ("SLURM_JOB_ID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ)
    before = [(s, signal.signal(s, lambda number, _: _stop_signals.append(number))) for s in signals]
    _patience = seconds
    try:
        yield
    finally:
        _patience = -1
        faulthandler.cancel_dump_traceback_later()
        for s, handler in before:
            signal.signal(s, handler)


def still_moving(step):
    """Wrapper of the trainer's steps: a standstill is counted from the last one."""

    @functools.wraps(step)
    def wrapped(*args, **kwargs):
        if _patience > 0:
            faulthandler.dump_traceback_later(_patience, exit=True)
        return step(*args, **kwargs)

    return wrapped


def not_beyond_the_end(train):
    """Wrapper of an epoch: a training that starts again after its last update ends; fairseq would make one more before it looks."""

    @functools.wraps(train)
    def wrapped(cfg, trainer, task, epoch_itr):
        if 0 < cfg.optimization.max_update <= trainer.get_num_updates():
            logger.info("trained already: %d updates, optimization.max_update=%d", trainer.get_num_updates(), cfg.optimization.max_update)
            return [None], True
        return train(cfg, trainer, task, epoch_itr)

    return wrapped


def stopping_on_request(validate_and_save):
    """Wrapper of what fairseq does after every update: where a signal asked for it, save a checkpoint in place of it, and stop."""

    @functools.wraps(validate_and_save)
    def wrapped(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch):
        if not end_of_epoch and _all_stop(trainer.get_num_updates()):
            checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
            if is_first():
                with atomic(Path(cfg.checkpoint.save_dir) / "stopped") as f:
                    f.write(f"{trainer.get_num_updates()} updates\n")
            logger.warning("stopped on request after %d updates; the same command goes on from there", trainer.get_num_updates())
            if _store is not None:
                distributed.barrier()
            raise SystemExit(STOPPED)
        return validate_and_save(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)

    return wrapped


def _all_stop(updates):
    """Whether to stop now: all processes answer alike, after the same update."""
    if _store is None:
        return bool(_stop_signals)
    if _stop_signals and not _store.check(["stop"]):
        _store.compare_set("stop", "", str(updates + _AHEAD))
    return _store.check(["stop"]) and updates >= int(_store.get("stop"))
