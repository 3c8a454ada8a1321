"""`fairseq-hydra-train` as users run it: from any directory, killed and resumed, with speakers, with bad input."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import make_corpus, make_labels
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from omegaconf import OmegaConf
from scripts import mostly_slow
from training import MICRO, ROOT, arguments, start, train

from emohubert.core.device import has_bf16
from emohubert.models.from_pretrained import load_encoder
from emohubert.pretrained.safe_files import load_state
from emohubert.tasks.trained import load_trained
from emohubert.training.schedule import DecayToTheEnd, DecayToTheEndConfig


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    manifest = make_corpus(folder, seconds=(0.3, 1.2))
    make_labels(manifest, folder / "labels")
    make_labels(manifest, folder / "sets" / "L1" / "km5", classes=5, seed=1)
    make_labels(manifest, folder / "sets" / "mfcc" / "km9", classes=9, hop=160, seed=2)
    return folder


def data(corpus):
    return [f"task.data={corpus}/manifest", f"task.label_dir={corpus}/labels"]


@pytest.fixture(scope="module")
def pretrained(corpus):
    """A checkpoint of hubert_tiny, and the run's output."""
    run = train("hubert_tiny", *MICRO, *data(corpus), f"checkpoint.save_dir={corpus}/hubert", "optimization.max_update=4")
    assert run.returncode == 0, run.stdout[-3000:]
    return corpus / "hubert" / "checkpoint_last.pt", run.stdout


@pytest.fixture(scope="module")
def personalised(corpus, pretrained):
    """A PAPT checkpoint on two label sets of different rates, run from another directory with relative paths."""
    (corpus / "elsewhere").mkdir()
    run = train(
        "papt_tiny",
        *MICRO,
        "task.data=../manifest",
        "task.label_dir=../sets",
        "task.labels=[L1/km5,mfcc/km9]",
        f"model.init_from={pretrained[0]}",
        "checkpoint.save_dir=run",
        "optimization.max_update=4",
        f"common.user_dir={ROOT}/user_dir",
        "criterion.pred_nomask_weight=0.5",
        cwd=corpus / "elsewhere",
        config_dir=ROOT / "config",
    )
    assert run.returncode == 0, run.stdout[-3000:]
    return corpus / "elsewhere" / "run" / "checkpoint_last.pt", run.stdout


def weights(path):
    return load_state(path)["model"]


def test_pretraining_logs_what_it_promises(corpus, pretrained):
    _, log = pretrained
    for name in ("valid_loss", "valid_accuracy_masked_0", "valid_code_perplexity_masked_0", "valid_features_pen", "valid_unigram_masked_0"):
        assert f'"{name}"' in log
    assert list((corpus / "hubert" / "tensorboard").rglob("events.*"))
    assert '"valid_loss"' in (corpus / "hubert" / "hydra_train.log").read_text()


def test_checkpoints_hold_nothing_but_plain_values(pretrained, personalised):
    for path, _ in (pretrained, personalised):
        assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []


def test_several_label_sets_with_speakers_from_another_directory(personalised):
    path, log = personalised
    assert "speaker_norm" in log and "accuracy_unmasked_1" in log
    state = load_state(path)
    assert state["model"]["speaker_conditioning.embedding.weight"].shape == (5, 32)
    assert state["model"]["label_embs_concat"].shape[0] == 5 + 9
    assert state["task_state"]["speakers"] == ["anna", "ben", "cleo", "dan"]
    assert [s["name"] for s in state["task_state"]["label_sets"]] == ["L1/km5", "mfcc/km9"]


def test_a_checkpoint_stands_alone(corpus, personalised, tmp_path):
    """It loads where neither the manifest nor the labels nor the checkpoint it started from exist."""
    moved = shutil.copy(personalised[0], tmp_path / "moved.pt")
    state = torch.load(moved, weights_only=True)
    state["cfg"]["task"].update(data="/nowhere", label_dir="/nowhere")
    state["cfg"]["model"]["init_from"] = "/nowhere/checkpoint.pt"
    torch.save(state, moved)
    task, model = load_trained(moved)
    assert task.speakers == ["anna", "ben", "cleo", "dan"] and len(model.num_classes) == 2
    assert load_encoder(moved).speakers == task.speakers


