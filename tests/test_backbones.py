"""Pretrained encoders of others: Hugging Face folders against transformers, wav2vec 2.0 against fairseq, for the same weights."""

import argparse
import json
import shutil

import numpy as np
import pytest
import torch
from corpus import make_corpus, make_labels
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model
from fairseq.tasks.audio_pretraining import AudioPretrainingConfig
from hostile import Hostile
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from scripts import run
from torch.nn import functional as F
from training import train

import emohubert.pretrained.huggingface as huggingface
from emohubert.core import programs
from emohubert.core.errors import InputError
from emohubert.core.files import read_json, sha256, write_json
from emohubert.corpus.audio import n_frames
from emohubert.models.emotion import EmotionHubertConfig, EmotionHubertModel, resolve_backbone
from emohubert.models.from_pretrained import build_encoder, initialise, load_encoder
from emohubert.models.hubert import SpeakerHubertConfig, SpeakerHubertModel
from emohubert.pretrained.huggingface import write_folder
from emohubert.pretrained.load import read_pretrained
from emohubert.pretrained.safe_files import load_state
from emohubert.pretrained.types import FrameLabelSet
from emohubert.tasks.trained import load_trained

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS = {
    "hubert-base": ("Hubert", {}),
    "hubert-large": ("Hubert", LARGE),
    "wav2vec2-base": ("Wav2Vec2", {}),
    "wav2vec2-large": ("Wav2Vec2", LARGE),
    "stable-with-group-norm": ("Wav2Vec2", {"do_stable_layer_norm": True, "num_conv_pos_embeddings": 15}),
    "post-norm-with-layer-norm": ("Hubert", {"feat_extract_norm": "layer"}),
    "wavlm-base": ("WavLM", {}),
    "wavlm-large": ("WavLM", {**LARGE, "num_buckets": 32, "max_bucket_distance": 40}),
    "data2vec-base": ("Data2VecAudio", {"num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19}),
    "data2vec-base-even": ("Data2VecAudio", {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 4, "conv_bias": True}),
}
WRITTEN = [kind for kind, (family, _) in KINDS.items() if family in ("Hubert", "Wav2Vec2")]
OURS = {  # the same in fairseq's terms
    "encoder_layers": 3,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 4,
    "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2",
    "conv_pos": 16,
    "conv_pos_groups": 4,
}
OURS_LARGE = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
TASK = argparse.Namespace(sample_rate=16_000)


def scattered(model, seed=0):
    """Every parameter away from its start: fresh LayerNorms are all alike and would hide that two are swapped."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def saved(folder, family="Wav2Vec2", head="Model", **options):
    """A model of transformers with random weights, saved as it saves them."""
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **options})
    torch.manual_seed(0)
    model = scattered(getattr(transformers, family + head)(config))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{kind: (folder, model)}."""
    root = tmp_path_factory.mktemp("folders")
    return {kind: (root / kind, saved(root / kind, family, **options)) for kind, (family, options) in KINDS.items()}


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of one folder to change."""
    return shutil.copytree(folders["wav2vec2-base"][0], tmp_path / "model")


def theirs(model, source, lengths=None):
    """Outputs of every Transformer layer of transformers, and of the whole encoder."""
    found, encoder = [], getattr(model, model.base_model_prefix, model)
    hooks = [layer.register_forward_hook(lambda _, __, out: found.append(out)) for layer in encoder.encoder.layers]
    mask = None if lengths is None else (torch.arange(source.size(1)) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        last = encoder(source, attention_mask=mask).last_hidden_state
    for hook in hooks:
        hook.remove()
    return [x[0] if isinstance(x, tuple) else x for x in found], last


def ours(path, source, lengths=None):
    """The same of ours: what `layer_features` gives, and the encoder's output."""
    model = build_encoder(read_pretrained(path)).eval()
    lengths = lengths or [source.size(1)] * len(source)
    with torch.no_grad():
        layers, _ = model.layer_features(source, lengths, range(1, len(model.encoder.layers) + 1))
        return list(layers.values()), model(source, lengths=lengths, features_only=True)["x"]


def difference(found, expected):
    """Largest difference over all layers and the encoder's output."""
    assert len(found[0]) == len(expected[0]) > 0
    pairs = [*zip(found[0], expected[0], strict=True), (found[1], expected[1])]
    assert all(a.shape == b.shape and b.isfinite().all() and b.std() > 0.1 for a, b in pairs)
    return max((a - b).abs().max().item() for a, b in pairs)


def noise(samples, batch=1, seed=1):
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("samples", [400, 7_777, 16_000])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_that_of_transformers(folders, kind, samples, record_property):
    path, model = folders[kind]
    worst = difference(ours(path, noise(samples)), theirs(model, noise(samples)))
    record_property("worst", worst)
    assert worst <= 1e-4


@pytest.mark.parametrize("kind", WRITTEN)
def test_written_folders_are_read_by_transformers(folders, kind, tmp_path):
    path, model = folders[kind]
    assert write_folder(read_pretrained(path), tmp_path) == []
    again, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert difference(theirs(again.eval(), noise(7_777)), theirs(model, noise(7_777))) <= 1e-6
    assert difference(ours(tmp_path, noise(7_777)), ours(path, noise(7_777))) == 0


@pytest.mark.parametrize("kind", ["wavlm-base", "data2vec-base"])
def test_positions_that_are_not_written(folders, kind, tmp_path):
    with pytest.raises(InputError, match="WavLM or data2vec cannot be written"):
        write_folder(read_pretrained(folders[kind][0]), tmp_path)


def test_the_model_in_the_package():
    """`small` is stored in half precision and computed in float32, by transformers too."""
    folder = programs.shipped("small")
    assert sum(f.stat().st_size for f in folder.parent.rglob("*") if f.is_file()) < 20 * 2**20
    model = transformers.AutoModel.from_pretrained(folder)
    assert model.dtype == torch.float32 and model.config.num_hidden_layers == 6
    assert difference(ours("small", noise(16_000)), theirs(model.eval(), noise(16_000))) <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_batches_too(folders, kind):
    """transformers is exact in a batch where no GroupNorm sees the padding; with one, a batch of ours gives its single utterances."""
    path, model = folders[kind]
    lengths = [16_000, 5_000, 9_123]
    source = noise(16_000, 3) * (torch.arange(16_000) < torch.tensor(lengths)[:, None])
    layers, last = ours(path, source, lengths)
    if "group" not in kind and "base" not in kind:
        their_layers, their_last = theirs(model, source, lengths)
        for i, n in enumerate(map(n_frames, lengths)):
            assert difference(([x[i, :n] for x in layers], last[i, :n]), ([x[i, :n] for x in their_layers], their_last[i, :n])) <= 1e-4
    for i, n in enumerate(lengths):
        alone = theirs(model, source[i : i + 1, :n])
        frames = n_frames(n)
        assert difference(([x[i : i + 1, :frames] for x in layers], last[i : i + 1, :frames]), alone) <= 1e-4


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("Wav2Vec2", "ForCTC"),
        ("Wav2Vec2", "ForPreTraining"),
        ("Wav2Vec2", "ForAudioFrameClassification"),
        ("Hubert", "ForCTC"),
        ("Hubert", "ForSequenceClassification"),
        ("WavLM", "ForXVector"),
        ("Data2VecAudio", "ForCTC"),
    ],
)
def test_a_head_is_left_out_and_named(tmp_path, family, head, caplog):
    model = saved(tmp_path, family, head)
    pretrained = read_pretrained(tmp_path)
    prefix = f"{model.base_model_prefix}."
    assert sorted(pretrained.left_out) == sorted(n for n in load_file(tmp_path / "model.safetensors") if not n.startswith(prefix)) != []
    assert difference(ours(tmp_path, noise(8_000)), theirs(model, noise(8_000))) <= 1e-4
    with caplog.at_level("INFO"):
        report = initialise(SpeakerHubertModel(SpeakerHubertConfig(**pretrained.config), TASK, [], []), pretrained)
    assert set(pretrained.left_out) <= set(report.skipped) and pretrained.left_out[0] in caplog.text
    assert not report.new


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
def test_activations(tmp_path, activation):
    model = saved(tmp_path, hidden_act=activation)
    assert difference(ours(tmp_path, noise(8_000)), theirs(model, noise(8_000))) <= 1e-4


