"""The encoder against fairseq's own, and batches against single utterances."""

import argparse

import numpy as np
import pytest
import torch
from fairseq.logging import metrics
from fairseq.models.hubert.hubert import HubertModel
from sklearn.metrics import log_loss
from torch.nn import functional as F
from training import TINY

from emohubert.core.errors import InputError
from emohubert.corpus.audio import n_frames
from emohubert.corpus.frame_labels import NO_LABEL
from emohubert.criterions.masked_prediction import MaskedPrediction
from emohubert.data.masking import span_mask
from emohubert.data.speech import pad_frames
from emohubert.models.hubert import SpeakerHubertConfig, SpeakerHubertModel
from emohubert.models.speaker_conditioning import POSITIONS
from emohubert.pretrained.types import FrameLabelSet, parse_conv_layers

TASK = argparse.Namespace(sample_rate=16_000)
SMALL = {**TINY, "encoder_layers": 3}
PRE_NORM = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
BASE = {"final_dim": 256, "untie_final_proj": True}
LARGE = {
    "extractor_mode": "layer_norm",
    "layer_norm_first": True,
    "encoder_layers": 24,
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 4096,
    "encoder_attention_heads": 16,
    "final_dim": 768,
    "untie_final_proj": True,
}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "dropout_input": 0.0, "dropout_features": 0.0}


def build(sets=(7,), speakers=(), seed=0, **values):
    torch.manual_seed(seed)
    return SpeakerHubertModel(SpeakerHubertConfig(**values), TASK, [range(k) for k in sets], speakers)


def stock(model, sets=(7,)):
    """fairseq's HubertModel with the same weights."""
    twin = HubertModel(model.cfg, TASK, [range(k) for k in sets])
    twin.load_state_dict(model.state_dict())
    return twin.train(model.training)


def batch(lengths, seed=0, sets=(7,), mask=True):
    """Random utterances, targets and masks: a list of single-utterance inputs, and the padded batch of all."""
    rng = np.random.default_rng(seed)
    singles = []
    for n in lengths:
        frames = n_frames(n)
        singles.append(
            {
                "source": torch.from_numpy(rng.standard_normal((1, n), dtype=np.float32)),
                "lengths": [n],
                "target_list": [torch.from_numpy(rng.integers(0, k, (1, frames))) for k in sets],
                "mask_indices": torch.from_numpy(span_mask(frames, 0.8, 10, rng))[None] if mask else None,
            }
        )
    longest = max(n_frames(n) for n in lengths)
    together = {
        "source": torch.cat([F.pad(s["source"], (0, max(lengths) - s["source"].size(1))) for s in singles]),
        "lengths": list(lengths),
        "target_list": [pad_frames([s["target_list"][k][0].numpy() for s in singles], longest, NO_LABEL) for k in range(len(sets))],
        "mask_indices": pad_frames([s["mask_indices"][0].numpy() for s in singles], longest, False) if mask else None,
    }
    return singles, together


def features(model, inputs, **more):
    inputs = {k: v for k, v in inputs.items() if k != "target_list"}
    return model(**inputs, features_only=True, **more)["x"]


def loss_of(model, inputs, counts=None, **weights):
    sets = [FrameLabelSet(str(k), [str(i) for i in range(k)], counts) for k in model.num_classes]
    criterion = MaskedPrediction(argparse.Namespace(label_sets=sets), **weights)
    sample = {"target_list": inputs["target_list"], "ntokens": 1, "nsentences": 1}
    sample["net_input"] = {k: v for k, v in inputs.items() if k != "target_list"}
    return criterion(model, sample)


def stock_loss(twin, single, masked_weight=1.0, unmasked_weight=0.0):
    """fairseq's forward and its criterion's formula, with a given mask."""
    twin.apply_mask = lambda x, padding_mask, target_list: (
        torch.where(single["mask_indices"][..., None], twin.mask_emb, x),
        single["mask_indices"],
    )
    source = single["source"]
    out = twin(source, target_list=single["target_list"], padding_mask=torch.zeros(source.shape, dtype=torch.bool), mask=True)
    loss, size = 0.0, 0
    for weight, masked in ((masked_weight, True), (unmasked_weight, False)):
        if weight > 0:
            logits, targets = twin.get_logits(out, masked), twin.get_targets(out, masked)
            loss = loss + weight * sum(F.cross_entropy(x, t, reduction="sum") for x, t in zip(logits, targets, strict=True))
            size += targets[0].numel()
    return loss + 10 * out["features_pen"] * size, size


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [BASE, LARGE], ids=["base", "large"])
def test_equals_fairseq_hubert_in_published_sizes(architecture):
    model = build(sets=(100,), **architecture, skip_nomask=True).eval()
    twin = stock(model, sets=(100,))
    (single,), _ = batch([20_000], sets=(100,))
    theirs = {}
    for number, layer in enumerate(twin.encoder.layers, 1):
        layer.register_forward_hook(lambda _, __, output, number=number: theirs.update({number: output[0].transpose(0, 1)}))
    with torch.no_grad():
        stock_output = twin(single["source"], features_only=True, mask=False)["x"]
        ours, _ = model.layer_features(single["source"], [20_000], list(theirs))
        for layer, x in ours.items():
            assert (x - theirs[layer][:, : x.size(1)]).abs().max() < 1e-5, layer
        assert (features(model, single, mask=False) - stock_output).abs().max() < 1e-5
        ours, size, _ = loss_of(model, single)
        theirs, stock_size = stock_loss(twin, single)
    assert size == stock_size
    assert abs(ours / size - theirs / size) < 1e-5


