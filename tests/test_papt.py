"""PAPT as published (Tran, Yin & Soleymani 2023): f + FC(table[speaker]) at the encoder's output, and the interpreter head, by hand."""

import argparse
import math

import numpy as np
import pytest
import torch
from finetuning import build, finetune, make_pretrained_corpus
from omegaconf import OmegaConf
from torch.nn import functional as F
from training import MICRO, TINY, train

from emohubert.corpus.manifest import read_split
from emohubert.evaluation.inference import speaker_setting
from emohubert.models.from_pretrained import build_encoder, initialise
from emohubert.models.heads import InterpreterHead
from emohubert.models.hubert import SpeakerHubertConfig, SpeakerHubertModel
from emohubert.models.speaker_conditioning import POSITIONS
from emohubert.pretrained.load import read_pretrained
from emohubert.pretrained.safe_files import load_state
from emohubert.tasks.trained import load_trained

LENGTHS = [8_000, 4_800]  # 24 and 14 frames
SPEAKERS = torch.tensor([2, 0])


def model_of(position="output", fc=True, sets=(7,), seed=0, move=True, speakers=("anna", "ben"), **values):
    """A small model whose table and layer have left their start."""
    torch.manual_seed(seed)
    cfg = SpeakerHubertConfig(**{**TINY, "speaker_position": position, "speaker_fc": fc, **values})
    model = SpeakerHubertModel(cfg, argparse.Namespace(sample_rate=16_000), [range(k) for k in sets], list(speakers)).eval()
    if move and model.speaker_conditioning is not None:
        for parameter in model.speaker_conditioning.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def plain_of(model):
    """The same weights without a speaker."""
    plain = model_of("none", fc=False)
    plain.load_state_dict({n: w for n, w in model.state_dict().items() if not n.startswith("speaker_conditioning.")})
    return plain


def noise():
    source = torch.randn(2, 8_000, generator=torch.Generator().manual_seed(1))
    source[1, LENGTHS[1] :] = 0
    return source


def e_by_hand(conditioning, rows):
    """FC(√width · table[speaker]) in numpy."""
    table, weight, bias = (p.detach().numpy() for p in (conditioning.embedding.weight, conditioning.fc.weight, conditioning.fc.bias))
    return torch.from_numpy(math.sqrt(weight.shape[1]) * table[np.array(rows)] @ weight.T + bias)


def features(model, **given):
    with torch.no_grad():
        return model(noise(), lengths=LENGTHS, features_only=True, **given)["x"]


def test_the_speaker_is_added_to_the_output_of_the_last_layer_at_every_frame():
    model = model_of()
    f, e = features(plain_of(model)), e_by_hand(model.speaker_conditioning, SPEAKERS)
    torch.testing.assert_close(features(model, speaker=SPEAKERS), f + e.unsqueeze(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model.speaker_conditioning.mean_norm().item(), e_by_hand(model.speaker_conditioning, [1, 2]).norm(dim=1).mean().item()
    )


def test_no_layer_of_the_encoder_depends_on_the_speaker():
    model, received = model_of(), []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda _, inputs, output: received.append((inputs[0], output[0])))
    for speaker in (torch.tensor([1, 1]), torch.tensor([2, 0])):
        features(model, speaker=speaker)
    assert len(received) == 4 and all(torch.equal(a, b) for i in (0, 1) for a, b in zip(received[i], received[i + 2], strict=True))
    with torch.no_grad():
        one, two = (model.layer_features(noise(), LENGTHS, [1, 2], speaker=s)[0] for s in (torch.tensor([1, 1]), SPEAKERS))
    assert all(torch.equal(one[layer], two[layer]) for layer in (1, 2))