def test_the_mask_embedding_is_loaded_where_there_is_one(folders, tmp_path):
    path, model = folders["hubert-base"]
    encoder = build_encoder(read_pretrained(path))
    assert torch.equal(encoder.mask_emb, model.masked_spec_embed)
    saved(tmp_path, mask_time_prob=0.0)
    pretrained = read_pretrained(tmp_path)
    assert "mask_emb" not in pretrained.weights
    assert initialise(SpeakerHubertModel(SpeakerHubertConfig(**OURS), TASK, [], []), pretrained).new == ["mask_emb"]


def test_both_names_of_weight_normalisation(folders, folder):
    weights = load_file(folder / "model.safetensors")
    name = "encoder.pos_conv_embed.conv."
    new, old = ("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v")
    assert {name + n for n in new} <= set(weights)
    renamed = {n.replace(new[0], old[0]).replace(new[1], old[1]): w for n, w in weights.items()}
    assert {name + n for n in old} <= set(renamed)
    save_file(renamed, folder / "model.safetensors")
    source = noise(8_000)
    assert difference(ours(folder, source), ours(folders["wav2vec2-base"][0], source)) == 0


def test_other_forms_of_the_weights(folders, folder):
    path, model = folders["wav2vec2-base"]
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    source = noise(8_000)
    assert difference(ours(folder, source), ours(path, source)) == 0
    assert read_pretrained(folder).sha256 != read_pretrained(path).sha256


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(folder, folders, precision):
    weights = {n: w.to(precision) for n, w in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    model = transformers.Wav2Vec2Model.from_pretrained(folder, dtype=torch.float32).eval()
    assert difference(ours(folder, noise(8_000)), theirs(model, noise(8_000))) <= 1e-4


@pytest.mark.parametrize("family", ["Hubert", "Wav2Vec2"])
def test_a_missing_key_means_what_it_means_to_transformers(family):
    defaults = getattr(transformers, f"{family}Config")()
    for name, value in huggingface.DEFAULTS.items():
        theirs_ = getattr(defaults, name, value)  # wav2vec 2.0 lacks two keys of HuBERT, HuBERT the adapters
        assert (list(theirs_) if isinstance(theirs_, (list, tuple)) else theirs_) == value, name
    known = [name for name in huggingface.DEFAULTS if hasattr(defaults, name)]
    assert len(known) >= len(huggingface.DEFAULTS) - 2


@pytest.mark.parametrize(
    ("file", "content", "kind", "expected"),
    [
        ("preprocessor_config.json", {"do_normalize": False}, "wav2vec2-large", False),
        ("preprocessor_config.json", {"do_normalize": True, "sampling_rate": 16_000}, "wav2vec2-base", True),
        ("preprocessor_config.json", {}, "wav2vec2-base", True),
        ("processor_config.json", {"feature_extractor": {"do_normalize": False}}, "wav2vec2-large", False),
        ("processor_config.json", {"processor_class": "Wav2Vec2Processor"}, "wav2vec2-large", True),
        (None, None, "wav2vec2-base", False),
        (None, None, "hubert-large", True),
    ],
)
def test_normalisation_is_read_or_that_of_the_family(folders, tmp_path, file, content, kind, expected, caplog):
    folder = shutil.copytree(folders[kind][0], tmp_path / "model")
    if file:
        write_json(folder / file, content)
    with caplog.at_level("INFO"):
        assert read_pretrained(folder).normalise is load_encoder(folder).normalise is expected
    assert ("no preprocessor_config.json" in caplog.text) == (file is None or "feature_extractor" not in content and file[:5] == "proce")


def test_normalisation_as_transformers_saves_it(folder):
    for value in (True, False):
        transformers.Wav2Vec2FeatureExtractor(do_normalize=value).save_pretrained(folder)
        assert read_pretrained(folder).normalise is value


def one_line(path, *words):
    with pytest.raises(InputError) as refusal:
        load_encoder(path)
    message = str(refusal.value)
    assert "\n" not in message and all(w in message for w in (str(path), *words)), message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "wavlm"}, ["grep_a", "the checkpoint lacks it"]),
        ({"model_type": "wavlm", "num_buckets": 0}, ["num_buckets=0"]),
        ({"model_type": "data2vec-audio", "conv_pos_kernel_size": "19"}, ["conv_pos_kernel_size=19"]),
        ({"model_type": "wav2vec2-conformer"}, ["wav2vec2-conformer", "hubert, wav2vec2, wavlm, data2vec-audio"]),
        ({"model_type": None}, ["model_type", "None"]),
        ({"add_adapter": True}, ["add_adapter"]),
        ({"adapter_attn_dim": 16}, ["adapter_attn_dim=16"]),
        ({"hidden_act": "quick_gelu"}, ["hidden_act=quick_gelu", "gelu, relu, gelu_new"]),
        ({"hidden_act": ["gelu"]}, ["hidden_act"]),
        ({"feat_extract_activation": "relu"}, ["feat_extract_activation=relu"]),
        ({"feat_extract_norm": "batch"}, ["feat_extract_norm=batch"]),
        ({"feat_extract_norm": None}, ["feat_extract_norm"]),
        ({"feat_proj_layer_norm": False}, ["feat_proj_layer_norm=False"]),
        ({"conv_pos_batch_norm": True}, ["conv_pos_batch_norm=True"]),
        ({"layer_norm_eps": 1e-6}, ["layer_norm_eps=1e-06"]),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 1]}, ["conv_feature_layers", "only 400 every 320"]),
        ({"conv_kernel": [10, 3, 3]}, ["conv_kernel"]),
        ({"conv_dim": "__import__('os')"}, ["conv_dim"]),
        ({"conv_dim": [64] * 7}, ["conv_dim ends with hidden_size=64"]),
        ({"conv_bias": True}, ["conv_layers.0.0.bias", "the checkpoint lacks it"]),
        ({"conv_bias": "false"}, ["conv_bias=false"]),
        ({"num_attention_heads": 5}, ["num_attention_heads=5", "divide"]),
        ({"num_hidden_layers": 2}, ["num_hidden_layers=2", "have 3"]),
        ({"num_hidden_layers": 10**12}, ["num_hidden_layers=1000000000000"]),
        ({"hidden_size": -64}, ["hidden_size=-64"]),
        ({"hidden_size": True}, ["hidden_size=True"]),
        ({"intermediate_size": 97}, ["fc1.weight", "(97, 64)", "(96, 64)"]),
        ({"num_conv_pos_embeddings": 128}, ["pos_conv.0.weight_v", "(64, 16, 128)"]),
        ({"num_conv_pos_embedding_groups": 8}, ["pos_conv.0.weight_v"]),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_one_line(folder, changes, words):
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, **changes})
    one_line(folder, *words)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Wav2Vec2Conformer", {}),
        ("UniSpeechSat", {}),
        ("Wav2Vec2", {"add_adapter": True}),
        ("Wav2Vec2", {"adapter_attn_dim": 8, **LARGE}),
        ("Hubert", {"feat_proj_layer_norm": False}),
        ("Hubert", {"conv_pos_batch_norm": True}),
    ],
)
def test_models_of_another_architecture_are_refused_even_under_a_false_name(tmp_path, family, options):
    """The weights themselves tell, should the configuration be that of a plain model."""
    saved(tmp_path, family, **options)
    one_line(tmp_path)
    config = read_json(tmp_path / "config.json")
    false = {"model_type": "wav2vec2", **{name: huggingface.DEFAULTS[name] for name in huggingface.FIXED}}
    write_json(tmp_path / "config.json", {**config, **false})
    if family == "UniSpeechSat":  # wav2vec 2.0's encoder to the last parameter
        assert load_encoder(tmp_path).n_layers == 3
    else:
        with pytest.raises(InputError, match=r"no place for|lacks it|missing"):
            load_encoder(tmp_path)


