"""LoRA: peft's numbers, what is trained, and merging."""

import copy

import pytest
import torch
from finetuning import build, checkpoint, finetune
from scripts import run
from test_backbones import TASK, noise, saved, theirs
from torch import nn
from torch.nn.utils import parametrize
from training import MICRO, train

from emohubert.core.errors import InputError
from emohubert.core.files import read_json
from emohubert.models.from_pretrained import build_encoder, initialise
from emohubert.models.hubert import SpeakerHubertConfig, SpeakerHubertModel
from emohubert.models.lora import LoRA
from emohubert.pretrained.load import read_pretrained
from emohubert.tasks.trained import load_trained

peft = pytest.importorskip("peft")


def test_a_layer_is_pefts():
    """The same output, gradients and merged weight."""
    ours = nn.Linear(24, 16)
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["layer"])
    their_model = peft.get_peft_model(nn.ModuleDict({"layer": copy.deepcopy(ours)}), config)
    their_layer = their_model.base_model.model["layer"]
    parametrize.register_parametrization(ours, "weight", LoRA(ours.weight, 4, 12))
    lora, x = ours.parametrizations.weight[0], torch.randn(5, 24)
    a, b = their_layer.lora_A["default"].weight, their_layer.lora_B["default"].weight
    assert a.shape == lora.lora_A.shape and b.shape == lora.lora_B.shape and not lora.lora_B.any() and not b.any()
    assert lora.lora_A.std().item() == pytest.approx(a.std().item(), rel=0.3)
    with torch.no_grad():
        lora.lora_A.copy_(a)
        lora.lora_B.normal_()
        b.copy_(lora.lora_B)
    assert torch.allclose(ours(x), their_layer(x), atol=1e-5)
    for layer in (ours, their_layer):
        layer(x).square().sum().backward()
    for found, expected in ((lora.lora_A, a), (lora.lora_B, b)):
        assert torch.allclose(found.grad, expected.grad, rtol=1e-4, atol=1e-4)
    assert torch.allclose(ours.weight, their_model.merge_and_unload()["layer"].weight, atol=1e-6)


TARGETS = {
    "Hubert": {**{f"{n}_proj": f"attention.{n}_proj" for n in ("q", "k", "v", "out")}, "fc1": "feed_forward.intermediate_dense"},
    "WavLM": {"fc1": "feed_forward.intermediate_dense", "fc2": "feed_forward.output_dense"},  # its attention does not call its layers
}