@pytest.mark.slow
def test_the_installed_package_is_a_user_dir_too(corpus, pretrained):
    overrides = [*MICRO, *data(corpus), f"checkpoint.save_dir={corpus}/installed", "optimization.max_update=2"]
    run = train("hubert_tiny", *overrides, f"common.user_dir={ROOT}/user_dir/emohubert")
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_and_workers_change_nothing(corpus, workers):
    """The same run twice, once with worker processes that read the audio: bit for bit the same weights."""
    overrides = [*MICRO, *data(corpus), "optimization.max_update=8", f"dataset.num_workers={workers}", "model.encoder_layerdrop=0.2"]
    run = train("hubert_tiny", *overrides, f"checkpoint.save_dir={corpus}/workers{workers}")
    assert run.returncode == 0, run.stdout[-3000:]
    if workers:
        one, two = (weights(corpus / f"workers{n}" / "checkpoint_last.pt") for n in (0, 2))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_rate_of_ten_updates_of_which_two_are_warm_up():
    adam = OmegaConf.structured(FairseqAdamConfig(lr=[0.8], tpu=False))
    rates, optimizer = [], FairseqAdam(adam, [torch.nn.Parameter(torch.zeros(1))])
    scheduler = DecayToTheEnd(DecayToTheEndConfig(lr=[0.8], warmup_ratio=0.2), optimizer)
    assert scheduler.step_update(99) == 0.8  # nobody has said how long
    scheduler.set_length(10)
    scheduler.set_length(11)
    resumed = DecayToTheEnd(DecayToTheEndConfig(lr=[0.8], warmup_ratio=0.2), optimizer)
    resumed.load_state_dict(scheduler.state_dict())
    for s in (scheduler, resumed):
        rates.append([s.step_update(n) for n in range(12)])
    np.testing.assert_allclose(rates, [[0, 0.4, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0]] * 2, atol=1e-12)