def test_damaged_folders_are_one_line_errors(folder, tmp_path):
    one_line(tmp_path / "model" / "..", "no config.json")
    weights = (folder / "model.safetensors").read_bytes()
    for content in (b"", b"not weights", weights[: len(weights) // 2], (2**62).to_bytes(8, "little") + b"{}"):
        (folder / "model.safetensors").write_bytes(content)
        one_line(folder, "model.safetensors", "damaged")
    (folder / "model.safetensors").unlink()
    one_line(folder, "no model.safetensors", "save_pretrained")
    (folder / "config.json").write_text("[1]")
    one_line(folder, "not a JSON object")
    (folder / "config.json").write_text("{")
    one_line(folder, "not a JSON file")


def test_incomplete_and_quantised_weights_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({n: w for n, w in weights.items() if "layers.1.attention.k_proj" not in n}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"k_proj.* lacks it"):
        load_encoder(folder)
    save_file({n: w.to(torch.int8) if "fc" in n or "dense" in n else w for n, w in weights.items()}, folder / "model.safetensors")
    one_line(folder, "int8", "not quantised")


def test_a_wrong_sampling_rate_and_a_wrong_flag_are_refused(folder):
    write_json(folder / "preprocessor_config.json", {"sampling_rate": 8_000})
    one_line(folder, "sampling_rate=8000")
    write_json(folder / "preprocessor_config.json", {"do_normalize": "false"})
    one_line(folder, "do_normalize=false")


def test_nothing_in_a_pickled_folder_runs(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"masked_spec_embed": Hostile(tmp_path / "it_ran")}, folder / "pytorch_model.bin")
    one_line(folder, "refused", "system")
    assert not (tmp_path / "it_ran").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # proof that the file is hostile
    assert (tmp_path / "it_ran").exists()
    torch.save({"masked_spec_embed": "text"}, folder / "pytorch_model.bin")
    one_line(folder, "other than parameters")


def test_a_bare_weight_file_and_a_folder_for_a_trained_model(folder):
    one_line(folder / "model.safetensors", "the folder that also holds its config.json")
    with pytest.raises(InputError, match="a folder, not a checkpoint file"):
        load_state(folder)
    with pytest.raises(InputError, match="no projector and classifier, so it predicts nothing"):
        load_trained(folder)


def test_the_hash_covers_everything_that_is_read(folder, tmp_path):
    before = load_encoder(folder).sha256
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    (moved / "README.md").write_text("not read")
    assert load_encoder(moved).sha256 == before and len(before) == 64
    found = {before}
    write_json(folder / "preprocessor_config.json", {"do_normalize": True})
    found.add(load_encoder(folder).sha256)
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "hidden_act": "relu"})
    found.add(load_encoder(folder).sha256)
    weights = load_file(folder / "model.safetensors")
    save_file({n: w + 1e-3 for n, w in weights.items()}, folder / "model.safetensors")
    found.add(load_encoder(folder).sha256)
    assert len(found) == 4


