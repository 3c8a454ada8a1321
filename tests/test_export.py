"""Exports: what transformers and onnxruntime make of a model's folder or file is what the model itself gives."""

import json
import sys

import numpy as np
import pytest
import torch
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf
from scripts import mostly_slow, run
from test_backbones import LARGE, noise, saved, scattered
from torch import nn

from emohubert.core.programs import shipped
from emohubert.corpus import audio
from emohubert.export import huggingface_folder, onnx_file, source
from emohubert.models.emotion import EmotionHubertConfig, EmotionHubertModel, resolve_backbone
from emohubert.models.from_pretrained import load_encoder
from emohubert.models.heads import HEADS, LinearHead
from emohubert.pretrained.load import read_pretrained
from emohubert.tasks.emotion_finetuning import EmotionFinetuningConfig
from emohubert.tasks.trained import load_trained

transformers = pytest.importorskip("transformers")

CLASSES, SPEAKERS = ["angry", "happy", "sad"], ["anna", "bert"]
LENGTHS = [9_000, 16_000, 5_000]
BATCH = torch.nn.utils.rnn.pad_sequence([0.1 * noise(n, seed=n)[0] + 0.02 for n in LENGTHS], batch_first=True)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """{kind: path of a pretrained encoder with random weights}."""
    root = tmp_path_factory.mktemp("encoders")
    saved(root / "base", "Hubert", num_hidden_layers=2)
    saved(root / "large", "Hubert", num_hidden_layers=2, **LARGE)
    (root / "large" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    saved(root / "wavlm", "WavLM", num_hidden_layers=2, num_buckets=32, max_bucket_distance=40)
    saved(root / "data2vec", "Data2VecAudio", num_hidden_layers=2, num_conv_pos_embeddings=3, conv_pos_kernel_size=5)
    return {kind: root / kind for kind in ("base", "large", "wavlm", "data2vec")}


def checkpoint(path, encoder, target="emo", normalize=None, **values):
    """An emotion model of random weights, as training saves it."""
    values = {"init_from": str(encoder), "speaker_position": "none", "head": "linear", **values}
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.model = OmegaConf.structured(EmotionHubertConfig(_name="emotion_hubert", **values))
    cfg.task = OmegaConf.structured(EmotionFinetuningConfig(_name="emotion_finetuning", data="", target=target, normalize=normalize))
    cfg.model.backbone, pretrained = resolve_backbone(cfg.model)
    knows = cfg.model.backbone.get("speaker_position", "none") != "none" or values.get("head_speaker") == "embedding"
    outputs, voices = (CLASSES if target == "emo" else target), SPEAKERS if cfg.model.speaker_normalisation else []
    model = EmotionHubertModel(cfg.model, len(outputs), SPEAKERS if knows else [], len(voices))
    model.start_from(pretrained)
    with torch.no_grad():
        for name, tensor in (*scattered(model).named_buffers(), *model.named_parameters()):
            if name.endswith(("running_mean", "running_var", "centroids", "normalisation.table")):
                tensor += torch.rand(tensor.shape)
            elif "head" in name or "weight_g" in name:
                tensor.mul_(3)  # so that classes differ
    heard = {"ids": SPEAKERS, "vectors": np.random.default_rng(0).standard_normal((2, 13)).tolist(), "counts": [3, 4]}
    state = {"classes": CLASSES, "class_counts": [1, 1, 1], "speakers": model.backbone.speakers or (SPEAKERS if knows else [])}
    state |= {"training_speakers": SPEAKERS, "earlier_speakers": [], "training_voices": heard, "label_scales": {}}
    cfg = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    torch.save({"cfg": cfg, "task_state": state, "model": model.state_dict(), "extra_state": {}}, path)
    return path


def ours(path, speaker_id=None):
    """(frames, outputs) of each utterance of BATCH alone."""
    read = source.read(path, speaker_id)
    task, model = load_trained(path)
    found = []
    for row, n in zip(BATCH, LENGTHS, strict=True):
        wave = row[:n].numpy()
        wave = torch.from_numpy(audio.normalise(wave) if task.normalise else wave)[None]
        with torch.no_grad():
            out = model(wave, [n], **read.speaker)
        found.append((out["frames"][0], out["output"][0]))
    return found


# -------------------------------------------------------------------------------------------------------- Hugging Face


def theirs(folder, waves):
    """Outputs of transformers for waveforms one by one, float32 arrays."""
    model, info = transformers.AutoModelForAudioClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        return model, torch.cat([model.eval()(wave[None]).logits for wave in waves])


def own_waves(normalised):
    waves = [row[:n] for row, n in zip(BATCH, LENGTHS, strict=True)]
    return [torch.from_numpy(audio.normalise(w.numpy())) for w in waves] if normalised else waves


EXPRESSIBLE = {
    "plain": ("base", None, {}),
    "pre-norm": ("large", None, {}),
    "output, layers": ("base", None, {"speaker_position": "output", "layer_weighting": True}),
    "output, LoRA": ("large", "bert", {"speaker_position": "output", "lora_rank": 2}),
    "input": ("base", None, {"speaker_position": "input"}),
    "film, pre-norm": ("large", "bert", {"speaker_position": "film"}),
    "normalised speakers, one at the head": ("base", "anna", {"speaker_normalisation": True, "head_speaker": "embedding"}),
    "MFCCs at the head": ("base", "bert", {"head_speaker": "mfcc"}),
}


@pytest.mark.parametrize("name", mostly_slow(EXPRESSIBLE, 4))
def test_transformers_gives_our_outputs(encoders, name, tmp_path):
    kind, speaker, values = EXPRESSIBLE[name]
    path = checkpoint(tmp_path / "model.pt", encoders[kind], **values)
    assert huggingface_folder.write(source.read(path, speaker), tmp_path / "hf") == []
    expected = torch.stack([output for _, output in ours(path, speaker)])
    model, found = theirs(tmp_path / "hf", own_waves(kind == "large"))
    assert expected.std(dim=0).min() > 1e-3
    assert (found - expected).abs().max() <= 1e-4
    assert model.config.id2label == dict(enumerate(CLASSES)) and model.config.num_labels == 3
    if {"speaker_position", "head_speaker"} & set(values):
        others = ours(path, "bert" if speaker is None else None)
        assert (torch.stack([output for _, output in others]) - expected).abs().max() > 1e-3


def test_a_padded_batch_of_a_layer_norm_model(encoders, tmp_path):
    path = checkpoint(tmp_path / "model.pt", encoders["large"])
    huggingface_folder.write(source.read(path), tmp_path / "hf")
    waves = own_waves(True)
    batch, mask = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.arange(16_000) < torch.tensor(LENGTHS)[:, None]
    model, alone = theirs(tmp_path / "hf", waves)
    with torch.no_grad():
        assert (model(batch, attention_mask=mask.long()).logits - alone).abs().max() <= 1e-4


def test_dimensions_are_a_regression_and_the_encoder_comes_back(encoders, tmp_path):
    path = checkpoint(tmp_path / "model.pt", encoders["base"], target=["arousal", "valence"], freeze="encoder")
    facts = {"role": "train", "sources": [], "utterances": 1, "corpus": "emodb"}
    rows = f"{json.dumps(facts)}\npath\tn_samples\tspeaker\tsession\na.wav\t36000\tanna\t\n"
    (tmp_path / "train-0.seen").write_text(rows)
    assert run("tools/export_hf.py", path, tmp_path / "hf") == 0
    model, found = theirs(tmp_path / "hf", own_waves(False))
    assert model.config.problem_type == "regression" and model.config.label2id == {"arousal": 0, "valence": 1}
    assert (found - torch.stack([output for _, output in ours(path)])).abs().max() <= 1e-4
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "license: unknown" in card and "(arousal, valence)" in card and "| model.freeze | encoder |" in card
    assert "trained on with labels: emodb, 1 recordings, 0.00 hours, 1 speakers" in card
    features = [load_encoder(p).features(BATCH, LENGTHS, [1, 2])[0] for p in (path, tmp_path / "hf")]
    assert all(torch.equal(features[0][layer], features[1][layer]) for layer in (1, 2))


def test_a_folded_speaker_comes_back_in_the_encoder(encoders, tmp_path):
    path = checkpoint(tmp_path / "model.pt", encoders["base"], speaker_position="input", head="mlp")
    assert run("tools/export_hf.py", path, tmp_path / "hf", "--encoder", "--speaker-id", "anna") == 0
    expected = load_encoder(path).features(BATCH, LENGTHS, [1, 2], ["anna"] * 3)[0]
    found = load_encoder(tmp_path / "hf").features(BATCH, LENGTHS, [1, 2])[0]
    assert all((expected[layer] - found[layer]).abs().max() <= 1e-4 for layer in (1, 2))
    assert read_pretrained(path).config["speaker_position"] == "input"


@pytest.mark.parametrize("normalize", [None, False, True])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_an_encoder_wants_the_waveforms_of_its_emotion_model(encoders, kind, normalize, tmp_path):
    """`task.normalize` overrides what the encoder was pretrained with."""
    path = checkpoint(tmp_path / "model.pt", encoders[kind], normalize=normalize)
    wanted = load_trained(path)[0].normalise
    assert wanted is ((kind == "large") if normalize is None else normalize)
    assert read_pretrained(path).normalise is wanted and source.read(path).pretrained.normalise is wanted


def test_an_encoder_has_no_place_for_a_vector_at_its_output(encoders, tmp_path, capsys):
    path = checkpoint(tmp_path / "model.pt", encoders["base"], speaker_position="output")
    assert run("tools/export_hf.py", path, tmp_path / "hf", "--encoder", "--speaker-id", "anna") == 2
    assert "model.speaker_position=output" in capsys.readouterr().err
    assert run("tools/export_hf.py", path, tmp_path / "hf", "--encoder") == 0
    assert "speaker_conditioning.embedding.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        ("base", {"pooling": "attention"}, "model.pooling=attention"),
        ("base", {"head": "relu_linear"}, "model.head=relu_linear"),
        ("base", {"head": "contrastive"}, "model.head=contrastive"),
        ("base", {"silence_db": 30.0}, "model.silence_db=30.0"),
        ("base", {"speaker_position": "prefix"}, "model.speaker_position=prefix"),
        ("large", {"layer_weighting": True}, "model.layer_weighting=true"),
        ("wavlm", {}, "WavLM"),
    ],
)
def test_what_the_format_cannot_express_is_refused(encoders, kind, values, named, tmp_path, capsys):
    path = checkpoint(tmp_path / "model.pt", encoders[kind], **values)
    assert run("tools/export_hf.py", path, tmp_path / "hf") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"error: {path}: ") and named in line and "tools/export_onnx.py" in line
    assert not (tmp_path / "hf").exists()