def test_masked_prediction_is_of_f_plus_e():
    model, mask = model_of(), torch.zeros(2, 24, dtype=torch.bool)
    mask[0, 3:13] = mask[1, 5:15] = True  # the 14th frame is the second utterance's last
    targets = [torch.zeros(2, 24, dtype=torch.long)]
    with torch.no_grad():
        (found,) = model(noise(), lengths=LENGTHS, mask_indices=mask, target_list=targets, speaker=SPEAKERS)["logits"]["masked"]
        f = plain_of(model)(noise(), lengths=LENGTHS, mask_indices=mask, features_only=True)["x"]
        moved = (f + e_by_hand(model.speaker_conditioning, SPEAKERS).unsqueeze(1))[mask & (torch.arange(24) < torch.tensor([[24], [14]]))]
        expected = F.cosine_similarity(model.final_proj(moved).unsqueeze(1), model.label_embs_concat.unsqueeze(0), dim=-1) / 0.1
    assert len(found) == 10 + 9
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", [p for p in POSITIONS if p in ("input", "output", "film")])
def test_training_starts_at_the_pretrained_model(position):
    model = model_of(position, move=False)
    assert torch.equal(features(model, speaker=SPEAKERS), features(plain_of(model)))
    conditioning = model.train().speaker_conditioning
    model(noise(), lengths=LENGTHS, features_only=True, speaker=SPEAKERS)["x"].pow(2).sum().backward()
    assert conditioning.embedding.weight.grad[2].abs().sum() > 0, "the zero table learns at once"
    assert not conditioning.embedding.weight.grad[1].any()


def save(path, model, **model_options):
    options = {**OmegaConf.to_container(OmegaConf.structured(model.cfg), enum_to_str=True), "_name": "speaker_hubert", **model_options}
    options = {name: value for name, value in options.items() if value != "absent"}
    cfg = {"model": options, "task": {"_name": "speaker_hubert_pretraining", "normalize": False}}
    torch.save({"model": model.state_dict(), "cfg": cfg, "task_state": {"speakers": model.speakers, "label_sets": []}}, path)
    return read_pretrained(path)


@pytest.mark.parametrize("position", ["input", "output"])
def test_checkpoints_from_before_the_layer_load_and_continue_with_it(tmp_path, position):
    old = model_of(position, fc=False)
    pretrained = save(tmp_path / "old.pt", old, speaker_fc="absent")
    again = build_encoder(pretrained).eval()
    assert again.speaker_conditioning.fc is None and torch.equal(features(again, speaker=SPEAKERS), features(old, speaker=SPEAKERS))
    new = model_of(position, move=False, seed=1)
    report = initialise(new, pretrained)
    assert report.new == ["speaker_conditioning.fc.weight", "speaker_conditioning.fc.bias"]
    torch.testing.assert_close(features(new, speaker=SPEAKERS), features(old, speaker=SPEAKERS))


def test_checkpoints_with_the_layer(tmp_path):
    old = model_of()
    pretrained = save(tmp_path / "papt.pt", old)
    assert torch.equal(features(build_encoder(pretrained).eval(), speaker=SPEAKERS), features(old, speaker=SPEAKERS))
    new = model_of(move=False, speakers=("ben", "cleo"))
    initialise(new, pretrained)
    torch.testing.assert_close(features(new, speaker=torch.tensor([1, 2])), features(old, speaker=torch.tensor([2, 0])))
    for other in (model_of(fc=False, move=False), model_of("input", move=False)):  # the table means nothing there
        report = initialise(other, pretrained)
        assert not other.speaker_conditioning.embedding.weight.any() and not any(n.startswith("speaker_") for n in report.loaded)


@pytest.fixture(scope="module")
def papt(tmp_path_factory):
    """A corpus and an encoder pretrained on it as the configs of PAPT say."""
    return make_pretrained_corpus(
        tmp_path_factory.mktemp("papt"), "task.speakers=spk", "model.speaker_position=output", "model.speaker_fc=true", valid=4, test=4
    )