def test_features_are_dumped_from_a_folder(folders, tmp_path):
    manifest = make_corpus(tmp_path, train=3, valid=2, test=2)
    path, model = folders["hubert-large"]
    options = (manifest, "test", tmp_path / "features", "--checkpoint", path, "--layers", 3, "--nshard", 1, "--rank", 0)
    assert run("tools/dump_features.py", *options, "--workers", 1, "--device", "cpu") == 0
    import soundfile

    found, start = np.load(tmp_path / "features" / "L3" / "test_0_1.npy"), 0
    for line in (manifest / "test.tsv").read_text().splitlines()[1:]:
        wave = torch.from_numpy(soundfile.read(tmp_path / "audio" / line.split("\t")[0], dtype="float32")[0])
        expected = theirs(model, F.layer_norm(wave, wave.shape)[None])[0][2][0].numpy()
        assert np.abs(found[start : start + len(expected)] - expected).max() <= 1e-4
        start += len(expected)
    assert start == len(found)


# fairseq's wav2vec 2.0, pretrained and fine-tuned


def plain(model, task):
    """A whole configuration as fairseq writes it into a checkpoint: plain values, every reference resolved."""
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.model, cfg.task = OmegaConf.structured(model), OmegaConf.structured(task)
    return OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)


def without_name(options):
    return {name: value for name, value in options.items() if name != "_name"}  # old options have `arch` instead


