"""One training on several processes: the same curve however it is divided, and an end instead of a hang."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from corpus import make_corpus, make_labels
from torch.nn import functional as F
from training import MICRO, ROOT, arguments, train

from emohubert.core.errors import InputError
from emohubert.criterions.emotion import ccc, gather, supervised_contrastive
from emohubert.pretrained.safe_files import load_state
from emohubert.training import processes

PLANTED = """
import os, sys, time
sys.path.insert(0, {plug_in!r})
import emohubert.tasks
from fairseq.trainer import Trainer

step = Trainer.train_step
def train_step(self, samples, *args, **kwargs):
    if self.get_num_updates() == 3 and os.environ["RANK"] == "1":
        {fault}
    return step(self, samples, *args, **kwargs)
Trainer.train_step = train_step
"""


class Gone:
    """A meeting place whose process has ended."""

    def compare_set(self, *_):
        raise RuntimeError("Broken pipe")


@pytest.mark.parametrize(("store", "cause"), [(torch.distributed.HashStore(), "process 1"), (Gone(), "another process")])
def test_a_process_that_fails_after_another_leaves_it_the_last_word(monkeypatch, capsys, store, cause):
    here = processes.Place(0, 2, 0, "")
    monkeypatch.setattr(processes, "_store", store)
    monkeypatch.setattr(processes, "_LAST_WORD", 0)
    if cause == "process 1":
        processes._say_failure(processes.Place(1, 2, 1, ""), ArithmeticError("planted"))
        assert capsys.readouterr().err.endswith("ArithmeticError: planted\n\n")
    processes._say_failure(here, RuntimeError("Connection reset\nby peer"))
    assert capsys.readouterr().err == f"process 0 of 2 ends after {cause} failed (RuntimeError: Connection reset)\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_labels(make_corpus(folder, seconds=(0.3, 1.2), train=40), folder / "labels")
    return folder


def command(corpus, name, *overrides, processes=1, config="papt_tiny", model=(*MICRO, "model.init_from=null")):
    """A micro training without dropout, which processes draw for themselves."""
    programs = Path(sys.prefix) / "bin"
    same = ["model.dropout=0", "model.attention_dropout=0", "common.tensorboard_logdir=null", "checkpoint.save_interval_updates=0"]
    data = [f"task.data={corpus}/manifest", f"checkpoint.save_dir={corpus}/{name}"]
    launcher = [] if processes == 1 else [programs / "torchrun", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={processes}"]
    data += [f"task.label_dir={corpus}/labels"] * (config == "papt_tiny")
    program = [*launcher, programs / "fairseq-hydra-train", *arguments(config, *model, *same, *data, *overrides)]
    return [str(word) for word in program]


def start(corpus, name, *overrides, user_dir=ROOT / "user_dir", **options):
    """Start a training as it is from a shell."""
    variables = {**os.environ, "EMOHUBERT_USER_DIR": str(user_dir), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    (corpus / name).mkdir(exist_ok=True)
    with open(corpus / name / "output.log", "w") as f:
        return subprocess.Popen(command(corpus, name, *overrides, **options), stdout=f, stderr=f, cwd=ROOT, env=variables)


def output(corpus, name):
    return (corpus / name / "output.log").read_text(errors="replace")


def run(corpus, name, *overrides, **options):
    status = start(corpus, name, *overrides, **options).wait(300)
    assert status == 0, output(corpus, name)[-4000:]


def run_alone(corpus, name, *overrides, **options):
    """The same on one process, forked from one that has imported fairseq."""
    words = command(corpus, name, *overrides, **options)
    finished = train(words[words.index("--config-name") + 1], *words[words.index("--config-name") + 2 :])
    assert finished.returncode == 0, finished.stdout[-4000:]


def curve(corpus, name):
    """[(update, loss)] of a training, and [(update, loss)] of its validation."""
    found = {"train_inner": [], "valid": []}
    for line in (corpus / name / "hydra_train.log").read_text().splitlines():
        for kind, values in found.items():
            if f"[{kind}]" in line:
                log = json.loads(line[line.index("{") :])
                prefix = "valid_" if kind == "valid" else ""
                values.append((int(log[f"{prefix}num_updates"]), float(log[f"{prefix}loss"])))
    return found["train_inner"], found["valid"]


def assert_same(corpus, name, expected):
    """The curves of two trainings agree to the last of their four decimals, and so do their weights in the end."""
    for values, others in zip(curve(corpus, name), curve(corpus, expected), strict=True):
        assert len(values) == len(others) > 1
        for (update, loss), (same_update, same_loss) in zip(values, others, strict=True):
            assert update == same_update and abs(loss - same_loss) < 1.01e-4
    weights, others = (load_state(corpus / folder / "checkpoint_last.pt")["model"] for folder in (name, expected))
    assert weights.keys() == others.keys()
    assert max(float((weights[key].float() - others[key].float()).abs().max()) for key in weights) < 1e-4


class TestPlace:
    def test_alone(self):
        assert processes.place({}) is None
        assert processes.place({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None  # a batch script, no step of it
        assert processes.place({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}) is None

    def test_torchrun(self):
        environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29400"}
        assert processes.place(environment) == processes.Place(3, 4, 1, "env://")
        assert processes.place({**environment, "WORLD_SIZE": "1", "RANK": "0"}).size == 1

    def test_srun(self, tmp_path, monkeypatch):
        scontrol = tmp_path / "scontrol"
        scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[3-4]" ] && echo node3 && echo node4\n')
        scontrol.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        step = {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
        nodes = {"SLURM_STEP_NODELIST": "node[3-4]"}
        assert processes.place({**step, **nodes}) == processes.Place(5, 8, 1, "tcp://node3:20012")
        assert processes.place({**step, "MASTER_ADDR": "a", "MASTER_PORT": "1"}) == processes.Place(5, 8, 1, "tcp://a:1")
        with pytest.raises(InputError, match="set MASTER_ADDR"):
            processes.place({**step, "SLURM_STEP_NODELIST": "elsewhere"})


def _gathering(rank, folder):
    """One of three processes; the last has no batch of its own. Saves its loss and the gradient of its rows."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    points, classes, references = rows()
    own = [slice(0, 5), slice(5, 7), slice(2, 4)][rank]
    criterion = SimpleNamespace(stands_in=rank == 2)
    mine = points[own].clone().requires_grad_()
    losses = {
        "contrastive": supervised_contrastive(F.normalize(gather(mine, criterion)), gather(classes[own], criterion), 0.1),
        "ccc": (1 - ccc(gather(mine, criterion), gather(references[own], criterion))).mean(),
    }
    found = {name: (loss.detach(), *torch.autograd.grad(loss, mine, allow_unused=True)) for name, loss in losses.items() if rank < 2}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def rows():
    generator = torch.Generator().manual_seed(1)
    points, references = (torch.randn(7, 3, generator=generator, dtype=torch.double) for _ in range(2))
    return points, torch.tensor([0, 1, 0, 2, 1, 0, 2]), references


