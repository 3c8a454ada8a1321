"""The recipes as jobs of a real Slurm with two virtual nodes: arrays, two-node training, a failing shard, a requeued job."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from cluster import Cluster, logs, missing
from corpus import make_corpus, make_labels
from training import MICRO, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing()), reason=f"Slurm is not installed: {', '.join(missing())} (apt-get install slurmctld slurmd slurm-client munge)"
    ),
]
RESOURCES = """
CPU=--cpus-per-task=1
GPU=--cpus-per-task=1
TRAIN=--nodes=2 --ntasks-per-node=1 --cpus-per-task=1
GRACE=60
"""
TRAINING = [
    *MICRO,
    *("model.init_from=null", "model.dropout=0", "model.attention_dropout=0", "common.tensorboard_logdir=null"),
    *("checkpoint.save_interval_updates=0", "dataset.validate_interval_updates=25", "dataset.max_tokens=40000"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        running.environment |= {"EMOHUBERT_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
        yield running


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_labels(make_corpus(folder, seconds=(0.3, 1.2), train=40), folder / "labels")
    return folder


def submit(cluster, folder, *options, expected=0):
    """Run submit.sh; returns ({stage: job}, what it printed)."""
    resources = folder / "resources.conf"
    resources.write_text(RESOURCES)
    finished = cluster.run("bash", ROOT / "recipes/slurm/submit.sh", *options, "--resources", resources, check=False)
    assert finished.returncode == expected, finished.stdout + finished.stderr
    rows = [line.split() for line in finished.stdout.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) > 2 and row[1].isdecimal()}, finished.stdout + finished.stderr


def curve(folder):
    found = []
    for line in (folder / "hydra_train.log").read_text().splitlines():
        if "[train_inner]" in line or "[valid]" in line:
            log = json.loads(line[line.index("{") :])
            found.append(float(log.get("loss") or log["valid_loss"]))
    return found


def test_labels_as_arrays_with_a_shard_that_fails_first(cluster, corpus, tmp_path):
    """The chain stops; repaired, the same command runs that shard alone and completes: byte for byte what one machine makes."""
    options = ["--manifest-dir", corpus / "manifest", "--mfcc", "yes", "--clusters", "5", "--nshard", "2"]
    lost = corpus / "audio" / "train030.wav"
    shutil.move(lost, tmp_path / "lost.wav")
    jobs, _ = submit(cluster, tmp_path, "labels", *options, "--out", tmp_path / "out")
    states = cluster.wait(jobs.values())
    assert sorted(jobs) == ["1", "2", "3", "4"]
    assert [states[f"{jobs['1']}_{i}"] for i in range(2)] == ["COMPLETED", "FAILED"], logs(tmp_path / "out" / "slurm")
    assert {states[job] for name, job in jobs.items() if name in "24"} == {"CANCELLED"}
    assert "train030.wav" in logs(tmp_path / "out" / "slurm")

    shutil.move(tmp_path / "lost.wav", lost)
    jobs, printed = submit(cluster, tmp_path, "labels", *options, "--out", tmp_path / "out")
    states = cluster.wait(jobs.values())
    assert [state for job, state in states.items() if job.startswith(f"{jobs['1']}_")] == ["COMPLETED"], printed
    assert set(states.values()) == {"COMPLETED"}, logs(tmp_path / "out" / "slurm")

    status = subprocess.run(
        ["bash", ROOT / "recipes/labels.sh", *map(str, options), "--out", tmp_path / "here"],
        env={**os.environ, "EMOHUBERT_ENV": sys.prefix, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert status.returncode == 0, status.stderr[-3000:]
    made = sorted(
        p.relative_to(tmp_path / "here") for p in (tmp_path / "here").rglob("*") if p.suffix in (".km", ".npz", ".txt", ".npy", ".len")
    )
    assert len(made) == 2 * 2 + 1 + 2 + 1 + 1  # features and their lengths, centroids, labels of shards and joined, dictionary
    for name in made:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name

    _, printed = submit(cluster, tmp_path, "labels", *options, "--out", tmp_path / "out")
    assert "all done" in printed


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """The curve of one process with the batch of two."""
    folder = tmp_path_factory.mktemp("alone")
    settings = [f"task.data={corpus}/manifest", f"task.label_dir={corpus}/labels", "optimization.max_update=50"]
    program = [f"{sys.prefix}/bin/fairseq-hydra-train", "--config-dir", "config", "--config-name", "papt_tiny", *TRAINING, *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EMOHUBERT_USER_DIR": str(ROOT / "user_dir")}
    subprocess.run(
        [*program, "dataset.max_tokens=80000", f"checkpoint.save_dir={folder}"], env=environment, cwd=ROOT, check=True, capture_output=True
    )
    return curve(folder)


def test_two_nodes_train_as_one(cluster, corpus, alone, tmp_path):
    settings = " ".join([*TRAINING, f"task.data={corpus}/manifest", f"task.label_dir={corpus}/labels", "optimization.max_update=50"])
    settings = settings.replace("'[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2'", "'[(16,10,5)]+[(16,3,2)]*4+[(16,2,2)]*2'")
    jobs, _ = submit(cluster, tmp_path, "pretrain", "--config", "papt_tiny", "--out", tmp_path / "out", "--set", settings)
    states = cluster.wait(jobs.values())
    printed = logs(tmp_path / "out" / "slurm") + (tmp_path / "out" / "output.log").read_text()[-3000:]
    assert set(states.values()) == {"COMPLETED"}, printed
    assert "training on 2 devices" in (tmp_path / "out" / "hydra_train.log").read_text()
    found = curve(tmp_path / "out")
    assert len(found) == len(alone) == 52
    assert max(abs(a - b) for a, b in zip(found, alone, strict=True)) < 1.01e-4


def test_a_job_told_to_end_is_queued_again_and_goes_on(cluster, corpus, alone, tmp_path):
    settings = " ".join([*TRAINING, f"task.data={corpus}/manifest", f"task.label_dir={corpus}/labels", "optimization.max_update=50"])
    settings = settings.replace("'[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2'", "'[(16,10,5)]+[(16,3,2)]*4+[(16,2,2)]*2'")
    out = tmp_path / "out"
    jobs, _ = submit(cluster, tmp_path, "pretrain", "--config", "papt_tiny", "--out", out, "--set", settings)
    (job,) = jobs.values()
    deadline = time.monotonic() + 120
    while not (out / "hydra_train.log").exists() or '"num_updates": "5"' not in (out / "hydra_train.log").read_text():
        assert time.monotonic() < deadline, logs(out / "slurm")
        time.sleep(0.05)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait([job], wanted=("PENDING", "COMPLETED", "FAILED"))
    assert int((out / "stopped").read_text().split()[0]) < 50
    cluster.wait_idle()  # a node that still ends the first run refuses a second of the same number
    # Slurm waits two minutes. Here two seconds: in the second in which the first run was ended, a node refuses the job as revoked.
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")
    assert cluster.wait([job]) == {job: "COMPLETED"}, f"{logs(out / 'slurm')}\n{logs(cluster.folder)}"
    assert "queueing this job again (restart 1)" in logs(out / "slurm")
    assert "Restarts=1" in cluster.run("scontrol", "show", "job", job).stdout
    found = curve(out)
    assert max(abs(a - b) for a, b in zip(found, alone, strict=True)) < 1.01e-4