def fairseq_wav2vec(path, style="cfg", normalize=False, **options):
    """A wav2vec 2.0 with random weights as fairseq's audio_pretraining saves it; returns the model as fairseq loads it again."""
    torch.manual_seed(3)
    config = Wav2Vec2Config(_name="wav2vec2", **{"quantize_targets": True, "final_dim": 24, "latent_vars": 8, **OURS, **options})
    cfg = plain(config, AudioPretrainingConfig(_name="audio_pretraining", data="", normalize=normalize))
    state = {"args": None, "cfg": None, "model": scattered(Wav2Vec2Model(config), 4).state_dict(), "task_state": {}}
    state |= {"extra_state": {}, "optimizer_history": [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 0}]}
    if style == "cfg":
        state["cfg"] = cfg
    else:
        names = {"arch": "wav2vec2", "task": "audio_pretraining", "criterion": "wav2vec", "latent_temp": "(2,0.5,0.999995)"}
        state["args"] = argparse.Namespace(**without_name({**cfg["model"], **cfg["task"], **names}))
    torch.save(state, path)
    return checkpoint_utils.load_model_ensemble([str(path)])[0][0].eval()


def fairseq_layers(model, source):
    """Outputs of every layer of fairseq's wav2vec 2.0, and of the whole encoder."""
    with torch.no_grad():
        layers = [model.extract_features(source, None, layer=i)["x"] for i in range(len(model.encoder.layers))]
        return layers, model.extract_features(source, None)["x"]