def test_an_unknown_speaker_is_refused(encoders, tmp_path, capsys):
    for values, known in (({}, "nobody"), ({"speaker_position": "output"}, "anna, bert")):
        path = checkpoint(tmp_path / "model.pt", encoders["base"], **values)
        assert run("tools/export_onnx.py", path, tmp_path / "model.onnx", "--speaker-id", "carl") == 2
        assert known in capsys.readouterr().err and not (tmp_path / "model.onnx").exists()


# ---------------------------------------------------------------------------------------------------------------- ONNX

ANY = {
    "plain": ("base", {"head": "relu_linear"}),
    "attention, prefix": ("base", {"pooling": "attention", "head": "mlp_deep", "speaker_position": "prefix"}),
    "statistics, film, layers, pre-norm": (
        "large",
        {"pooling": "statistics", "head": "hidden", "speaker_position": "film", "layer_weighting": True},
    ),
    "mean_std, silence, normalised speakers": (
        "base",
        {"pooling": "mean_std", "head": "interpreter", "speaker_position": "input", "silence_db": 3.0, "speaker_normalisation": True},
    ),
    "contrastive, output, embedding": ("large", {"head": "contrastive", "speaker_position": "output", "head_speaker": "embedding"}),
    "MFCCs": ("base", {"head_speaker": "mfcc", "head": "mlp"}),
    "wavlm, LoRA": ("wavlm", {"lora_rank": 2, "speaker_position": "prefix"}),
    "data2vec": ("data2vec", {"layer_weighting": True}),
}


