"""A training goes on only as what it was: other data or settings in its folder, damaged and foreign checkpoints, two at once."""

import shutil

import pytest
import torch
from corpus import make_corpus, make_labels
from training import MICRO, train

from emohubert.corpus.manifest import read_split
from emohubert.evaluation.inference import speaker_setting
from emohubert.tasks.trained import load_trained
from emohubert.training import resuming

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus, the same with other speakers, the labels of both, and a pretrained HuBERT."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, seed in (("a", 0), ("b", 7)):
        manifest = make_corpus(folder / name, seconds=(0.3, 1.2), seed=seed)
        make_labels(manifest, folder / name / "labels")
    shutil.copytree(folder / "a" / "manifest", folder / "others")
    for path in [*folder.glob("others/*.spk"), folder / "others" / "dict.spk.txt"]:
        path.write_text(path.read_text().replace("anna", "zoe"))
    run = pretrain(folder, "hubert")
    assert run.returncode == 0, run.stdout[-3000:]
    return folder


def pretrain(corpus, name, *overrides, data="a"):
    options = [f"task.data={corpus}/{data}/manifest", f"task.label_dir={corpus}/{data}/labels", f"checkpoint.save_dir={corpus}/{name}"]
    return train("hubert_tiny", *MICRO, *options, "optimization.max_update=2", *overrides)


def tune(corpus, name, *overrides, data="a/manifest"):
    options = [f"task.data={corpus}/{data}", f"model.init_from={corpus}/hubert/checkpoint_last.pt", f"checkpoint.save_dir={corpus}/{name}"]
    return train("ser_classification_tiny", *options, "model.mask_channel_length=4", "optimization.max_epoch=1", *overrides)


@pytest.fixture(scope="module")
def tuned(corpus):
    run = tune(corpus, "tuned")
    assert run.returncode == 0, run.stdout[-3000:]
    return corpus / "tuned"


def error_of(run):
    """The one line of a run that was refused."""
    errors = [line for line in run.stdout.splitlines() if line.startswith("error: ")]
    assert run.returncode == 2 and len(errors) == 1 and "Traceback" not in run.stdout, run.stdout[-3000:]
    return errors[0]


@pytest.mark.parametrize(
    ("overrides", "data", "expected"),
    [
        ((), "b/manifest", "has seen other data"),
        ((), "others", "the task's training_speakers was"),
        (("optimization.lr=[0.5]",), "a/manifest", "optimization.lr was"),
        (("model.pooling=attention",), "a/manifest", "model.pooling was mean and is now attention"),
        (("model.freeze=encoder",), "a/manifest", "model.freeze was"),
        (("task.target=[arousal]",), "a/manifest", "task.target was emo"),
    ],
)
def test_a_training_with_other_settings_is_refused_in_its_folder(corpus, tuned, overrides, data, expected):
    before = {path: path.read_bytes() for path in tuned.glob("*.pt")}
    assert expected in error_of(tune(corpus, "tuned", *overrides, data=data))
    assert {path: path.read_bytes() for path in tuned.glob("*.pt")} == before


def test_harmless_changes_pass_and_data_may_have_moved(corpus, tuned):
    shutil.copytree(corpus / "a" / "manifest", corpus / "moved")
    run = tune(corpus, "tuned", "common.log_interval=3", "optimization.max_epoch=2", data="moved")
    assert run.returncode == 0, run.stdout[-3000:]
    assert load_trained(tuned / "checkpoint_last.pt")[0].selection["epoch"] == 2


def test_speakers_of_an_earlier_training_are_seen(corpus, tuned):
    """Whether weights come by model.init_from or by checkpoint.finetune_from_model."""
    first = tuned / "checkpoint_last.pt"
    for name, override in (("init", f"model.init_from={first}"), ("from", f"checkpoint.finetune_from_model={first}")):
        run = tune(corpus, name, override, data="others")
        assert run.returncode == 0, run.stdout[-3000:]
        task, _ = load_trained(corpus / name / "checkpoint_last.pt")
        assert "anna" in task.state.earlier_speakers and "anna" not in task.state.training_speakers
        split = read_split(corpus / "a" / "manifest", "train")
        split.speakers = ["anna"] * len(split)
        assert speaker_setting(task, split)["setting"] == "seen (1 speakers)"
        again = tune(corpus, name, override, "optimization.max_epoch=2", data="others")
        assert again.returncode == 0, again.stdout[-3000:]
        assert "anna" in load_trained(corpus / name / "checkpoint_last.pt")[0].state.earlier_speakers


def test_two_at_once_in_one_folder(corpus, tmp_path):
    shutil.copytree(corpus / "hubert", corpus / "busy")
    resuming.only_here(corpus / "busy")
    assert "another training is at work" in error_of(pretrain(corpus, "busy"))


@pytest.mark.parametrize(("content", "expected"), [(0, "damaged"), (3000, "damaged"), (b"no", "damaged"), ("foreign", "not a checkpoint")])
def test_a_checkpoint_that_cannot_be_read_and_the_remedy(corpus, tmp_path, content, expected):
    folder = tmp_path / "run"
    shutil.copytree(corpus / "hubert", folder)
    last = folder / "checkpoint_last.pt"
    if content == "foreign":
        torch.save({"weights": torch.ones(3)}, last)
    else:
        last.write_bytes(content if isinstance(content, bytes) else last.read_bytes()[:content])
    (folder / "checkpoint_1_1.pt").write_bytes(b"")
    found = error_of(pretrain(corpus, "hubert", f"checkpoint.save_dir={folder}"))
    assert expected in found and str(last) in found


@pytest.mark.parametrize("name", ["restore_file", "finetune_from_model"])
def test_given_checkpoints_that_are_not_there_or_do_not_fit(corpus, tuned, name):
    assert "no such file" in error_of(pretrain(corpus, f"x{name}", f"checkpoint.{name}={corpus}/none.pt"))
    found = error_of(pretrain(corpus, f"y{name}", f"checkpoint.{name}={tuned}/checkpoint_last.pt"))
    assert "another architecture" in found


@pytest.mark.parametrize(
    ("override", "expected"),
    [("checkpoint.best_checkpoint_metric=foo", "no such metric; use one of"), ("dataset.num_workers=-1", "give 0 or more")],
)
def test_settings_that_fairseq_would_fail_on_late(corpus, override, expected):
    assert expected in error_of(tune(corpus, override.partition("=")[0], override))
