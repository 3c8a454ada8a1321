"""recipes/slurm/submit.sh without a Slurm: the chain it would submit, and what it refuses (a real Slurm: tests/slurm)."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from training import ROOT


def submit(*options):
    environment = {**os.environ, "EMOHUBERT_ENV": sys.prefix}
    command = ["bash", ROOT / "recipes/slurm/submit.sh", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_chain_of_a_recipe(tmp_path):
    """Folds and runs are arrays, each stage waits for the one before, trainings get their own resources, runs end in a table."""
    resources = tmp_path / "cluster.conf"
    resources.write_text("COMMON=--partition=gpu --account=lab\nTRAIN=--nodes=2 --ntasks-per-node=4\nMAX_RUNNING=3\n")
    options = [
        "--corpus-dir",
        "x",
        "--manifests",
        "emodb",
        "--init",
        "x.pt",
        "--folds",
        "1 4",
        "--seeds",
        "1 2 3",
        "--out",
        tmp_path / "out",
    ]
    finished = submit("tapt", *options, "--resources", resources, "--dry-run")
    assert finished.returncode == 0, finished.stderr
    jobs = [shlex.split(line) for line in finished.stdout.splitlines()]
    names = [next(word.partition("=")[2] for word in job if word.startswith("--job-name")) for job in jobs]
    assert names == ["tapt-1", "tapt-2", "tapt-3", "tapt-4", "tapt-5", "tapt-5.t", "tapt-6"]
    arrays = {name: re.findall(r"--array=(\S+)", shlex.join(job)) for name, job in zip(names, jobs, strict=True)}
    assert arrays["tapt-4"] == ["0,1%3"] and arrays["tapt-5"] == ["0,1,2,3,4,5%3"] and arrays["tapt-6"] == []
    for job, before in zip(jobs[1:], names[:-1], strict=True):
        assert f"--dependency=afterok:JOB_{before.removeprefix('tapt-')}" in job and "--kill-on-invalid-dep=yes" in job
    assert all("--partition=gpu" in job and "--account=lab" in job for job in jobs)
    assert ["--nodes=2" in job for job in jobs] == [False, False, False, True, False, False, False]
    assert not (tmp_path / "out" / "slurm" / "jobs.tsv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing", "--out", "x"], "nothing: no recipe for Slurm"),
        (["vft"], "--out is missing"),
        (["vft", "--out", "OUT", "--index", "1"], "--index: set for each job here"),
        (["vft", "--out", "OUT", "--status"], "nothing was submitted for this folder"),
        (["vft", "--out", "OUT", "--resources", "OUT/none"], "no such file"),
        (["vft", "--out", "OUT", "--resources", "BAD"], ":2: 'GPUS=8' is not NAME=options"),
        (["vft", "--out", "OUT", "--dry-run", "--frobnicate", "1"], "--frobnicate: unknown option"),
    ],
)
def test_bad_usage_is_one_line(tmp_path, options, message):
    (tmp_path / "bad.conf").write_text("# ours\nGPUS=8\n")
    names = {"OUT": str(tmp_path / "out"), "OUT/none": str(tmp_path / "none"), "BAD": str(tmp_path / "bad.conf")}
    finished = submit(*(names.get(option, option) for option in options))
    assert finished.returncode == 2
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def with_scontrol(folder, status):
    """An environment whose Slurm takes a job that is queued again (status 0) or refuses it, and writes down what it was asked."""
    program = folder / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >>{folder}/asked\nexit {status}\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}


def job(folder, *command):
    return ["bash", ROOT / "recipes/slurm/job.sh", folder, "2", folder / "done", "none", "0", *command]


def test_a_job_that_slurm_does_not_queue_again_says_so(tmp_path):
    finished = subprocess.run(
        job(tmp_path, "sh", "-c", "exit 75"), env=with_scontrol(tmp_path, 1), capture_output=True, text=True, check=False, timeout=60
    )
    assert finished.returncode == 75
    assert "submit again by hand" in finished.stderr
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert not (tmp_path / "done").exists()


@pytest.mark.slow
def test_a_job_that_is_whole_in_spite_of_the_signal_is_not_queued_again(tmp_path):
    """What would queue it again after half of the grace is ended with the job."""
    started = subprocess.Popen(
        job(tmp_path, "sh", "-c", "touch running; sleep 0.5"),
        env=with_scontrol(tmp_path, 0),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (tmp_path / "running").exists():
        time.sleep(0.01)
    started.send_signal(signal.SIGUSR1)
    printed, _ = started.communicate(timeout=60)  # to the end of everything that can still print
    assert started.returncode == 0, printed
    assert "preempted" in printed
    assert (tmp_path / "done" / "0").exists()
    time.sleep(1)  # half of the grace
    assert not (tmp_path / "asked").exists()