@pytest.mark.slow
def test_losses_over_the_batch_look_at_all_processes(tmp_path):
    """Loss and gradient are those of one process with all rows; a batch that stands in for none counts for nothing."""
    torch.multiprocessing.start_processes(_gathering, (str(tmp_path),), nprocs=3, start_method="forkserver")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    points, classes, references = rows()
    points.requires_grad_()
    for name, loss in {
        "contrastive": supervised_contrastive(F.normalize(points), classes, 0.1),
        "ccc": (1 - ccc(points, references)).mean(),
    }.items():
        (gradient,) = torch.autograd.grad(loss, points)
        assert torch.allclose(torch.cat([part[name][1] for part in found]), gradient, atol=1e-12)
        assert all(torch.allclose(part[name][0], loss.detach(), atol=1e-12) for part in found)


@pytest.mark.slow
class TestTraining:
    updates = ("optimization.max_update=50", "dataset.validate_interval_updates=25", "dataset.max_tokens=40000")

    @pytest.fixture(scope="class")
    def two(self, corpus):
        run(corpus, "two", *self.updates, processes=2)
        assert [update for update, _ in curve(corpus, "two")[1]] == [25, 50]
        return "two"

    def test_two_processes_are_one_with_the_doubled_batch(self, corpus, two):
        run_alone(corpus, "one", *self.updates, "dataset.max_tokens=80000")
        assert_same(corpus, "one", two)

    def test_so_is_accumulation(self, corpus, two):
        run_alone(corpus, "accumulated", *self.updates, "optimization.update_freq=[2]")
        assert_same(corpus, "accumulated", two)

    def test_so_are_processes_that_the_training_starts_itself(self, corpus, two):
        run(corpus, "spawned", *self.updates, "distributed_training.distributed_world_size=2")
        assert_same(corpus, "spawned", two)

    def test_dimensions_whose_loss_looks_at_all_processes(self, corpus, two):
        settings = [f"model.init_from={corpus}/two/checkpoint_last.pt", "task.target=[arousal,valence]"]
        settings += [
            "optimization.max_update=20",
            "dataset.validate_interval_updates=10",
            "common.log_interval=1",
            "optimization.lr=[0.0001]",
        ]
        settings += [
            f"model.{name}=0"
            for name in ("dropout", "attention_dropout", "head_dropout", "mask_prob", "mask_channel_prob", "speaker_dropout")
        ]
        run(corpus, "dims", *settings, "dataset.batch_size=4", processes=2, config="ser_regression_tiny", model=())
        run_alone(corpus, "dims_alone", *settings, "dataset.batch_size=8", config="ser_regression_tiny", model=())
        assert_same(corpus, "dims", "dims_alone")

    def test_told_to_stop_it_goes_on_later(self, corpus, two):
        process = start(corpus, "stopped", *self.updates, processes=2)
        log = corpus / "stopped" / "hydra_train.log"
        deadline = time.monotonic() + 120
        while '"num_updates": "5"' not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < deadline and process.poll() is None, output(corpus, "stopped")[-3000:]
            time.sleep(0.05)
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
        os.kill(int(workers[1]), signal.SIGUSR1)  # one is enough: all stop after the same update
        assert process.wait(60) != 0
        updates = int((corpus / "stopped" / "stopped").read_text().split()[0])
        assert 5 <= updates < 50
        assert "preempted after" in output(corpus, "stopped")
        settings = " ".join(word.replace(" ", "") for word in command(corpus, "stopped", *self.updates)[5:] if "save_dir" not in word)
        recipe = [
            "bash",
            ROOT / "recipes/pretrain.sh",
            "--config",
            "papt_tiny",
            "--out",
            corpus / "stopped",
            "--nproc",
            "2",
            "--set",
            settings,
        ]
        environment = {**os.environ, "EMOHUBERT_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
        finished = subprocess.run(recipe, capture_output=True, text=True, env=environment, check=False)
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert ": 50 updates in " in finished.stderr
        assert not (corpus / "stopped" / "stopped").exists()
        assert_same(corpus, "stopped", two)

    def planted(self, corpus, name, fault, *overrides):
        folder = corpus / f"plug_in_{name}" / "user_dir"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(PLANTED.format(plug_in=str(ROOT / "user_dir"), fault=fault))
        began = time.monotonic()
        status = start(corpus, name, *self.updates, *overrides, processes=2, user_dir=folder).wait(120)
        return status, time.monotonic() - began, output(corpus, name)

    def test_a_crash_ends_the_job_with_its_traceback_last(self, corpus):
        status, seconds, log = self.planted(corpus, "crash", "raise ArithmeticError('planted in rank 1')")
        assert status != 0
        assert seconds < 60
        last = log.rstrip(" \n=").splitlines()[-1]
        assert "ArithmeticError: planted in rank 1" in last

    def test_a_standstill_is_shown_and_ended(self, corpus):
        status, seconds, log = self.planted(corpus, "stall", "time.sleep(600)", "distributed_training.heartbeat_timeout=5")
        assert status != 0
        assert seconds < 60
        assert "Timeout (0:00:05)!" in log
        assert 'user_dir/__init__.py", line 10 in train_step' in log  # where rank 1 sleeps

    def test_bad_input_is_one_line(self, corpus):
        assert start(corpus, "bad", "task.label_dir=nowhere", "distributed_training.distributed_world_size=2").wait(120) == 2
        assert "Traceback" not in output(corpus, "bad")
        lines = [line for line in output(corpus, "bad").splitlines() if line.startswith("error: ")]
        assert lines and all("nowhere/dict.km.txt: no such file" in line for line in lines)
