"""What ends a training says so in one line, with status 2, and costs nothing that was saved."""

import resource
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import training
from corpus import make_corpus, make_labels
from omegaconf import OmegaConf
from scripts import run
from training import MICRO, ROOT, SERVER, train

import emohubert.tasks  # noqa: F401 (registers)
from emohubert.core.errors import InputError
from emohubert.corpus.manifest import read_split
from emohubert.pretrained.safe_files import load_state
from emohubert.training import failures, fairseq_patches

PRETRAINING = {"_name": "speaker_hubert_pretraining", "data": "x", "label_dir": "y"}
MEMORY = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
GROUPS = {
    "task": PRETRAINING,
    "model": {"_name": "speaker_hubert"},
    "criterion": {"_name": "masked_prediction"},
    "optimizer": {"_name": "adam"},
    "lr_scheduler": {"_name": "fixed"},
    "common": {"tpu": False, "seed": 1, "bf16": False, "fp16": False},
    "optimization": {"lr": [0.1], "update_freq": [1]},
}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("task._name=foo", "task._name=foo: unknown; use one of emotion_finetuning, speaker_hubert_pretraining"),
        ("model._name=foo", "model._name=foo: unknown; use one of speaker_hubert, emotion_hubert"),
        ("criterion._name=foo", "criterion._name=foo: unknown; use one of emotion_classification"),
        ("optimizer._name=foo", "optimizer._name=foo: unknown; use one of adadelta, "),
        ("lr_scheduler._name=foo", "lr_scheduler._name=foo: unknown; use one of cosine, decay_to_the_end"),
        ("optimizer=null", "optimizer._name is missing"),
        ("task.dta=x", "task.dta: there is no such option; use task.data"),
        ("optimizer.adam_beta=x", "optimizer.adam_beta: there is no such option; use optimizer.adam_betas"),
        ("task.max_sample_size=x", "task.max_sample_size: Value 'x' of type 'str' could not be converted to Integer"),
        ("model.dropout=x", "model.dropout: Value 'x' of type 'str' could not be converted to Float"),
    ],
)
def test_settings_that_fairseq_does_not_know(setting, expected):
    given = OmegaConf.create(GROUPS)
    failures.check_settings(given)
    with pytest.raises(InputError, match=f"^{expected}"):
        failures.check_settings(OmegaConf.merge(given, OmegaConf.from_dotlist([setting])))


def test_settings_that_must_be_given():
    given = OmegaConf.create(GROUPS)
    del given.task.data
    with pytest.raises(InputError, match="^task.data is missing; give task.data="):
        failures.check_settings(given)


def test_what_a_data_worker_says_is_one_line_without_its_traceback():
    loader = torch.utils.data.DataLoader(_Spoilt(), num_workers=1)
    with pytest.raises(InputError) as raised:
        list(loader)
    assert str(failures.as_input_error(raised.value)) == "a.wav: holds samples that are not finite numbers; restore it"


class _Spoilt(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise InputError("a.wav: holds samples that are not finite numbers; restore it")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), "the log: cannot be written (No space left on device); free some space"),
        (MemoryError(), "too little memory (MemoryError); lower task.max_sample_size"),
        (RuntimeError(MEMORY), "too little memory ([enforce fail"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "a worker failed (DataLoader worker (pid(s) 7)"),
        (RuntimeError("unable to write to file </torch_7_1>: No space left"), "a worker failed (unable to write"),
        (FloatingPointError("gradients are Nan/Inf"), "the training diverges (gradients are Nan/Inf)"),
    ],
)
def test_what_the_machine_does_to_a_training(error, expected):
    assert expected in str(failures.as_input_error(error))


def test_bugs_are_tracebacks():
    for error in (KeyError("x"), RuntimeError("sizes do not match"), AssertionError()):
        assert failures.as_input_error(error) is None