@pytest.mark.parametrize(
    "variant", [{}, PRE_NORM, {"untie_final_proj": True}, {"target_glu": True}], ids=["base", "large", "untied", "glu"]
)
def test_loss_and_gradients_equal_fairseqs(variant):
    sets = (7, 11)
    model = build(sets, **SMALL, **NO_DROPOUT, **variant).train()
    twin = stock(model, sets)
    (single,), _ = batch([24_000], sets=sets)
    ours, size, _ = loss_of(model, single, pred_masked_weight=0.7, pred_nomask_weight=0.3)
    theirs, stock_size = stock_loss(twin, single, 0.7, 0.3)
    assert size == stock_size
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours.backward()
    theirs.backward()
    expected = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-4 * float(expected[name].grad.abs().max()) + 1e-6
        )


def test_layer_features_equal_fairseqs_output_layers():
    model = build(**SMALL, **PRE_NORM).eval()
    twin = stock(model)
    (single,), _ = batch([30_000])
    found, _ = model.layer_features(single["source"], [30_000], [1, 2, 3])
    for layer, ours in found.items():
        theirs, _ = twin.extract_features(single["source"], output_layer=layer)
        assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("variant", [{}, pytest.param(PRE_NORM, marks=pytest.mark.slow)], ids=["base", "large"])
def test_features_of_a_batch_equal_those_of_single_utterances(variant, mode):
    """20 utterances of 0.3 to 12 s; in training mode with the same masks."""
    model = build(**SMALL, **NO_DROPOUT, **variant, speaker_position="prefix", speakers=["a", "b", "c"]).train(mode == "train")
    torch.nn.init.normal_(model.speaker_conditioning.embedding.weight, std=0.05)
    lengths = np.random.default_rng(1).integers(4_800, 192_000, 20).tolist()
    lengths[0], lengths[1] = 4_800, 192_000
    singles, together = batch(lengths)
    speakers = torch.arange(20) % 4
    with torch.no_grad():
        batched = features(model, together, speaker=speakers)
        for i, single in enumerate(singles):
            alone = features(model, single, speaker=speakers[i : i + 1])[0]
            assert (batched[i, : len(alone)] - alone).abs().max() < 1e-4, f"utterance {i}"


@pytest.mark.parametrize(("variant", "position"), [({}, p) for p in ("none", *POSITIONS)] + [(PRE_NORM, "input")])
def test_loss_and_gradients_of_a_batch_are_the_sums_over_its_utterances(variant, position):
    model = build(**SMALL, **NO_DROPOUT, **variant, speaker_position=position, speakers=["a", "b", "c"]).train()
    if position != "none":
        torch.nn.init.normal_(model.speaker_conditioning.embedding.weight, std=0.05)
    singles, together = batch([4_800, 40_000, 16_123, 9_999, 30_001, 700])
    speakers = torch.arange(6) % 4
    total, size, _ = loss_of(model, {**together, "speaker": speakers}, pred_nomask_weight=0.5)
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    parts = [loss_of(model, {**single, "speaker": speakers[i : i + 1]}, pred_nomask_weight=0.5) for i, single in enumerate(singles)]
    assert size == sum(s for _, s, _ in parts)
    torch.testing.assert_close(total, sum(part for part, _, _ in parts), rtol=1e-5, atol=1e-3)
    sum(part for part, _, _ in parts).backward()
    for name, parameter in model.named_parameters():
        if name in gradients:
            difference = (gradients[name] - parameter.grad).abs().max()
            assert difference <= 1e-3 * parameter.grad.abs().max() + 1e-4, name


def test_stock_fairseq_is_not_exact_under_padding():
    """What the test above would find in fairseq itself: it can fail."""
    model = build(**SMALL).eval()
    twin = stock(model)
    singles, together = batch([4_800, 60_000], mask=False)
    padding = torch.arange(60_000)[None] >= torch.tensor([[4_800], [60_000]])
    with torch.no_grad():
        batched = twin(together["source"], padding_mask=padding, mask=False, features_only=True)["x"][0]
        alone = twin(singles[0]["source"], mask=False, features_only=True)["x"][0]
    assert (batched[: len(alone)] - alone).abs().max() > 0.01


def test_padding_mask_is_the_same_as_lengths():
    model = build(**SMALL).eval()
    _, together = batch([4_800, 20_000, 16_001], mask=False)
    padding = torch.arange(20_000)[None] >= torch.tensor(together["lengths"])[:, None]
    with torch.no_grad():
        by_lengths = model(together["source"], lengths=together["lengths"], mask=False, features_only=True)
        by_mask = model(together["source"], padding_mask=padding, mask=False, features_only=True)
    assert torch.equal(by_lengths["x"], by_mask["x"])
    assert by_mask["padding_mask"].sum(dim=1).tolist() == [n_frames(20_000) - n_frames(n) for n in together["lengths"]]