@pytest.mark.slow
def test_epochs_are_a_schedule(corpus, pretrained):
    """TAPT's rates are those of the formula over all updates; from a checkpoint within an epoch, weights are the same, bit for bit."""
    schedule = ["optimization.max_epoch=3", "lr_scheduler.warmup_ratio=0.2"]
    saving = ["checkpoint.save_interval_updates=9", "checkpoint.keep_interval_updates=-1"]
    overrides = [
        *MICRO,
        *data(corpus),
        *schedule,
        *saving,
        f"model.init_from={pretrained[0]}",
        "common.fp16=false",
        "dataset.num_workers=0",
    ]
    run = train("tapt_base", *overrides, f"checkpoint.save_dir={corpus}/epochs")
    assert run.returncode == 0, run.stdout[-3000:]
    lines = [json.loads(line[line.index("{") :]) for line in run.stdout.splitlines() if "[train_inner]" in line]
    rates = {int(line["num_updates"]): float(line["lr"]) for line in lines}
    total = max(rates)
    warmup = round(0.2 * total)
    assert total % 3 == 0 and warmup > 1 and f"training from update 0 to {total}" in run.stdout
    for n, rate in rates.items():
        assert rate == pytest.approx(1e-5 * min(n / warmup, (total - n) / (total - warmup)), abs=1e-8)
    (corpus / "continued").mkdir()
    shutil.copy(corpus / "epochs" / "checkpoint_2_9.pt", corpus / "continued" / "checkpoint_last.pt")
    run = train("tapt_base", *overrides, f"checkpoint.save_dir={corpus}/continued")
    assert run.returncode == 0 and '"num_updates": "10"' in run.stdout, run.stdout[-3000:]
    one, two = (weights(corpus / name / "checkpoint_last.pt") for name in ("epochs", "continued"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_ten_kills_change_nothing(corpus):
    """Killed at random moments and started again by the same command: the weights are those of an uninterrupted run, bit for bit."""
    overrides = [
        *MICRO,
        *data(corpus),
        "optimization.max_update=60",
        "checkpoint.save_interval_updates=3",
        "dataset.validate_interval_updates=15",
        "model.encoder_layerdrop=0.2",
        "model.speaker_position=input",
        "task.speakers=spk",
    ]
    train("hubert_tiny", "--help")  # what processes are forked from is there then
    started = time.monotonic()
    run = train("hubert_tiny", *overrides, f"checkpoint.save_dir={corpus}/whole")
    assert run.returncode == 0, run.stdout[-3000:]
    duration = time.monotonic() - started
    chance = random.Random(1)
    kills = 0
    while kills < 10:
        process = start("hubert_tiny", *overrides, f"checkpoint.save_dir={corpus}/killed")
        process.join(chance.uniform(0.3, 0.8) * duration)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        else:
            shutil.rmtree(corpus / "killed")  # it was too fast: begin again, so that ten kills happen
    run = train("hubert_tiny", *overrides, f"checkpoint.save_dir={corpus}/killed")
    assert run.returncode == 0, run.stdout[-3000:]
    whole, killed = (load_state(corpus / name / "checkpoint_last.pt") for name in ("whole", "killed"))
    assert all(torch.equal(whole["model"][name], killed["model"][name]) for name in whole["model"])
    assert whole["optimizer_history"][-1]["num_updates"] == killed["optimizer_history"][-1]["num_updates"] == 60
    moments = [s["last_optimizer_state"]["state"] for s in (whole, killed)]
    assert all(torch.equal(moments[0][k]["exp_avg"], moments[1][k]["exp_avg"]) for k in moments[0])


@pytest.mark.slow
def test_started_again_after_its_end_a_training_changes_nothing(corpus):
    overrides = [*MICRO, *data(corpus), "optimization.max_update=3", f"checkpoint.save_dir={corpus}/ended"]
    contents = []
    for _ in range(2):
        run = train("hubert_tiny", *overrides)
        assert run.returncode == 0, run.stdout[-3000:]
        contents.append({p.name: p.read_bytes() for p in (corpus / "ended").glob("*.pt")})
    assert contents[0] == contents[1] and contents[0]
    assert "trained already: 3 updates" in run.stdout
    assert load_state(corpus / "ended" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 3


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="half precision is right on a GPU")
def test_half_precision_without_a_gpu_trains_in_float32(corpus):
    run = train("hubert_tiny", *MICRO, *data(corpus), f"checkpoint.save_dir={corpus}/half", "optimization.max_update=1", "common.fp16=true")
    assert run.returncode == 0 and "common.fp16: this machine cannot do that at speed" in run.stdout, run.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available() or not has_bf16(torch.device("cpu")), reason="bf16 of a processor")
def test_bf16_on_a_processor_trains_as_float32_does(corpus):
    losses = {}
    for precision in ("false", "true"):
        folder = corpus / f"bf16_{precision}"
        run = train(
            "hubert_tiny", *MICRO, *data(corpus), f"checkpoint.save_dir={folder}", "optimization.max_update=20", f"common.bf16={precision}"
        )
        assert run.returncode == 0, run.stdout[-2000:]
        losses[precision] = load_state(folder / "checkpoint_last.pt")["extra_state"]["best"]
    assert losses["true"] != losses["false"] and losses["true"] == pytest.approx(losses["false"], rel=0.01)


def test_a_kill_while_a_checkpoint_is_copied_loses_nothing(tmp_path, monkeypatch):
    import emohubert.training.fairseq_patches as fixes

    fixes.apply()
    from fairseq.file_io import PathManager

    source, target = tmp_path / "checkpoint_1_3.pt", tmp_path / "checkpoint_last.pt"
    source.write_bytes(b"new" * 1000)
    target.write_bytes(b"old")

    def dies(old, new, size):
        new.write(b"ne")
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", dies)
    with pytest.raises(KeyboardInterrupt):
        PathManager.copy(str(source), str(target), overwrite=True)
    assert target.read_bytes() == b"old" and {p.name for p in tmp_path.iterdir()} == {source.name, target.name}


BAD_INPUT = {
    "missing audio": (lambda d: (d / "audio" / "train003.wav").unlink(), "train003.wav"),
    "truncated WAV": (lambda d: _cut(d / "audio" / "train002.wav"), "truncated"),
    "empty manifest": (lambda d: (d / "manifest" / "train.tsv").write_text("/audio\n"), "lists no audio"),
    "wrong sample count": (lambda d: _edit(d / "manifest" / "train.tsv", 1, lambda s: s[:-1] + "7"), "train.tsv:2"),
    "sidecar of another length": (lambda d: _edit(d / "manifest" / "train.spk", 0, None), "23 lines"),
    "unknown label": (lambda d: _edit(d / "labels" / "train.km", 4, lambda s: "99" + s[1:]), "train.km:5"),
    "empty dictionary": (lambda d: (d / "labels" / "dict.km.txt").write_text(""), "dict.km.txt"),
    "label lines too short": (lambda d: _edit(d / "labels" / "valid.km", 2, lambda s: s.rsplit(" ", 3)[0]), "valid.km:3"),
    "speaker missing from the dictionary": (lambda d: _edit(d / "manifest" / "dict.spk.txt", 1, None), "ben"),
}


def _cut(path):
    path.write_bytes(path.read_bytes()[:-600])


def _edit(path, line, change):
    lines = path.read_text().split("\n")
    lines[line : line + 1] = [] if change is None else [change(lines[line])]
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("what", mostly_slow(BAD_INPUT))
def test_bad_input_is_one_line_and_exit_2(corpus, tmp_path, what):
    """One line `error: …` that names the place, status 2, no traceback."""
    for part in ("audio", "manifest", "labels"):
        shutil.copytree(corpus / part, tmp_path / part)
    for tsv in (tmp_path / "manifest").glob("[tv]*[nd].tsv"):
        _edit(tsv, 0, lambda _: str(tmp_path / "audio"))
    break_it, expected = BAD_INPUT[what]
    break_it(tmp_path)
    run = train(
        "hubert_tiny", *MICRO, *data(tmp_path), "task.speakers=spk", "model.speaker_position=input", f"checkpoint.save_dir={tmp_path}/run"
    )
    errors = [line for line in run.stdout.splitlines() if line.startswith("error: ")]
    assert run.returncode == 2, run.stdout[-2000:]
    assert len(errors) == 1 and expected in errors[0], errors
    assert "Traceback" not in run.stdout


@pytest.mark.slow
def test_the_command_itself_says_it_in_one_line(corpus, tmp_path):
    """The installed program, in a process that a user starts."""
    argv = [
        str(Path(sys.executable).with_name("fairseq-hydra-train")),
        *arguments("hubert_tiny", "task.data=/nowhere", "task.label_dir=/nowhere"),
    ]
    run = subprocess.run([*argv, f"checkpoint.save_dir={tmp_path}/run"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 2
    assert [line for line in run.stderr.splitlines() if line.startswith("error: ")] == [run.stderr.splitlines()[-1]]
    assert "/nowhere" in run.stderr.splitlines()[-1]


def test_an_unwritable_output_folder_is_one_line_and_exit_2(corpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    run = train("hubert_tiny", *MICRO, *data(corpus), f"checkpoint.save_dir={tmp_path}/file/run")
    assert run.returncode == 2 and "Traceback" not in run.stdout
    assert f"error: {tmp_path}/file/run: cannot create this folder" in run.stdout


def test_an_unusable_checkpoint_is_one_line_and_exit_2(corpus, pretrained):
    overrides = [*MICRO, *data(corpus), f"checkpoint.save_dir={corpus}/other", "model.encoder_layers=3"]
    run = train("papt_tiny", *overrides, f"model.init_from={pretrained[0]}")
    assert run.returncode == 2 and "error: " in run.stdout and "2 layers × 32" in run.stdout and "Traceback" not in run.stdout


@pytest.mark.slow
def test_learning_lowers_the_loss(corpus):
    """Labels that depend on the audio are learned: accuracy rises well above chance."""
    manifest, folder = corpus / "manifest", corpus / "learnable"
    folder.mkdir()
    import soundfile

    from emohubert.corpus.manifest import read_split

    for name in ("train", "valid"):
        split = read_split(manifest, name)
        with open(folder / f"{name}.km", "w") as f:
            for i in range(len(split)):
                wave, _ = soundfile.read(split.audio(i))
                tone = np.abs(np.fft.rfft(wave)).argmax() / len(wave) * 16_000
                f.write(" ".join([str(int(tone > 325))] * ((len(wave) - 400) // 320 + 1)) + "\n")
    (folder / "dict.km.txt").write_text("0 1\n1 1\n")
    run = train(
        "hubert_tiny",
        *MICRO,
        f"task.data={manifest}",
        f"task.label_dir={folder}",
        f"checkpoint.save_dir={corpus}/learned",
        "optimization.max_update=40",
        "optimization.lr=[0.003]",
        "lr_scheduler.warmup_updates=5",
    )
    assert run.returncode == 0, run.stdout[-3000:]
    accuracy = float(run.stdout.rsplit('"valid_accuracy_masked_0": "', 1)[1].split('"')[0])
    assert accuracy > 0.75