def through_onnx(file, signal, lengths):
    session = pytest.importorskip("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
    return session, session.run(None, {"signal": np.asarray(signal), "lengths": np.asarray(lengths)})


@pytest.mark.parametrize("name", mostly_slow(ANY))
def test_onnxruntime_gives_our_outputs(encoders, name, tmp_path):
    pytest.importorskip("onnxruntime")
    kind, values = ANY[name]
    path = checkpoint(tmp_path / "model.pt", encoders[kind], **values)
    speaker = "bert" if {"speaker_position", "head_speaker"} & set(values) else None
    assert onnx_file.write(source.read(path, speaker), tmp_path / "model.onnx") < 1e-4
    session, (frames, logits) = through_onnx(tmp_path / "model.onnx", BATCH + (BATCH == 0) * 7, LENGTHS)  # the padding is not looked at
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES
    expected = ours(path, speaker)
    assert np.std(logits, axis=0).min() > 1e-3
    for i, (alone, output) in enumerate(expected):
        assert np.abs(frames[i, : len(alone)] - alone.numpy()).max() <= 1e-4 * max(1, alone.abs().max())
        assert not frames[i, len(alone) :].any()
        assert np.abs(logits[i] - output.numpy()).max() <= 1e-4 * max(1, output.abs().max())
        one = session.run(None, {"signal": BATCH[i : i + 1, : LENGTHS[i]].numpy(), "lengths": np.array(LENGTHS[i : i + 1])})
        assert np.abs(one[1][0] - logits[i]).max() <= 1e-4 * max(1, output.abs().max())


def test_embeddings_of_others_than_speakers_stay(encoders, tmp_path, monkeypatch):
    """Such as one in a head of the user's own."""
    pytest.importorskip("onnxruntime")

    class Own(LinearHead):
        def __init__(self, width, outputs, dropout=0.0):
            super().__init__(width, outputs, dropout)
            self[0] = nn.Embedding(5, width)

        def forward(self, x):
            return {"output": self[1](x + self[0].weight.sum(dim=0))}

    monkeypatch.setitem(HEADS, "own", Own)
    path = checkpoint(tmp_path / "model.pt", encoders["base"], head="own", head_speaker="embedding")
    assert onnx_file.write(source.read(path, "bert"), tmp_path / "model.onnx") < 1e-4
    _, (_, logits) = through_onnx(tmp_path / "model.onnx", BATCH, LENGTHS)
    assert np.abs(logits - np.stack([output.numpy() for _, output in ours(path, "bert")])).max() <= 1e-4 * np.abs(logits).max()


def test_a_temperature_beside_the_checkpoint_is_in_the_logits(encoders, tmp_path):
    path = checkpoint(tmp_path / "model.pt", encoders["base"])
    (tmp_path / "temperature.json").write_text('{"temperature": 2.5}')
    expected = torch.stack([output for _, output in ours(path)]) / 2.5
    huggingface_folder.write(source.read(path), tmp_path / "hf")
    assert (theirs(tmp_path / "hf", own_waves(False))[1] - expected).abs().max() <= 1e-4
    onnx_file.write(source.read(path), tmp_path / "model.onnx")
    _, (_, logits) = through_onnx(tmp_path / "model.onnx", BATCH, LENGTHS)
    assert np.abs(logits - expected.numpy()).max() <= 1e-4


def test_an_encoder_has_no_logits(encoders, tmp_path):
    pytest.importorskip("onnxruntime")
    assert run("tools/export_onnx.py", encoders["large"], tmp_path / "model.onnx") == 0
    session, (frames,) = through_onnx(tmp_path / "model.onnx", BATCH, LENGTHS)
    model = transformers.AutoModel.from_pretrained(encoders["large"]).eval()
    for i, wave in enumerate(own_waves(True)):
        with torch.no_grad():
            expected = model(wave[None]).last_hidden_state[0].numpy()
        assert np.abs(frames[i, : len(expected)] - expected).max() <= 1e-4
    assert "classes" not in session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize("factor", [len, lambda source: float("nan") if torch.jit.is_tracing() else 1.0], ids=["batch", "nan"])
def test_a_graph_that_gives_something_else_is_refused(encoders, factor, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    path = checkpoint(tmp_path / "model.pt", encoders["base"])
    forward = EmotionHubertModel.forward

    def wrong(self, source, *args, **given):
        found = forward(self, source, *args, **given)
        return {**found, "output": found["output"] * factor(source)}

    monkeypatch.setattr(EmotionHubertModel, "forward", wrong)
    assert run("tools/export_onnx.py", path, tmp_path / "model.onnx") == 2
    assert "x.size(0)" in capsys.readouterr().err and not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line(encoders, package, tmp_path, capsys, monkeypatch):
    path = checkpoint(tmp_path / "model.pt", encoders["base"])
    monkeypatch.setitem(sys.modules, package, None)
    assert run("tools/export_onnx.py", path, tmp_path / "model.onnx") == 2
    assert f"package {package}: pip install 'emohubert[onnx]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_model_in_the_package_on_real_speech(emodb, tmp_path):
    """ser_small; half precision moves probabilities by little."""
    pytest.importorskip("onnxruntime")
    path, waves = shipped("ser_small"), [audio.read(p) for p in sorted(emodb.glob("*.flac"))[::40]]
    task, model = load_trained(path)
    with torch.no_grad():
        expected = torch.cat([model(torch.from_numpy(w)[None], [len(w)])["output"] for w in waves]) / source.read(path).temperature
    signal = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waves], batch_first=True)
    for options, most in (([], 1e-4), (["--half"], 1e-3)):
        assert run("tools/export_onnx.py", "ser_small", tmp_path / "model.onnx", *options) == 0
        _, (_, logits) = through_onnx(tmp_path / "model.onnx", signal, [len(w) for w in waves])
        moved = (torch.from_numpy(logits).softmax(1) - expected.softmax(1)).abs().max()
        assert moved <= most, options
