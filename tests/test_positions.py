"""WavLM's and data2vec's positions: others' checkpoints against their own code, padding, speakers, and training from them."""

import json

import pytest
import torch
from corpus import make_corpus, make_labels
from omegaconf import OmegaConf
from test_backbones import LARGE, OURS, OURS_LARGE, TASK, difference, noise, ours, saved, scattered, theirs
from training import train

from emohubert.core.errors import InputError
from emohubert.core.files import read_json, write_json
from emohubert.corpus.audio import n_frames
from emohubert.models.from_pretrained import adopt, initialise, load_encoder
from emohubert.models.hubert import SpeakerHubertConfig, SpeakerHubertModel
from emohubert.models.positions import RelativePositions
from emohubert.pretrained.load import read_pretrained
from emohubert.pretrained.types import FrameLabelSet
from emohubert.tasks.trained import load_trained

POSITIONS = {
    "wavlm": {"relative_position_buckets": 32, "relative_position_distance": 40},
    "data2vec": {"pos_conv_depth": 3, "conv_pos": 15},
}
DATA2VEC = {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}


def config(**values):
    return SpeakerHubertConfig(**{**OURS, **values})


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """{name: (folder, model of transformers)}"""
    root = tmp_path_factory.mktemp("folders")
    wavlm = saved(root / "wavlm", "WavLM", num_buckets=32, max_bucket_distance=40)
    return {"wavlm": (root / "wavlm", wavlm), "data2vec": (root / "data2vec", saved(root / "data2vec", "Data2VecAudio", **DATA2VEC))}


@pytest.mark.parametrize("large", [False, True])
def test_microsofts_checkpoints(tmp_path, large):
    """Their flat configuration and fairseq's names, here of weights whose features transformers gives."""
    model = saved(tmp_path / "folder", "WavLM", **({**LARGE, "num_buckets": 32, "max_bucket_distance": 40} if large else {}))
    weights = read_pretrained(tmp_path / "folder").weights
    attention = {n.removeprefix("encoder.layers.0.self_attn.") for n in weights if n.startswith("encoder.layers.0.self_attn.")}
    assert attention >= {"relative_attention_bias.weight", "grep_linear.weight", "grep_linear.bias", "grep_a", "k_proj.bias"}
    assert [n for n in weights if "relative_attention_bias" in n] == ["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    cfg = {**OURS, "normalize": large, "relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 320, "max_distance": 800}
    cfg |= {**OURS_LARGE, "num_buckets": 32, "max_distance": 40} if large else {}
    path = tmp_path / "WavLM.pt"
    torch.save({"cfg": cfg, "model": weights}, path)
    assert difference(ours(path, noise(7_777)), theirs(model, noise(7_777))) <= 1e-4
    assert read_pretrained(path).family == "wavlm" and read_pretrained(path).normalise is large
    torch.save({"cfg": {**cfg, "gru_rel_pos": False}, "model": weights}, path)
    with pytest.raises(InputError, match="gru_rel_pos=False is not supported"):
        read_pretrained(path)


def test_fairseqs_data2vec(tmp_path):
    from fairseq.examples.data2vec.models.data2vec_audio import Data2VecAudioConfig, Data2VecAudioModel

    values = {**OURS, "extractor_mode": "layer_norm", "conv_pos": 95, "pos_conv_depth": 5, "average_top_k_layers": 2}
    config = OmegaConf.merge(OmegaConf.structured(Data2VecAudioConfig), {**values, "max_update": 10, "min_target_var": 0.1})
    model = scattered(Data2VecAudioModel(config))
    cfg = {"model": {**values, "_name": "data2vec_audio"}, "task": {"normalize": True}}
    torch.save({"cfg": cfg, "model": {**model.state_dict(), "_ema": {"of": torch.ones(1)}}}, tmp_path / "data2vec.pt")
    pretrained = read_pretrained(tmp_path / "data2vec.pt")
    assert pretrained.normalise and "_ema" in pretrained.left_out and "final_proj.weight" in pretrained.left_out
    with torch.no_grad():
        layers = [model.extract_features(noise(7_777), None, layer=i)["x"] for i in range(3)]
        last = model.extract_features(noise(7_777), None)["x"]
    assert difference(ours(tmp_path / "data2vec.pt", noise(7_777)), (layers, last)) <= 1e-5


def test_buckets_by_hand():
    """Eight buckets up to distance 16: 0 and 1 exactly, then 2 to 5.6 and all farther, the same again for frames that follow."""
    found = RelativePositions(8, 1, 16).buckets(torch.tensor([0, -1, -2, -5, -6, -100, 1, 2, 5, 6, 100]))
    assert found.tolist() == [0, 1, 2, 2, 3, 3, 5, 6, 6, 7, 7]


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("speaker_position", ["prefix", "film"])
def test_a_batch_gives_what_its_utterances_give_alone_with_speakers(name, speaker_position):
    """The prefix is a frame before the first, at its distance from every other."""
    model = SpeakerHubertModel(config(**POSITIONS[name], speaker_position=speaker_position), TASK, [], ["a", "b"])
    scattered(model)
    lengths, rows = [16_000, 5_000, 9_123], torch.tensor([1, 2, 0])
    source = noise(16_000, 3) * (torch.arange(16_000) < torch.tensor(lengths)[:, None])
    with torch.no_grad():
        layers, _ = model.layer_features(source, lengths, [1, 3], speaker=rows)
        for i, n in enumerate(lengths):
            alone, _ = model.layer_features(source[i : i + 1, :n], [n], [1, 3], speaker=rows[i : i + 1])
            other, _ = model.layer_features(source[i : i + 1, :n], [n], [3], speaker=(rows[i : i + 1] + 1) % 3)
            assert (alone[3] - other[3]).abs().max() > 1e-3
            for layer, x in layers.items():
                assert (x[i, : n_frames(n)] - alone[layer][0]).abs().max() <= 1e-5


