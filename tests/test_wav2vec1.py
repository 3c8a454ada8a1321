"""wav2vec 1.0 under an emotion model (P-TAPT's emotion-state estimator), against fairseq's own for the same weights."""

import argparse
import json

import numpy as np
import pytest
import soundfile
import torch
from corpus import make_corpus
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.logging.meters import AverageMeter, StopwatchMeter, TimeMeter
from fairseq.models.wav2vec.wav2vec import Wav2VecConfig, Wav2VecModel
from fairseq.tasks.audio_pretraining import AudioPretrainingConfig
from omegaconf import OmegaConf
from scripts import run
from torch.nn import functional as F
from training import MICRO, train

from emohubert.core.errors import InputError
from emohubert.corpus.audio import n_frames
from emohubert.models.emotion import EmotionHubertConfig, EmotionHubertModel, resolve_backbone
from emohubert.models.from_pretrained import initialise, load_encoder
from emohubert.models.hubert import SpeakerHubertConfig, SpeakerHubertModel
from emohubert.models.wav2vec1 import Wav2Vec1Encoder
from emohubert.pretrained.load import read_pretrained
from emohubert.pretrained.types import FrameLabelSet
from emohubert.pretrained.wav2vec1 import read_config
from emohubert.tasks.trained import load_trained

EXTRACTOR = "[({0},10,5),({0},8,4)] + [({0},4,2)] * 3 + [({0},1,1)] * 2"
SMALL = {  # the published models' architecture, with fewer channels and convolutions
    "conv_feature_layers": EXTRACTOR.format(12),
    "conv_aggregator_layers": "[(12,2,1),(12,3,1),(16,4,1),(16,13,1)]",
    "prediction_steps": 2,
}
VARIANTS = {
    "published": {},
    "gelu, zeros, no bias": {"activation": "gelu", "agg_zero_pad": True, "no_conv_bias": True, "residual_scale": 1.0},
    "bare": {"log_compression": False, "skip_connections_agg": False, "non_affine_group_norm": True},
}


def fairseq_wav2vec(path, style="cfg", normalize=False, **options):
    """A wav2vec 1 with random weights as fairseq's audio_pretraining saves it; returns the model."""
    torch.manual_seed(1)
    config = OmegaConf.structured(Wav2VecConfig(_name="wav2vec", **{**SMALL, **options}))
    config.infonce = False
    model = Wav2VecModel(config)
    with torch.no_grad():  # fresh norms are all alike and would hide that two are swapped
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.model, cfg.task = config, OmegaConf.structured(AudioPretrainingConfig(_name="audio_pretraining", data="", normalize=normalize))
    cfg = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    state = {"args": None, "cfg": cfg, "model": model.state_dict(), "task_state": {}, "extra_state": {}}
    if style == "args":  # of 2019: no `activation`, no `vq_type`, no `normalize`; half precision
        state["model"] = {name: w.half() for name, w in state["model"].items()}
        old = {
            k: v for k, v in cfg["model"].items() if k not in ("_name", "activation", "infonce") and not k.startswith(("vq_", "combine"))
        }
        names = {"arch": "wav2vec", "task": "audio_pretraining", "criterion": "binary_cross_entropy"}
        state |= {"cfg": None, "args": argparse.Namespace(**old, **names, data="")}
    state["optimizer_history"] = [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 0}]
    torch.save(state, path)
    model = checkpoint_utils.load_model_ensemble([str(path)])[0][0].eval()
    if style == "args":  # with meters, and under other names
        state["args"].arch, state["args"].task = "speech", "speech_pretraining"
        state["extra_state"] = {"train_meters": {"loss": AverageMeter(), "wps": TimeMeter(), "wall": StopwatchMeter()}}
        with pytest.MonkeyPatch.context() as patch:
            for meter in (AverageMeter, TimeMeter, StopwatchMeter):
                patch.setattr(meter, "__module__", "fairseq.meters")
            torch.save(state, path)
    return model


def emotion_model(path, outputs=4, **values):
    cfg = EmotionHubertConfig(init_from=str(path), **values)
    cfg.backbone, pretrained = resolve_backbone(cfg)
    model = EmotionHubertModel(cfg, outputs, pretrained.speakers)
    return model, model.start_from(pretrained)