@pytest.mark.parametrize("style", ["cfg", "args"])
@pytest.mark.parametrize(
    ("options", "normalize"), [({}, False), pytest.param(OURS_LARGE, True, marks=pytest.mark.slow)], ids=["base", "large"]
)
def test_fairseqs_wav2vec_is_reproduced(tmp_path, style, options, normalize):
    model = fairseq_wav2vec(tmp_path / "w2v.pt", style, normalize, **options)
    pretrained = read_pretrained(tmp_path / "w2v.pt")
    assert pretrained.family == "wav2vec2" and pretrained.normalise is normalize
    assert any(n.startswith("quantizer.") for n in pretrained.left_out) and "final_proj.weight" in pretrained.left_out
    assert sorted([*pretrained.weights, *pretrained.left_out]) == sorted(model.state_dict())
    assert load_encoder(tmp_path / "w2v.pt").sha256 == sha256(tmp_path / "w2v.pt")
    for samples in (7_777, 16_000):
        assert difference(ours(tmp_path / "w2v.pt", noise(samples)), fairseq_layers(model, noise(samples))) <= 1e-5


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"quantize_input": True}, "quantize_input"),
        ({"crop_seq_to_multiple": 2}, "crop_seq_to_multiple"),
        ({"layer_type": "trf_adp", "adp_num": 2}, "layer_type"),
    ],
)
def test_variants_of_wav2vec_are_refused(tmp_path, options, word):
    config = Wav2Vec2Config(_name="wav2vec2", **{**OURS, **options})
    cfg = plain(config, AudioPretrainingConfig(_name="audio_pretraining", data=""))
    state = {"cfg": cfg, "model": Wav2Vec2Model(config).state_dict()}
    torch.save(state, tmp_path / "w2v.pt")
    one_line(tmp_path / "w2v.pt", word, "is not supported")


def test_how_wav2vec_was_masked_does_not_matter(tmp_path):
    fairseq_wav2vec(tmp_path / "w2v.pt", mask_selection="uniform", no_mask_overlap=True)
    assert load_encoder(tmp_path / "w2v.pt").n_layers == 3


# starting from them


@pytest.fixture(scope="module")
def backbones(folders, tmp_path_factory):
    """{name: (path, outputs of every layer for `noise(8_000)`)}: one Hugging Face folder and one checkpoint of fairseq."""
    path = tmp_path_factory.mktemp("fairseq") / "w2v.pt"
    model = fairseq_wav2vec(path, normalize=True, **OURS_LARGE)
    folder, theirs_ = folders["wav2vec2-large"]
    return {"folder": (folder, theirs(theirs_, noise(8_000))), "fairseq": (path, fairseq_layers(model, noise(8_000)))}