@pytest.mark.parametrize(("name", "parts"), [("wavlm", ("grep_", "relative_attention_bias")), ("data2vec", ("pos_conv",))])
def test_positions_are_learned(name, parts):
    model = SpeakerHubertModel(config(**POSITIONS[name], attention_dropout=0.1), TASK, [], []).train()
    model(noise(8_000, 2), lengths=[8_000, 5_000], features_only=True)["x"].square().sum().backward()
    gradients = [p.grad for n, p in model.named_parameters() if any(part in n for part in parts)]
    assert len(gradients) == {"wavlm": 3 * 3 + 1, "data2vec": 6}[name] and all(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize(
    ("values", "wanted"), [(POSITIONS["wavlm"], "pos_conv_depth=3"), (POSITIONS["data2vec"], "set model.pos_conv_depth=1")]
)
def test_positions_must_agree(backbones, values, wanted):
    path = backbones["data2vec" if "relative_position_buckets" in values else "wavlm"][0]
    with pytest.raises(InputError, match=f"the encoder does not fit.*{wanted}"):
        initialise(SpeakerHubertModel(config(**values), TASK, [], []), read_pretrained(path))
    with pytest.raises(InputError, match="relative_position_buckets=2 .*at least 4"):
        SpeakerHubertModel(config(relative_position_buckets=2), TASK, [], [])


@pytest.mark.parametrize("name", POSITIONS)
def test_a_false_name_is_noticed(backbones, name):
    folder = backbones[name][0]
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "model_type": "hubert"})
    with pytest.raises(InputError, match="lacks it|of another model than the weights"):
        load_encoder(folder)
    write_json(folder / "config.json", config)


@pytest.mark.parametrize("name", POSITIONS)
def test_a_configuration_for_hubert_becomes_theirs(backbones, name):
    """TAPT and PAPT start from them: the same features, with new prediction heads and speakers."""
    path, model = backbones[name]
    cfg, pretrained = OmegaConf.create({**OURS, "final_dim": 16, "speaker_position": "output"}), read_pretrained(path)
    assert adopt(cfg, pretrained) is (name == "data2vec") and POSITIONS[name].items() <= cfg.items()
    adopted = OmegaConf.merge(OmegaConf.structured(SpeakerHubertConfig), cfg)
    trained = SpeakerHubertModel(adopted, TASK, [FrameLabelSet("km", ["0", "1"])], ["anna"])
    report = initialise(trained, pretrained)
    assert set(report.new) == {"label_embs_concat", "final_proj.weight", "final_proj.bias", "speaker_conditioning.embedding.weight"}
    with torch.no_grad():
        layers, _ = trained.eval().layer_features(noise(8_000), [8_000], [1, 2, 3])
    for found, expected in zip(layers.values(), theirs(model, noise(8_000))[0], strict=True):
        assert (found - expected).abs().max() <= 1e-4


def test_half_precision(backbones):
    """bf16 products, as in `--precision bf16`: near, and finite in every frame."""
    model, lengths = load_encoder(backbones["wavlm"][0]).model, [8_000, 5_000]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(noise(8_000, 2), lengths=lengths, features_only=True)["x"].float()
    with torch.no_grad():
        expected = model(noise(8_000, 2), lengths=lengths, features_only=True)["x"]
    assert found.isfinite().all() and (found - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", POSITIONS)
def test_training_runs_from_them(backbones, name, tmp_path):
    """Continued pretraining with a configuration for HuBERT, resumed; labels and fine-tuning from its checkpoint."""
    manifest = make_corpus(tmp_path, train=8, valid=4, test=4)
    labels = make_labels(manifest, tmp_path / "labels")
    common = [f"task.data={manifest}", "dataset.num_workers=0", "common.cpu=true"]
    architecture = [f"model.{n}={json.dumps(v) if not isinstance(v, str) else repr(v)}" for n, v in OURS.items()]
    papt = [*common, *architecture, f"task.label_dir={labels}", "model.final_dim=16", f"checkpoint.save_dir={tmp_path / 'papt'}"]
    for updates in (2, 3):
        finished = train("papt_tiny", *papt, f"model.init_from={backbones[name][0]}", f"optimization.max_update={updates}")
        assert finished.returncode == 0, finished.stdout[-3000:]
    checkpoint = tmp_path / "papt" / "checkpoint_last.pt"
    encoder = load_encoder(checkpoint)
    assert encoder.normalise is (name == "data2vec") and POSITIONS[name].items() <= encoder.model.cfg.items()
    assert load_trained(checkpoint)[0].state.normalise is encoder.normalise
    tuning = [f"model.init_from={checkpoint}", "optimization.max_epoch=1", f"checkpoint.save_dir={tmp_path / 'ser'}"]
    finished = train("ser_classification_tiny", *common, *tuning, "model.speaker_position=prefix")
    assert finished.returncode == 0, finished.stdout[-3000:]
    task, model = load_trained(tmp_path / "ser" / "checkpoint_last.pt")
    assert task.normalise is encoder.normalise and POSITIONS[name].items() <= model.backbone.cfg.items()