@pytest.mark.parametrize("position", ["input", "output", "film"])
def test_training_starts_at_the_pretrained_model(position):
    plain = build(**SMALL).eval()
    model = build(**SMALL, speaker_position=position, speakers=["a", "b"]).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    singles, _ = batch([20_000])
    assert torch.equal(features(model, singles[0], speaker=torch.tensor([1])), features(plain, singles[0]))


def test_prefix_token_starts_as_a_small_disturbance():
    plain = build(**SMALL).eval()
    model = build(**SMALL, speaker_position="prefix", speakers=["a", "b"]).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    singles, _ = batch([32_000], mask=False)
    before, after = features(plain, singles[0]), features(model, singles[0])
    assert before.shape == after.shape
    assert 0 < (before - after).norm() / before.norm() < 0.1


@pytest.mark.parametrize("position", POSITIONS)
def test_the_speaker_matters_and_learns(position):
    model = build(**SMALL, **NO_DROPOUT, speaker_position=position, speakers=["a", "b"])
    torch.nn.init.normal_(model.speaker_conditioning.embedding.weight)
    (single,), _ = batch([20_000])
    losses = [loss_of(model, {**single, "speaker": torch.tensor([row])})[0] for row in (0, 1, 2)]
    assert len({x.item() for x in losses}) == 3
    losses[1].backward()
    moved = model.speaker_conditioning.embedding.weight.grad.abs().sum(dim=1)
    assert moved[1] > 0 and moved[0] == moved[2] == 0


def test_masked_frames_receive_the_speaker():
    """With everything masked, content is gone and only the speaker can make a difference."""
    model = build(**SMALL, speaker_position="input", speakers=["a", "b"]).eval()
    torch.nn.init.normal_(model.speaker_conditioning.embedding.weight)
    (single,), _ = batch([20_000])
    single["mask_indices"] = torch.ones_like(single["mask_indices"])
    one, two = (features(model, single, speaker=torch.tensor([row]))[0] for row in (1, 2))
    assert ((one - two).abs().amax(dim=-1) > 1e-3).all()


def test_frames_without_a_label_carry_no_loss():
    model = build(**SMALL).eval()
    (single,), _ = batch([20_000])
    cut = {**single, "target_list": [single["target_list"][0].clone()]}
    cut["target_list"][0][0, -5:] = NO_LABEL
    _, _, log = loss_of(model, single, features_pen_weight=0.0)
    _, _, cut_log = loss_of(model, cut, features_pen_weight=0.0)
    assert cut_log["count_masked_0"] == log["count_masked_0"] - single["mask_indices"][0, -5:].sum()
    assert cut_log["loss"] < log["loss"]


def test_the_loss_of_the_labels_frequencies_is_scikit_learns():
    model = build(**SMALL).eval()
    (single,), _ = batch([20_000])
    single["target_list"][0][0, -5:] = NO_LABEL
    counts = [5, 1, 40, 0, 3, 3, 8]  # a label that training does not have counts as one frame
    p = np.maximum(counts, 1) / np.maximum(counts, 1).sum()
    _, _, log = loss_of(model, single, counts)
    masked = single["target_list"][0][single["mask_indices"]].numpy()
    masked = masked[masked != NO_LABEL]
    expected = log_loss(masked, np.tile(p, (len(masked), 1)), labels=range(7), normalize=False)
    assert float(log["unigram_masked_0"]) == pytest.approx(expected, rel=1e-12)
    with metrics.aggregate(new_root=True) as logged:
        MaskedPrediction.reduce_metrics([log, log])
    assert logged["unigram_masked_0"].avg == pytest.approx(expected / len(masked) / np.log(2))
    assert not [key for key in loss_of(model, single)[2] if key.startswith("unigram")]


def test_layer_drop_depends_on_torchs_seed_alone():
    model = build(**SMALL, encoder_layerdrop=0.5).train()
    (single,), _ = batch([20_000])

    def run(numpy_seed):
        torch.manual_seed(3)
        np.random.seed(numpy_seed)
        return features(model, single)

    assert torch.equal(run(1), run(2))


@pytest.mark.parametrize(
    "text", ["__import__('os').getcwd()", "[(512,10,5)] + open('x')", "[(1,2)]", "(", "[(512,10,5)]", "[(2,2,2)] * 999999999"]
)
def test_conv_layers_are_read_not_evaluated(text):
    with pytest.raises(InputError):
        parse_conv_layers(text)
    with pytest.raises(InputError):
        build(conv_feature_layers=text)


def test_conv_layers_in_hubert_notation():
    expected = eval("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2")  # noqa: S307 (a literal of ours)
    assert parse_conv_layers("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2") == expected


@pytest.mark.parametrize("values", [{"layer_type": "conformer"}, {"mask_selection": "uniform"}, {"conv_pos_batch_norm": True}])
def test_inexact_variants_are_refused(values):
    with pytest.raises(InputError, match="not supported"):
        build(**SMALL, **values)