@pytest.mark.parametrize("full", [True, False])
def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch, full):
    path, state, save = tmp_path / "checkpoint_1_3.pt", {"model": {str(i): torch.ones(500) for i in range(5)}}, torch.save
    save({"model": {}}, path)
    before = path.read_bytes()

    def save_a_part(state, name):
        Path(name).write_bytes(b"PK")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 896 vs 854")

    monkeypatch.setattr(torch, "save", save_a_part if full else save)
    if full:
        with pytest.raises(InputError, match=r"checkpoint_1_3\.pt: cannot be written \(is the disk full\?\)"):
            fairseq_patches.saving_whole(None, state, str(path))
        assert path.read_bytes() == before
    else:
        fairseq_patches.saving_whole(None, state, str(path))
        assert len(load_state(path)["model"]) == 5
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus with labels, and a HuBERT pretrained on it for two updates."""
    folder = tmp_path_factory.mktemp("corpus")
    make_labels(make_corpus(folder, seconds=(0.3, 1.2)), folder / "labels")
    finished = train("hubert_tiny", *options(folder), f"checkpoint.save_dir={folder}/hubert", "optimization.max_update=2")
    assert finished.returncode == 0, finished.stdout[-3000:]
    return folder


def options(folder, labels=None):
    return [*MICRO, f"task.data={folder}/manifest", f"task.label_dir={labels or folder}/labels", "task.check_audio=false"]


def error_of(finished):
    errors = [line for line in finished.stdout.splitlines() if line.startswith("error: ")]
    assert finished.returncode == 2 and len(errors) == 1 and "Traceback" not in finished.stdout, finished.stdout[-3000:]
    return errors[0]


def copy_of(corpus, folder):
    """The corpus with audio that a test may spoil."""
    for part in ("audio", "manifest"):
        shutil.copytree(corpus / part, folder / part)
    for split in ("train", "valid"):
        tsv = folder / "manifest" / f"{split}.tsv"
        tsv.write_text("\n".join([str(folder / "audio"), *tsv.read_text().split("\n")[1:]]))
    return folder


def _not_a_number(path):
    samples, rate = soundfile.read(path, dtype="float32")
    samples[100] = np.nan
    soundfile.write(path, samples, rate, subtype="FLOAT")


SPOILT = {
    "holds samples that are not finite": _not_a_number,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-600]),
    "no such audio file": Path.unlink,
}


@pytest.mark.slow
@pytest.mark.parametrize(("expected", "workers"), zip(SPOILT, (0, 1, 1), strict=True))
def test_audio_that_spoils_after_the_start(corpus, tmp_path, expected, workers):
    folder = copy_of(corpus, tmp_path)
    SPOILT[expected](folder / "audio" / "train003.wav")
    more = [f"dataset.num_workers={workers}", f"checkpoint.save_dir={folder}/run", "optimization.max_update=9"]
    found = error_of(train("hubert_tiny", *options(folder, corpus), *more))
    assert "train003.wav" in found and expected in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+task.dta=x", "task.dta: there is no such option"),
        ("model.encoder_attention_heads=5", "model: cannot be built with these settings (AssertionError: embed_dim must be divisible"),
        ("model.speaker_position=foo", "model.speaker_position=foo: unknown"),
        ("optimizer.adam_betas=x", "optimizer, lr_scheduler, optimization: NameError"),
        ("optimization.lr=[1e30]", "the training diverges"),
    ],
)
def test_settings(corpus, tmp_path, override, expected):
    more = [f"checkpoint.save_dir={tmp_path}", "optimization.max_update=3", "lr_scheduler.warmup_updates=0", "task.speakers=spk"]
    assert expected in error_of(train("hubert_tiny", *options(corpus), *more, override))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["restore_file", "finetune_from_model"])
@pytest.mark.parametrize("kind", ["parameters", "no extra state", "another optimizer"])
def test_states_of_other_programs(corpus, tmp_path, way, kind):
    state = load_state(corpus / "hubert" / "checkpoint_last.pt")
    if kind == "parameters":
        state = dict(state["model"])
    elif kind == "no extra state":
        state = {"model": state["model"]}
    else:
        state["optimizer_history"][-1]["optimizer_name"] = "FairseqSGD"
    torch.save(state, tmp_path / "other.pt")
    more = [f"checkpoint.save_dir={tmp_path}/run", "optimization.max_update=3"]
    finished = train("hubert_tiny", *options(corpus), *more, f"checkpoint.{way}={tmp_path}/other.pt")
    if kind == "another optimizer" and way == "finetune_from_model":
        assert finished.returncode == 0, finished.stdout[-3000:]
    else:
        assert "other.pt" in error_of(finished)


@pytest.mark.parametrize("error", [RuntimeError(MEMORY), torch.OutOfMemoryError("CUDA out of memory. Tried to"), MemoryError()])
def test_a_clip_that_memory_cannot_hold(tmp_path, error):
    """Five minutes among short ones; in training and in validation."""
    split = read_split(make_corpus(tmp_path, seconds=(0.3, 0.5), train=4, valid=4), "train")
    split.n_samples[2] = 300 * 16_000
    sample = {"id": torch.tensor([1, 2]), "net_input": {"lengths": [5_000, 300 * 16_000]}}
    settings = SimpleNamespace(train_subset="train", valid_subset="valid")
    trainer = SimpleNamespace(
        _criterion=SimpleNamespace(),
        cfg=SimpleNamespace(dataset=settings),
        task=SimpleNamespace(datasets=defaultdict(lambda: SimpleNamespace(split=split))),
    )

    def step(*_, **__):
        raise error

    expected = r"too little memory for a batch of train: .*train002\.wav, has 300 s; set task\.max_sample_size"
    for call in (
        lambda: fairseq_patches.without_empty_parts(step, trainer, [sample]),
        lambda: fairseq_patches.marking_empty_batches(step, trainer, sample),
    ):
        with pytest.raises(InputError, match=expected):
            call()
    error = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        fairseq_patches.marking_empty_batches(step, trainer, sample)


@pytest.mark.slow
def test_a_full_disk_costs_nothing_that_was_saved(corpus, tmp_path):
    for name in ("whole", "stopped"):
        shutil.copytree(corpus / "hubert", tmp_path / name)
    last = tmp_path / "stopped" / "checkpoint_last.pt"
    before, names = last.read_bytes(), sorted(p.name for p in last.parent.iterdir())
    (last.parent / "checkpoint_9_9.pt.tmp").write_text("of a training that was killed")
    again = [*options(corpus), "optimization.max_update=4"]
    found = error_of(limited(len(before) // 2, "hubert_tiny", *again, f"checkpoint.save_dir={last.parent}"))
    assert "cannot be written (is the disk full?)" in found and "the same command goes on" in found
    assert last.read_bytes() == before and sorted(p.name for p in last.parent.iterdir()) == names
    for name in ("whole", "stopped"):
        assert train("hubert_tiny", *again, f"checkpoint.save_dir={tmp_path}/{name}").returncode == 0
    one, two = (load_state(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "stopped"))
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    assert torch.equal(one["last_optimizer_state"]["state"][0]["exp_avg"], two["last_optimizer_state"]["state"][0]["exp_avg"])


def limited(amount, config, *overrides):
    """`train` in a process that can write files of so many bytes."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = SERVER.Process(target=_limited, args=(amount, training.arguments(config, *overrides), str(ROOT), log.name))
        process.start()
        process.join(120)
        return training.Run(process.exitcode, Path(log.name).read_text(errors="replace"))