def noise(*lengths, seed=0):
    """Waveforms, one row for each length, zero-padded."""
    rng = np.random.default_rng(seed)
    waves = [torch.from_numpy(rng.standard_normal(n).astype(np.float32)) * (i + 1) for i, n in enumerate(lengths)]
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)


@pytest.mark.parametrize(("style", "variant"), [*(("cfg", name) for name in VARIANTS), ("args", "published"), ("args", "bare")])
def test_fairseqs_features_come_out(tmp_path, style, variant):
    theirs = fairseq_wav2vec(tmp_path / "w2v.pt", style, **VARIANTS[variant])
    pretrained = read_pretrained(tmp_path / "w2v.pt")
    assert (pretrained.family, pretrained.normalise, pretrained.is_wav2vec1) == ("wav2vec", False, True)
    assert sorted([*pretrained.weights, *pretrained.left_out]) == sorted(theirs.state_dict())
    assert all(name.startswith("wav2vec_predictions.") for name in pretrained.left_out)
    model, report = emotion_model(tmp_path / "w2v.pt")
    assert report.new == ["alignment.weight", "alignment.bias"]
    for samples in (465, 7_777, 16_000):
        source = noise(samples)
        with torch.no_grad():
            expected = theirs.feature_aggregator(theirs.feature_extractor(source))
            found, own = model.eval().backbone.context(source, [samples])
        assert own == [expected.size(2)] and found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_batch_gives_what_its_utterances_give_alone(tmp_path, options):
    """Whatever the lengths: also where wav2vec has fewer frames than twice HuBERT's, and under one frame of it."""
    fairseq_wav2vec(tmp_path / "w2v.pt", **options)
    encoder = emotion_model(tmp_path / "w2v.pt")[0].eval().backbone
    lengths = [9_000, 400, 464, 465, 720, 785, 5_119, 5_121, 16_000]
    source = noise(*lengths)
    padded = F.pad(source, (0, 5_000))
    with torch.no_grad():
        batch, valid = encoder.layer_features(padded, lengths, [1])
        for i, n in enumerate(lengths):
            alone, own = encoder.layer_features(source[i : i + 1, :n], [n], [1])
            assert own.all() and alone[1].shape == (1, n_frames(n), 16) and valid[i].sum() == n_frames(n)
            assert (batch[1][i, : n_frames(n)] - alone[1][0]).abs().max() < 1e-5
        c, own = encoder.context(padded, lengths)
        assert all((c[i, :, n:] == 0).all() for i, n in enumerate(own)) and own == [1 + (max(n, 465) - 465) // 160 for n in lengths]
        assert batch[1].shape[:2] == (9, n_frames(16_000)) and torch.isfinite(batch[1]).all()
        found = encoder(source, lengths)
    assert torch.equal(found["padding_mask"], ~valid) and encoder(source[:1], [9_000])["padding_mask"] is None


def test_every_length_has_one_frame_for_each_label(tmp_path):
    encoder = Wav2Vec1Encoder(read_config({**SMALL, "conv_aggregator_layers": "[(12,2,1)]"}, "w2v.pt"))
    with torch.no_grad():
        for n in [*range(400, 470), *range(1_035, 1_045), *range(1_355, 1_365), *range(1_420, 1_430)]:
            assert encoder(noise(n), [n])["x"].size(1) == n_frames(n), n
    with pytest.raises(InputError, match="under one frame"):
        encoder(noise(399), [399])


def test_a_frame_sees_what_its_place_says(tmp_path):
    """Frame t sees c from 2t - 2 to 2t + 1, zeros outside of the utterance; by hand, for a length where the last frame has only one c."""
    fairseq_wav2vec(tmp_path / "w2v.pt")
    encoder = emotion_model(tmp_path / "w2v.pt")[0].eval().backbone
    source = noise(400 + 320 * 4)  # 5 frames of HuBERT, 8 of wav2vec
    with torch.no_grad():
        c, own = encoder.context(source, [1_680])
        x = encoder(source, [1_680])["x"][0]
        assert own == [8] and len(x) == 5
        padded = torch.cat([torch.zeros(16, 2), c[0], torch.zeros(16, 2)], dim=1)
        for t in range(5):
            seen = padded[:, 2 * t : 2 * t + 4]
            expected = torch.einsum("oik,ik->o", encoder.alignment.weight, seen) + encoder.alignment.bias
            assert (x[t] - expected.clamp(min=0)).abs().max() < 1e-5


def test_masks_are_zeros_in_z(tmp_path):
    theirs = fairseq_wav2vec(tmp_path / "w2v.pt")
    encoder = emotion_model(tmp_path / "w2v.pt")[0].eval().backbone
    n, source = 8_000, noise(8_000)
    frames, channels = torch.zeros(1, n_frames(n), dtype=torch.bool), torch.zeros(1, 12, dtype=torch.bool)
    frames[0, [3, 4, -1]], channels[0, 5:7] = True, True
    with torch.no_grad():
        z = theirs.feature_extractor(source)
        z[:, :, 6:10] = 0
        z[:, :, 2 * n_frames(n) - 2 :] = 0
        z[:, 5:7] = 0
        expected = theirs.feature_aggregator(z)
        found, _ = encoder.context(source, [n], frames, channels)
    assert (found - expected).abs().max() < 1e-5
    assert read_pretrained(tmp_path / "w2v.pt").config["encoder_embed_dim"] == 12


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        ("none", {"feature_extractor", "feature_aggregator", "alignment"}),
        ("cnn", {"feature_aggregator", "alignment"}),
        ("encoder", {"alignment"}),
    ],
)
@pytest.mark.slow
def test_what_is_frozen(tmp_path, freeze, trained):
    fairseq_wav2vec(tmp_path / "w2v.pt")
    model, _ = emotion_model(tmp_path / "w2v.pt", freeze=freeze, frame_head=True)
    found = model.train()(noise(4_000, 2_000), [4_000, 2_000])
    (found["output"].sum() + found["frame_output"].sum()).backward()
    moved = {name.split(".")[0] for name, p in model.backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == trained


REFUSED = {
    "vq_type": ({"vq_type": "gumbel", "vq_vars": 4, "vq_groups": 2}, "vq_type=gumbel is not supported"),
    "aggregator": ({"aggregator": "gru", "gru_dim": 8}, "aggregator=gru is not supported"),
    "skip_connections_feat": ({"skip_connections_feat": True}, "skip_connections_feat=True is not supported"),
    "hop": ({"conv_feature_layers": "[(8,10,5),(8,8,4),(8,4,2)]"}, "only 465 every 160"),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_what_would_not_be_reproduced_is_refused(tmp_path, options, words):
    fairseq_wav2vec(tmp_path / "w2v.pt", **options)
    refused(tmp_path / "w2v.pt", lambda: read_pretrained(tmp_path / "w2v.pt"), words)


BROKEN = {
    "stride": ({"conv_aggregator_layers": "[(12,2,2)]"}, "only a stride of 1"),
    "code": ({"conv_aggregator_layers": "__import__('os').abort()"}, "conv_aggregator_layers: “__import__"),
    "activation": ({"activation": "tanh"}, "activation=tanh is not supported"),
    "shape": ({"conv_feature_layers": EXTRACTOR.format(8)}, "do not fit its options"),
    "too many": ({"conv_aggregator_layers": "[(12,2,1)]"}, "do not fit its options"),
    "too few": ({"conv_aggregator_layers": SMALL["conv_aggregator_layers"] + " + [(16,14,1)]"}, "the checkpoint lacks it"),
}


@pytest.mark.parametrize(("options", "words"), BROKEN.values(), ids=BROKEN)
def test_options_that_make_no_sense_are_one_line(tmp_path, options, words):
    path = tmp_path / "w2v.pt"
    fairseq_wav2vec(path)
    state = torch.load(path, weights_only=True)
    state["cfg"]["model"] |= options
    torch.save(state, path)
    refused(path, lambda: emotion_model(path), words)


def refused(path, action, *words):
    with pytest.raises(InputError) as refusal:
        action()
    message = str(refusal.value)
    assert "\n" not in message and str(path) in message and all(w in message for w in words), message


INAPPLICABLE = {
    "num_layers": ({"num_layers": 1}, "model.num_layers=1"),
    "layer_weighting": ({"layer_weighting": True}, "model.layer_weighting=True"),
    "speaker_position": ({"speaker_position": "input"}, "model.speaker_position=input"),
    "dropout": ({"dropout": 0.3}, "model.dropout=0.3"),
    "layerdrop": ({"encoder_layerdrop": 0.1}, "model.encoder_layerdrop=0.1"),
    "freeze": ({"freeze": "all"}, "use freeze=encoder"),
}


@pytest.mark.parametrize(("values", "words"), INAPPLICABLE.values(), ids=INAPPLICABLE)
def test_what_wav2vec_does_not_have_is_refused(tmp_path, values, words):
    path = tmp_path / "w2v.pt"
    fairseq_wav2vec(path)
    refused(path, lambda: emotion_model(path, **values), words, "wav2vec 1")


def test_it_is_for_emotion_models_only(tmp_path):
    """Pretraining cannot start from it, nor are its own frames, of another rate, clustered."""
    path = tmp_path / "w2v.pt"
    fairseq_wav2vec(path)
    model = SpeakerHubertModel(
        SpeakerHubertConfig(encoder_layers=1, encoder_embed_dim=16, encoder_ffn_embed_dim=16, encoder_attention_heads=2, final_dim=8),
        argparse.Namespace(sample_rate=16_000),
        [FrameLabelSet("km", ["0", "1"])],
    )
    refused(path, lambda: initialise(model, read_pretrained(path)), "no Transformer")
    refused(path, lambda: load_encoder(path), "100 frames a second", "fine-tune")


# a whole training, and what uses its checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of a corpus, checkpoint of an emotion model with a frame head that was trained on a wav2vec 1)."""
    folder = tmp_path_factory.mktemp("estimator")
    manifest = make_corpus(folder, seconds=(0.3, 0.8), train=16, valid=4, test=8)
    fairseq_wav2vec(folder / "w2v.pt", "args")
    finished = tune(folder, "estimator", "optimization.max_epoch=2", "optimization.lr=[0.01]")
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert manifest == folder / "manifest"
    return folder, folder / "estimator" / "checkpoint_last.pt"


def tune(folder, name, *overrides):
    """What recipes/ptapt.sh trains as its estimator, in {folder}/{name}."""
    options = [f"task.data={folder}/manifest", f"model.init_from={folder}/w2v.pt", f"checkpoint.save_dir={folder}/{name}"]
    heads = ["model.frame_head=true", "criterion.frame_weight=1.0", "criterion.class_weights=balanced"]
    return train("ser_classification_tiny", *options, *heads, "model.mask_channel_length=2", "common.cpu=true", *overrides)


@pytest.mark.slow
def test_the_alignment_is_trained_and_kept(trained):
    folder, checkpoint = trained
    _, model = load_trained(checkpoint)
    start = read_pretrained(folder / "w2v.pt")
    pretrained = read_pretrained(checkpoint)
    assert (pretrained.family, pretrained.is_wav2vec1, pretrained.n_layers) == ("emotion_hubert", True, 1)
    assert {"alignment.weight", "alignment.bias"} <= set(pretrained.weights)
    assert all(torch.equal(w, pretrained.weights[n]) for n, w in start.weights.items() if n.startswith("feature_extractor."))
    assert any(not torch.equal(w, pretrained.weights[n]) for n, w in start.weights.items() if n.startswith("feature_aggregator."))
    torch.manual_seed(1)
    fresh = Wav2Vec1Encoder(start.config)
    assert not torch.allclose(fresh.alignment.weight, model.backbone.alignment.weight)
    assert model.frame_head.weight.shape == (4, 16) and model.cfg.backbone["normalize"] is False


@pytest.mark.slow
def test_its_frames_are_clustered_like_those_of_hubert(trained, tmp_path):
    """make_labels and dump_features on the checkpoint: the model's own frames, and a label for each of HuBERT's."""
    folder, checkpoint = trained
    manifest = folder / "manifest"
    assert run("tools/make_labels.py", manifest, tmp_path / "labels", "--checkpoint", checkpoint, "--layers", 1, "--clusters", 3, 5) == 0
    _, model = load_trained(checkpoint)
    where = (manifest, "test", tmp_path / "features", "--checkpoint", checkpoint)
    assert run("tools/dump_features.py", *where, "--layers", 1, "--nshard", 1, "--rank", 0, "--workers", 1) == 0
    dumped, start = np.load(tmp_path / "features" / "L1" / "test_0_1.npy"), 0
    lines = (tmp_path / "labels" / "L1" / "km3" / "test.km").read_text().splitlines()
    for line, labels in zip((manifest / "test.tsv").read_text().splitlines()[1:], lines, strict=True):
        name, samples = line.split("\t")
        wave = torch.from_numpy(soundfile.read(folder / "audio" / name, dtype="float32")[0])
        with torch.no_grad():
            expected = model(wave[None], [len(wave)])["frames"][0].numpy()
        assert len(expected) == len(labels.split()) == n_frames(int(samples))
        assert np.abs(dumped[start : start + len(expected)] - expected).max() < 1e-5
        start += len(expected)
    assert start == len(dumped)
    assert len(set(" ".join(lines).split())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("layer", [2, 12])
def test_other_layers_do_not_exist(trained, tmp_path, capsys, layer):
    folder, checkpoint = trained
    options = (folder / "manifest", tmp_path / "labels", "--checkpoint", checkpoint, "--clusters", 3, "--layers", layer)
    assert run("tools/make_labels.py", *options) == 2
    assert f"--layers {layer}: {checkpoint} has one layer; use --layers 1" in capsys.readouterr().err


@pytest.mark.slow
def test_it_predicts(trained, tmp_path, capsys):
    folder, checkpoint = trained
    assert run("tools/evaluate.py", checkpoint, folder / "manifest", "test", tmp_path / "evaluation", "--embeddings") == 0
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["n"] == 8
    assert np.load(tmp_path / "evaluation" / "embeddings.npz")["embeddings"].shape == (8, 16)
    capsys.readouterr()
    assert run("tools/predict.py", checkpoint, folder / "audio" / "test000.wav", "--format", "json") == 0
    assert "test000.wav" in capsys.readouterr().out


@pytest.mark.slow
def test_a_trained_one_can_be_frozen_whole(trained, tmp_path):
    """model.freeze=all from an emotion model: features computed once, its alignment as it was."""
    folder, checkpoint = trained
    model, report = emotion_model(checkpoint, freeze="all")
    assert report.new == [] and not any(p.requires_grad for p in model.backbone.parameters())
    _, before = load_trained(checkpoint)
    with torch.no_grad():
        found, expected = (m.eval()(noise(4_000), [4_000])["frames"] for m in (model, before))
    assert torch.equal(found, expected)
    options = ["model.frame_head=false", "criterion.frame_weight=0", "model.freeze=all", "optimization.max_epoch=1"]
    finished = tune(folder, tmp_path / "frozen", f"model.init_from={checkpoint}", f"checkpoint.save_dir={tmp_path}/frozen", *options)
    assert finished.returncode == 0, finished.stdout[-3000:]
    _, after = load_trained(tmp_path / "frozen" / "checkpoint_last.pt")
    assert torch.equal(after.backbone.alignment.weight, before.backbone.alignment.weight)


@pytest.mark.slow
def test_pretraining_from_it_is_one_line(trained, tmp_path):
    folder, checkpoint = trained
    options = [f"task.data={folder}/manifest", f"task.label_dir={folder}", f"model.init_from={checkpoint}", *MICRO]
    (folder / "dict.km.txt").write_text("0 1\n1 1\n")
    finished = train("papt_tiny", *options, f"checkpoint.save_dir={tmp_path}", "task.speakers=null", "model.speaker_position=none")
    assert finished.returncode == 2 and "wav2vec 1 has no Transformer to pretrain" in finished.stdout
