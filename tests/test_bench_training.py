"""tools/bench_training.py: both sides compute the same loss where they should, FLOPs are what they are by hand."""

import argparse
import json
import math

import pytest
import torch
from corpus import make_corpus, make_labels
from scripts import load, run

from emohubert.corpus.audio import n_frames
from emohubert.pretrained.types import parse_conv_layers

pytestmark = pytest.mark.slow  # its tests share trainings that take longer than all of them

PROGRAM = "tools/bench_training.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench():
    return load(PROGRAM)


@pytest.fixture(scope="module")
def sides(bench, tmp_path_factory):
    """Both sides with a batch of three utterances of one length, which has no padding."""
    folder = tmp_path_factory.mktemp("batch")
    args = argparse.Namespace(size="tiny", seed=1, utterance_seconds=[1.0, 1.0], clusters=20)
    bench.write_batch(folder, bench.noise(args, 50_000), args.clusters)
    return bench.build(args, folder, CPU, "float32")


def test_without_padding_losses_are_the_same(bench, sides, monkeypatch):
    found = bench.losses(*sides)
    assert found["alone"]["ours"] == pytest.approx(found["alone"]["fairseq"], rel=1e-5)
    assert found["alone"]["ours"] != pytest.approx(found["batch"]["ours"], rel=1e-5)
    assert found["batch"]["ours"] == pytest.approx(found["batch"]["fairseq"], rel=1e-3)  # the penalty is weighed differently
    monkeypatch.setattr(sides[0].criterion, "features_pen_weight", 0.0)
    monkeypatch.setattr(sides[1].criterion, "loss_weights", [0.0])
    found = bench.losses(*sides)
    assert found["batch"]["ours"] == pytest.approx(found["batch"]["fairseq"], rel=1e-5)
    assert "apply_mask" not in vars(sides[1].model)


def test_both_read_the_same_batch(bench, sides):
    ours, theirs = (side.sample for side in sides)
    assert torch.equal(ours["net_input"]["source"], theirs["net_input"]["source"])
    assert torch.equal(ours["target_list"][0], theirs["target_list"][0])
    assert ours["target_list"][0].min() >= bench.ADDED
    assert ours["net_input"]["speaker"].tolist() != [0, 0, 0] and "speaker" not in theirs["net_input"]


def test_flops_are_those_by_hand(bench, sides):
    """Every product once forward and twice backward, but none towards the waveform."""
    ours = sides[0]
    cfg, batch, samples = ours.model.cfg, *ours.sample["net_input"]["source"].shape
    products, channels, length = 0, 1, samples
    for out, kernel, stride in parse_conv_layers(cfg.conv_feature_layers):
        length = (length - kernel) // stride + 1
        here = batch * length * channels * out * kernel
        products += here * (2 if channels == 1 else 3)
        channels = out
    frames, width = n_frames(samples), cfg.encoder_embed_dim
    even = frames + frames % cfg.required_seq_len_multiple  # fairseq's encoder pads to that
    products += 3 * batch * frames * channels * width
    products += 3 * batch * (frames + 1) * width * width // cfg.conv_pos_groups * cfg.conv_pos  # an even kernel gives one more
    per_layer = even * (4 * width**2 + 2 * width * cfg.encoder_ffn_embed_dim) + 2 * even**2 * width
    products += 3 * batch * cfg.encoder_layers * per_layer
    products += (3 * batch + len(ours.model.speakers)) * width**2  # the speakers' fully connected layer; once more for `speaker_norm`
    masked = int(ours.sample["net_input"]["mask_indices"].sum())
    products += 3 * masked * cfg.final_dim * (width + sum(ours.model.num_classes))
    assert bench.flops_of(ours) == 2 * products
    assert all(p.grad is None for p in ours.model.parameters())


def test_a_batch_of_a_manifest(tmp_path, capsys):
    manifest = make_corpus(tmp_path, seconds=(0.5, 1.2), train=6)
    make_labels(manifest, tmp_path / "labels")
    options = ["--size", "tiny", "--manifest", manifest, "--label-dir", tmp_path / "labels", "--batch-seconds", 3, "--device", "cpu"]
    assert run(PROGRAM, *options, "--updates", 2, "--warmup", 0, "--peak-tflops", 0.5, "--out", tmp_path / "out.json") == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    found = figures["precisions"]["float32"]
    assert figures["clusters"] == 12 and figures["utterances"] > 1
    assert figures["longest_seconds"] > figures["shortest_seconds"]
    assert found["losses"]["alone"]["ours"] == pytest.approx(found["losses"]["alone"]["fairseq"], rel=1e-5)
    assert all(math.isfinite(x) for x in found["losses"]["batch"].values())
    assert found["ours"]["fastest"] <= found["ours"]["seconds"] <= found["ours"]["slowest"]
    assert found["ours"]["overflows"] == found["fairseq"]["overflows"] == 0
    assert found["ratio"] == pytest.approx(found["ours"]["updates_per_second"] / found["fairseq"]["updates_per_second"])
    assert found["of_peak"] == pytest.approx(figures["flops"] / found["ours"]["seconds"] / 0.5e12)
    printed = capsys.readouterr().out
    assert f"ratio {found['ratio']:.2f}" in printed and "not measured" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "fp16"], "needs a GPU"),
        (["--utterance-seconds", 3, 2], "shortest and the longest"),
        (["--batch-seconds", 1], "holds no utterance"),
        (["--peak-tflops", 1, 2], "one positive number for each"),
        (["--manifest", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(options, message, capsys):
    assert run(PROGRAM, "--size", "tiny", "--device", "cpu", *options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