@pytest.mark.parametrize("layer_weighting", [False, True])
def test_fine_tuning_pools_f_plus_e(papt, layer_weighting):
    model = build(papt, layer_weighting=layer_weighting).eval()
    conditioning = model.backbone.speaker_conditioning
    for parameter in conditioning.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        found = model(noise(), LENGTHS, speaker=SPEAKERS)
        if layer_weighting:
            layers, _ = model.backbone.layer_features(noise(), LENGTHS, [1, 2])
            f = sum(layers.values()) / 2
        else:
            f = model.backbone(noise(), lengths=LENGTHS, features_only=True, speaker_vectors=torch.zeros(2, 32))["x"]
    means = torch.stack([f[i, :n].mean(dim=0) for i, n in enumerate((24, 14))])
    torch.testing.assert_close(found["embedding"], means + e_by_hand(conditioning, SPEAKERS), atol=1e-5, rtol=1e-4)


def test_the_interpreter_by_hand():
    """FC-128 → ReLU → BatchNorm → FC-32 → ReLU → BatchNorm → FC-out, dropout being off, in numpy."""
    head = InterpreterHead(6, 3, 0.4)
    for _ in range(5):
        head(torch.randn(16, 6))
    x = torch.randn(4, 6)
    found = head.eval()(x)["output"].detach().numpy()
    state = {n: w.numpy() for n, w in head.state_dict().items()}
    h = x.numpy()
    for fc, norm in ((0, 3), (4, 7)):
        h = np.maximum(h @ state[f"{fc}.weight"].T + state[f"{fc}.bias"], 0)
        h = (h - state[f"{norm}.running_mean"]) / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
        h = h * state[f"{norm}.weight"] + state[f"{norm}.bias"]
    np.testing.assert_allclose(found, h @ state["8.weight"].T + state["8.bias"], atol=1e-5)
    assert [head[i].out_features for i in (0, 4, 8)] == [128, 32, 3] and [head[i].p for i in (2, 6)] == [0.4, 0.4]


def test_the_interpreter_trains_on_a_batch_of_one():
    """One utterance has no variance: it is normalised by the running statistics, which do not move."""
    head = InterpreterHead(6, 3)
    for _ in range(5):
        head(torch.randn(16, 6))
    before, x = {n: w.clone() for n, w in head.state_dict().items()}, torch.randn(1, 6)
    output = head.train()(x)["output"]
    output.sum().backward()
    assert all(torch.equal(w, before[n]) for n, w in head.state_dict().items()) and head[0].weight.grad.any()
    torch.testing.assert_close(output, head.eval()(x)["output"])


@pytest.mark.slow
def test_from_pretraining_to_predictions(papt, tmp_path):
    """papt_tiny from a checkpoint, then fine-tuning with the interpreter and a batch of one: both checkpoints stand alone."""
    data = [f"task.data={papt}/manifest", f"task.label_dir={papt}/labels", f"model.init_from={papt}/hubert/checkpoint_last.pt"]
    pretraining = train("papt_tiny", *MICRO, *data, "optimization.max_update=3", f"checkpoint.save_dir={tmp_path}/papt")
    assert pretraining.returncode == 0, pretraining.stdout[-3000:]
    weights = load_state(tmp_path / "papt" / "checkpoint_last.pt")["model"]
    assert weights["speaker_conditioning.embedding.weight"][1:].any() and weights["speaker_conditioning.fc.bias"].any()
    options = ["model.head=interpreter", "model.head_dropout=0.2", "dataset.batch_size=1", "optimization.max_epoch=1"]
    options += [f"model.init_from={tmp_path}/papt/checkpoint_last.pt", f"checkpoint.save_dir={tmp_path}/ser"]
    finished = finetune(papt, "classification", *options)
    assert finished.returncode == 0, finished.stdout[-3000:]
    task, model = load_trained(tmp_path / "ser" / "checkpoint_best.pt")
    assert model.backbone.speaker_conditioning.fc is not None and task.speakers == ["anna", "ben", "cleo", "dan"]
    assert speaker_setting(task, read_split(papt / "manifest", "test"))["speaker_embedding"] == "speaker embedding at the output"
