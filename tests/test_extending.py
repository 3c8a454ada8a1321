"""A pooling, a head and a speaker position of one's own: each is one class, here or in a user-dir of one's own."""

import argparse

import numpy as np
import pytest
import torch
from finetuning import build, finetune
from scripts import run
from torch import nn
from torch.nn import functional as F
from training import ROOT, TINY

from emohubert.core.errors import InputError
from emohubert.models.heads import HEADS, Head
from emohubert.models.hubert import SpeakerHubertConfig, SpeakerHubertModel
from emohubert.models.pooling import POOLINGS, Pooling, without_padding
from emohubert.models.speaker_conditioning import POSITIONS, SpeakerConditioning


@POOLINGS.register("mean_absolute")
class MeanAbsolutePooling(Pooling):
    """Mean of the frames' magnitudes."""

    def forward(self, x, own):
        return without_padding(x.abs(), own).sum(dim=1) / own.sum(dim=1, keepdim=True)


@HEADS.register("two_layers")
class TwoLayerHead(Head):
    """A narrow hidden layer."""

    def __init__(self, width, outputs, dropout):
        super().__init__(nn.Linear(width, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, outputs))


@POSITIONS.register("scale")
class Scaled(SpeakerConditioning):
    """T(x) · (1 + e) before the Transformer."""

    def before_encoder(self, x, padding_mask, e):
        return x * (1 + e.unsqueeze(1)), padding_mask


def two_updates(model, batch, target):
    """Train; returns how far each parameter has moved."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(**batch)["output"], target).backward()
        optimizer.step()
    return {name: float((p - before[name]).abs().max()) for name, p in model.named_parameters()}


@pytest.fixture
def batch():
    """Two utterances of 0.5 and 0.3 s, of the first and second speaker."""
    source = torch.randn(2, 8_000)
    source[1, 4_800:] = 0
    return {"source": source, "lengths": [8_000, 4_800], "speaker": torch.tensor([1, 2])}


def test_a_pooling(corpus, batch):
    model = build(corpus, pooling="mean_absolute", freeze="none").train()
    moved = two_updates(model, batch, torch.tensor([0, 3]))
    assert moved["head.2.weight"] > 0 and moved["backbone.encoder.layers.0.fc1.weight"] > 0
    found = model.eval()(**batch)
    own = found["frames"][1, : int(found["valid"][1].sum())]
    torch.testing.assert_close(found["embedding"][1], own.abs().mean(dim=0))


def test_a_head(corpus, batch):
    model = build(corpus, head="two_layers", head_dropout=0.1).train()
    assert model.head[2].p == 0.1
    moved = two_updates(model, batch, torch.tensor([0, 3]))
    assert moved["head.0.weight"] > 0 and moved["head.3.bias"] > 0


def test_a_speaker_position(corpus, batch):
    model = build(corpus, speaker_position="scale", freeze="none").train()
    assert model.cfg.backbone["speaker_position"] == "scale"
    assert not model.backbone.speaker_conditioning.embedding.weight.any(), "it starts at the pretrained model"
    moved = two_updates(model, batch, torch.tensor([0, 3]))
    assert moved["backbone.speaker_conditioning.embedding.weight"] > 0
    hubert = SpeakerHubertModel(
        SpeakerHubertConfig(**TINY, speaker_position="scale"), argparse.Namespace(sample_rate=16_000), [range(5)], ["a", "b"]
    )
    masked = {"mask_indices": torch.ones(2, 24, dtype=torch.bool), "target_list": [torch.zeros(2, 24, dtype=torch.long)]}
    assert hubert(**batch, **masked)["logits"]["masked"][0].shape == (24 + 14, 5)


def test_an_unknown_name_is_one_line_and_a_known_one_cannot_be_taken(corpus):
    with pytest.raises(InputError, match=r"model\.pooling=median: unknown; use one of mean, mean_std, attention, statistics, "):
        build(corpus, pooling="median")
    with pytest.raises(InputError, match=r"model\.speaker_position=everywhere: unknown"):
        build(corpus, speaker_position="everywhere")
    with pytest.raises(ValueError, match=r"model\.head=linear is registered already"):
        HEADS.register("linear")


@pytest.mark.slow
def test_a_user_dir_of_ones_own(corpus, tmp_path, monkeypatch):
    """Training imports it by common.user_dir or EMOHUBERT_USER_DIR, programs by EMOHUBERT_USER_DIR."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'user_dir')!r})\n"
        "import emohubert.tasks\n"
        "from emohubert.models.pooling import POOLINGS, Pooling, without_padding\n"
        "@POOLINGS.register('sum')\n"
        "class SumPooling(Pooling):\n"
        "    def forward(self, x, own):\n"
        "        return without_padding(x, own).sum(dim=1)\n"
    )
    options = ["model.pooling=sum", "optimization.max_epoch=1", f"checkpoint.save_dir={tmp_path}/run"]
    finished = finetune(corpus, "classification", f"common.user_dir={tmp_path}/mine", *options)
    assert finished.returncode == 0, finished.stdout[-3000:]
    evaluation = ("tools/evaluate.py", tmp_path / "run" / "checkpoint_last.pt", corpus / "manifest", "test", tmp_path / "out")
    assert run(*evaluation, "--repeats", "20") == 2
    monkeypatch.setenv("EMOHUBERT_USER_DIR", str(tmp_path / "mine"))
    assert run(*evaluation, "--repeats", "20", "--embeddings") == 0
    assert np.load(tmp_path / "out" / "embeddings.npz")["embeddings"].shape == (16, 32)