def _limited(amount, *arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (amount, resource.RLIM_INFINITY))
    training._fairseq_hydra_train(*arguments)


@pytest.mark.slow
def test_from_any_folder(corpus, tmp_path):
    """The user-dir is found beside the configurations."""
    more = [f"checkpoint.save_dir={tmp_path}/run", "optimization.max_update=1"]
    for name in ("config", "user_dir"):
        (tmp_path / name).symlink_to(ROOT / name)
    finished = train("hubert_tiny", *options(corpus), *more, cwd=corpus, config_dir=tmp_path / "config")
    assert finished.returncode == 0, finished.stdout[-3000:]


COMPOSITION = [
    (("hubert_tiny", "task.dta=x"), "Could not override 'task.dta'"),
    (("hubert_tiny", "common.seed=x"), "Value 'x' of type 'str' could not be converted to Integer"),
    (("hubert_tiny", "task.data=a=b"), "task.data=a=b: mismatched input '='"),
    (("hubert_tiy",), "--config-name hubert_tiy: no such configuration"),
    (("hubert_tiny", "common.user_dir=/nowhere/user_dir"), "give common.user_dir=/path/to/user_dir"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("given", "expected"), COMPOSITION)
def test_what_hydra_refuses(tmp_path, given, expected):
    assert expected in error_of(train(*given, cwd=tmp_path, config_dir=ROOT / "config"))


@pytest.mark.slow
def test_a_folder_of_configurations_that_is_not_there(tmp_path):
    assert "nowhere' not found" in error_of(train("hubert_tiny", config_dir=tmp_path / "nowhere"))


@pytest.mark.slow
def test_the_launcher_says_it_too(tmp_path, capfd):
    assert run("tools/train.py", "hubert_tiny", tmp_path / "run", "task.dta=x") == 2
    assert "error: Could not override 'task.dta'" in capfd.readouterr().err
