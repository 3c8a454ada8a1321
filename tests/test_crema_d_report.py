"""The CREMA-D report: its hyper-parameters, training on cached means, and its recipe on a corpus of the same shape."""

import json

import numpy as np
import pytest
import torch
from corpus import make_corpus
from test_configs import composed
from test_description import release  # noqa: F401
from test_recipes import recipe

from emohubert.corpus.manifest import read_split
from emohubert.data.utterance_labelled import UtteranceLabelledSpeech
from emohubert.models.heads import HEADS


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hyper_parameters():
    """The report: batch 150, Adam 1.1e-3, 20 epochs, 256-64, mean pooling, a frozen encoder."""
    cfg = composed("crema_d_report")
    assert (cfg.dataset.batch_size, cfg.optimization.lr, cfg.optimization.max_epoch) == (150, [0.0011], 20)
    assert (cfg.optimizer._name, cfg.optimizer.adam_betas, cfg.optimizer.weight_decay) == ("adam", "(0.9,0.999)", 0)
    assert (cfg.model.freeze, cfg.model.pooling, cfg.model.head, cfg.model.head_speaker) == ("all", "mean", "mlp", "none")
    assert cfg.lr_scheduler._name == "fixed" and cfg.model.mask_prob == cfg.model.mask_channel_prob == cfg.model.speaker_dropout == 0


@pytest.mark.parametrize(("name", "sizes"), [("mlp", [256, 64, 6]), ("mlp_deep", [1024, 256, 64, 64, 6])])
def test_a_batch_of_one_is_normalised_with_the_running_statistics(name, sizes):
    torch.manual_seed(0)
    head = HEADS[name](32, 6)
    assert [m.out_features for m in head if isinstance(m, torch.nn.Linear)] == sizes
    for _ in range(3):
        head(torch.randn(20, 32) * 3 + 1)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    x = torch.randn(1, 32)
    alone = head(x)["output"]
    alone.sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items()), "one utterance says nothing of the variance"
    assert any(p.grad.abs().sum() > 0 for p in head.parameters())
    torch.testing.assert_close(alone, head.eval()(x)["output"])
    head.train()(torch.randn(2, 32))
    assert not torch.equal(head[1].running_mean, before["1.running_mean"])


class Means:
    """What CachedFeatures are to a dataset."""

    def __init__(self, are_few):
        self.are_few = are_few


def test_cached_means_go_together_whatever_their_length(tmp_path):
    split = read_split(make_corpus(tmp_path, train=100), "train")
    dataset = UtteranceLabelledSpeech(split, np.zeros(100, dtype=np.int64))
    indices, epochs = dataset.ordered_indices(), []
    dataset.features = Means(False)
    by_length = dataset.batch_by_size(indices, 100_000, 15)
    assert max(split.n_samples[b].max() * len(b) for b in by_length) <= 100_000
    dataset.features = Means(True)
    for epoch in (1, 2, 1):
        dataset.set_epoch(epoch)
        batches = dataset.batch_by_size(indices, 100_000, 15)
        assert [len(b) for b in batches] == [15] * 6 + [10], "no budget of samples"
        assert sorted(np.concatenate(batches)) == sorted(indices)
        epochs.append(np.concatenate(batches).tolist())
    assert epochs[0] == epochs[2] != epochs[1] and epochs[0] != sorted(epochs[0])
    spread = [np.ptp(split.n_samples[b]) for b in batches]
    assert min(spread) > 0.5 * np.ptp(split.n_samples), "not sorted by length"
    dataset.training = False
    assert np.concatenate(dataset.batch_by_size(indices, None, 15)).tolist() == indices.tolist()


@pytest.mark.slow
def test_the_report_end_to_end(release, tmp_path):  # noqa: F811
    options = ["--corpus-dir", release, "--manifests", "crema_d", "--out", tmp_path, "--init", "scratch", "--init-updates", "4"]
    options += ["--finetune", "optimization.max_epoch=2", "--heads", "mlp", "--jobs", "2"]
    status, printed = recipe("crema_d_report", *options)
    assert status == 0, printed[-4000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert "random 60/20/20 split of the clips: test speakers are seen in training" in results["title"]
    assert "inductive" not in results["title"], "that is of unseen speakers"
    assert [s["name"] for s in results["systems"]] == [f"{who}, 256-64" for who in ("Base", "Personalised", "MFCC")]
    assert all(s["setting"][0].startswith("seen") and s["utterances"] == 14 for s in results["systems"])
    text = (tmp_path / "results.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| Personalised, 256-64"))
    assert line.split("|")[-2].strip() == "63.1" and "HuBERT large" in text
    assert len(list((tmp_path / "features").glob("train-*.npy"))) == len(list((tmp_path / "features").glob("valid-*.npy"))) == 1
    audit = json.loads((tmp_path / "audit.json").read_text())
    assert audit["ok"] and {leak["kind"] for leak in audit["leaks"]} == {"speaker"}
    assert (tmp_path / "description" / "figures" / "voices_race.png").is_file()
    assert "<figcaption>voices race</figcaption>" in (tmp_path / "report.html").read_text()
    status, again = recipe("crema_d_report", *options, "--stage", "3", "--stop-stage", "3")
    assert status == 0 and "already there" in again


def test_the_report_tells_classes_only(tmp_path):
    options = ["--corpus-dir", tmp_path, "--manifests", "crema_d", "--init", "x", "--out", tmp_path / "out", "--target", "intensity"]
    status, printed = recipe("crema_d_report", *options)
    assert status == 2 and "the report's heads tell classes" in printed