@pytest.mark.parametrize("name", ["folder", "fairseq"])
@pytest.mark.parametrize("layers", [None, 2])
def test_fine_tuning_starts_from_them(backbones, name, layers):
    path, (expected, last) = backbones[name]
    cfg = EmotionHubertConfig(init_from=str(path), num_layers=layers, layer_weighting=layers is not None)
    cfg.backbone, pretrained = resolve_backbone(cfg)
    assert cfg.backbone["normalize"] is True
    model = EmotionHubertModel(cfg, 4)
    report = model.start_from(pretrained)
    skipped = {n for n in report.skipped if n.startswith("encoder.")}
    assert report.new == [] and len(model.backbone.encoder.layers) == (layers or 3)
    assert (skipped == set()) if layers is None else (skipped and all(n.startswith("encoder.layers.2.") for n in skipped))
    with torch.no_grad():
        found, _ = model.eval().backbone.layer_features(noise(8_000), [8_000], range(1, (layers or 3) + 1))
        frames = model(noise(8_000), [8_000])["frames"]
    for layer, x in found.items():
        assert (x - expected[layer - 1]).abs().max() <= 1e-5
    if layers is None:
        assert (frames - last).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["folder", "fairseq"])
def test_pretraining_continues_from_them(backbones, name):
    path, (expected, _) = backbones[name]
    sets = [FrameLabelSet("km", [str(i) for i in range(7)])]
    values = {**OURS, **OURS_LARGE, "final_dim": 16}
    model = SpeakerHubertModel(SpeakerHubertConfig(**values, speaker_position="input"), TASK, sets, ["anna", "ben"])
    report = initialise(model, read_pretrained(path))
    assert set(report.new) == {"label_embs_concat", "final_proj.weight", "final_proj.bias", "speaker_conditioning.embedding.weight"}
    found, _ = model.eval().layer_features(noise(8_000), [8_000], [1, 2, 3])  # a new speaker table changes nothing
    for layer, x in found.items():
        assert (x - expected[layer - 1]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"encoder_attention_heads": 8}, "set model.encoder_attention_heads=4"),
        ({"layer_norm_first": False}, "set model.layer_norm_first=true"),
        ({"activation_fn": "relu"}, "set model.activation_fn=gelu"),
        ({"conv_bias": False}, "feature_extractor.conv_layers.0.0.bias: the model lacks it"),
    ],
)
@pytest.mark.parametrize("name", ["folder", "fairseq"])
def test_an_architecture_that_no_shape_tells_must_agree(backbones, name, values, words):
    model = SpeakerHubertModel(SpeakerHubertConfig(**{**OURS, **OURS_LARGE, **values}), TASK, [], [])
    with pytest.raises(InputError, match="the encoder does not fit the model") as refusal:
        initialise(model, read_pretrained(backbones[name][0]))
    assert words in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "fairseq"])
def test_training_runs_from_them(backbones, name, tmp_path):
    """Continued pretraining, then fine-tuning from the backbone itself; both checkpoints stand alone."""
    path = backbones[name][0]
    manifest = make_corpus(tmp_path, train=8, valid=4, test=4)
    labels = make_labels(manifest, tmp_path / "labels")
    common = [f"task.data={manifest}", f"model.init_from={path}", "dataset.num_workers=0", "common.cpu=true"]
    architecture = [f"model.{n}={json.dumps(v) if not isinstance(v, str) else repr(v)}" for n, v in {**OURS, **OURS_LARGE}.items()]
    pretraining = [*common, *architecture, f"task.label_dir={labels}", "task.labels=[km]", "model.final_dim=16"]
    wrong = train("papt_tiny", *pretraining, "task.normalize=false", f"checkpoint.save_dir={tmp_path / 'wrong'}")
    assert wrong.returncode == 2 and "set task.normalize=true" in wrong.stdout
    finished = train(
        "papt_tiny", *pretraining, "task.normalize=true", "optimization.max_update=2", f"checkpoint.save_dir={tmp_path / 'papt'}"
    )
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert load_encoder(tmp_path / "papt" / "checkpoint_last.pt").n_layers == 3
    tuning = [*common, "model.num_layers=2", "optimization.max_epoch=1", f"checkpoint.save_dir={tmp_path / 'ser'}"]
    finished = train("ser_classification_tiny", *tuning)
    assert finished.returncode == 0, finished.stdout[-3000:]
    task, model = load_trained(tmp_path / "ser" / "checkpoint_last.pt")
    assert task.normalise and len(model.backbone.encoder.layers) == 2