@pytest.mark.parametrize("family", TARGETS)
def test_an_encoder_is_transformers_with_peft(tmp_path, family):
    targets, model = TARGETS[family], saved(tmp_path, family)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=6, target_modules=list(targets.values()))).eval()
    pretrained = read_pretrained(tmp_path)
    ours = with_lora(pretrained, lora_rank=3, lora_alpha=6, lora_targets=list(targets))
    with torch.no_grad():
        for layer, their_layer in zip(ours.encoder.layers, adapted.base_model.model.encoder.layers, strict=True):
            for mine, yours in targets.items():
                lora = layer.get_submodule(mine if mine in ("fc1", "fc2") else f"self_attn.{mine}").parametrizations.weight[0]
                lora.lora_B.normal_(std=0.2)
                their_layer.get_submodule(yours).lora_A["default"].weight.copy_(lora.lora_A)
                their_layer.get_submodule(yours).lora_B["default"].weight.copy_(lora.lora_B)
        layers, _ = ours.layer_features(noise(8_000), [8_000], [1, 2, 3])
        expected = theirs(adapted.base_model.model, noise(8_000))[0]
        plain, _ = build_encoder(pretrained).eval().layer_features(noise(8_000), [8_000], [1])
    assert (layers[1] - plain[1]).abs().max() > 0.1
    for found, wanted in zip(layers.values(), expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-4


def with_lora(pretrained, **options):
    """The encoder with LoRA; the two must be all that is new."""
    model = SpeakerHubertModel(SpeakerHubertConfig(**pretrained.config, **options), TASK, [], []).eval()
    report = initialise(model, pretrained)
    assert len(report.new) == 2 * 3 * len(options["lora_targets"]) and all(".lora_" in n for n in report.new)
    return model


@pytest.mark.parametrize("freeze", ["none", "cnn", "encoder"])
def test_what_is_trained(corpus, freeze):
    """Of the encoder, LoRA and speakers (and, but for `encoder`, the mask); it is in training mode. Zero at first: nothing is changed."""
    model = build(corpus, freeze=freeze, lora_rank=2, lora_targets=["k_proj", "fc2"], mask_prob=0.0)
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    layers = [
        f"encoder.layers.{i}.{n}.parametrizations.weight.0.lora_{m}" for i in (0, 1) for n in ("self_attn.k_proj", "fc2") for m in "AB"
    ]
    assert trained == {*layers, "speaker_conditioning.embedding.weight", *(() if freeze == "encoder" else ("mask_emb",))}
    assert model.train().backbone.training and all(p.requires_grad for p in model.head.parameters())
    with torch.no_grad():
        found, expected = (m.eval()(noise(8_000), [8_000])["embedding"] for m in (model, build(corpus)))
    assert torch.allclose(found, expected, atol=1e-6)


def test_gradients_reach_lora_through_checkpointed_layers(tmp_path):
    """`checkpoint_activations`, with nothing trained below them."""
    saved(tmp_path)
    models = [with_lora(read_pretrained(tmp_path), lora_rank=2, lora_targets=["fc1"], checkpoint_activations=c) for c in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model(noise(8_000, 2), lengths=[8_000, 5_000], features_only=True)["x"].square().sum().backward()
    gradients = [[p.grad for n, p in m.named_parameters() if ".lora_B" in n] for m in models]
    assert all(torch.allclose(a, b) and a.abs().sum() > 0 for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"freeze": "all"}, "freeze=all .*use freeze=encoder, or lora_rank=0"),
        ({"lora_targets": ["query"]}, "lora_targets=.*query.*q_proj, k_proj"),
        ({"lora_targets": []}, "name some of them"),
        ({"lora_rank": -1}, "lora_rank=-1"),
    ],
)
def test_wrong_options(corpus, options, words):
    with pytest.raises(InputError, match=words) as refusal:
        build(corpus, **{"lora_rank": 2, **options})
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_training_evaluation_and_merging(corpus, tmp_path):
    """PAPT, fine-tuning on what it merges to, evaluation, and features of the merged result."""
    papt = train(
        *("papt_tiny", *MICRO, f"task.data={corpus}/manifest", f"task.label_dir={corpus}/labels", f"model.init_from={checkpoint(corpus)}"),
        *("model.lora_rank=2", "model.lora_targets=[q_proj,fc1]", "optimization.max_update=4", f"checkpoint.save_dir={tmp_path}/papt"),
    )
    assert papt.returncode == 0, papt.stdout[-3000:]
    before, after = read_pretrained(checkpoint(corpus)), read_pretrained(tmp_path / "papt" / "checkpoint_last.pt")
    moved = {n for n, w in before.weights.items() if n in after.weights and not torch.equal(w, after.weights[n]) and "encoder.layers" in n}
    assert moved == {f"encoder.layers.{i}.{n}.weight" for i in (0, 1) for n in ("self_attn.q_proj", "fc1")}
    where = (f"model.init_from={after.path}", f"checkpoint.save_dir={tmp_path}/ser")
    finished = finetune(corpus, "classification", *where, "model.lora_rank=2", "optimization.max_epoch=12", "optimization.lr=[0.01]")
    assert finished.returncode == 0, finished.stdout[-3000:]
    trained = tmp_path / "ser" / "checkpoint_last.pt"
    assert run("tools/evaluate.py", trained, corpus / "manifest", "test", tmp_path / "test", "--device", "cpu") == 0
    assert read_json(tmp_path / "test" / "metrics.json")["n"] == 16
    _, model = load_trained(trained)
    merged = build_encoder(read_pretrained(trained)).eval()
    assert any(".lora_" in n for n in model.state_dict()) and not any("parametrizations" in n for n in merged.state_dict())
    assert not torch.equal(merged.encoder.layers[0].self_attn.v_proj.weight, after.weights["encoder.layers.0.self_attn.v_proj.weight"])
    with torch.no_grad():
        found, expected = (m.layer_features(noise(8_000), [8_000], [2])[0][2] for m in (merged, model.backbone))
    assert torch.allclose(found, expected, atol=1e-5)
