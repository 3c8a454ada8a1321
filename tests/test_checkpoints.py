"""Loading checkpoints: safely, from fairseq and from ours, with other labels and speakers."""

import argparse
import json
import pickle

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data.dictionary import Dictionary
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from hostile import Hostile
from omegaconf import OmegaConf
from scripts import run
from training import TINY

import emohubert.tasks  # noqa: F401 (allows what fairseq's checkpoints hold)
from emohubert.core.errors import InputError, taken_apart
from emohubert.models.from_pretrained import build_encoder, initialise, load_encoder
from emohubert.models.hubert import SpeakerHubertConfig, SpeakerHubertModel
from emohubert.pretrained.huggingface import write_folder
from emohubert.pretrained.load import read_pretrained
from emohubert.pretrained.safe_files import load_state
from emohubert.pretrained.types import FrameLabelSet
from emohubert.tasks.trained import load_trained

TASK = argparse.Namespace(sample_rate=16_000)


def our_model(classes=(10,), speakers=(), **values):
    torch.manual_seed(1)
    sets = [FrameLabelSet(str(i), [str(j) for j in range(k)]) for i, k in enumerate(classes)]
    return SpeakerHubertModel(SpeakerHubertConfig(**{**TINY, **values}), TASK, sets, speakers)


def stock_dictionary(symbols=10):
    dictionary = Dictionary()
    for i in range(symbols):
        dictionary.add_symbol(str(i))
    return dictionary


def stock_checkpoint(path, style="cfg", symbols=10, **values):
    """What fairseq's own hubert_pretraining saves."""
    torch.manual_seed(0)
    cfg = HubertConfig(**{**TINY, **values}, label_rate=50.0)
    dictionary = stock_dictionary(symbols)
    model = HubertModel(cfg, TASK, [dictionary])
    options = OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True)
    state = {"model": model.state_dict(), "task_state": {"dictionaries": [dictionary]}, "args": None, "cfg": None}
    if style == "cfg":
        state["cfg"] = {"model": {**options, "_name": "hubert"}, "task": {"_name": "hubert_pretraining", "normalize": False}}
    else:
        state["args"] = argparse.Namespace(**{**options, "arch": "hubert", "task": "hubert_pretraining", "normalize": False})
    torch.save(state, path)
    return model.eval()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_checkpoint_is_refused_and_nothing_runs(tmp_path, zipped):
    marker, path = tmp_path / "it_ran", tmp_path / "hostile.pt"
    torch.save({"model": {}, "cfg": {"x": Hostile(marker)}}, path, _use_new_zipfile_serialization=zipped)
    for load in (load_state, read_pretrained, load_encoder, load_trained, checkpoint_utils.load_checkpoint_to_cpu):
        with pytest.raises(InputError, match="refused") as refusal:
            load(str(path))
        assert "\n" not in str(refusal.value) and "system" in str(refusal.value) and "weights_only" not in str(refusal.value)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # proof that the file is hostile
    assert marker.exists()


def test_a_checkpoint_cannot_smuggle_code_in_its_configuration(tmp_path):
    marker, path = tmp_path / "it_ran", tmp_path / "hostile.pt"
    stock_checkpoint(path)
    state = torch.load(path, weights_only=True)
    state["cfg"]["model"]["conv_feature_layers"] = f"__import__('os').system('touch {marker}') or [(32,10,5)]"
    torch.save(state, path)
    with pytest.raises(InputError, match="conv_feature_layers"):
        load_encoder(path)
    assert not marker.exists()


def test_only_the_documented_classes_are_allowed(tmp_path):
    path = tmp_path / "stock.pt"
    stock_checkpoint(path)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    allowed = torch.serialization.get_safe_globals()
    assert {Dictionary, argparse.Namespace} <= set(allowed)
    assert not {c for c in allowed if getattr(c, "__module__", "").startswith("fairseq")} - {Dictionary}


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip", pickle.dumps([1, 2])])
def test_damaged_files_are_one_line_errors(tmp_path, content):
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.pt"):
        read_pretrained(path)


def test_other_files_are_one_line_errors(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        read_pretrained(tmp_path / "absent.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="not a fairseq checkpoint"):
        read_pretrained(tmp_path / "other.pt")
    torch.save({"model": {}, "cfg": {"model": {"_name": "transformer"}, "task": {}}}, tmp_path / "translation.pt")
    with pytest.raises(InputError, match="transformer"):
        read_pretrained(tmp_path / "translation.pt")


@pytest.mark.parametrize("style", ["cfg", "args"])
def test_fairseq_checkpoints_of_both_styles_drop_in(tmp_path, style):
    stock = stock_checkpoint(tmp_path / "stock.pt", style)
    encoder = load_encoder(tmp_path / "stock.pt")
    source = torch.randn(1, 16_000)
    found, frames = encoder.features(source, [16_000], [1, 2])
    for layer, x in found.items():
        assert torch.equal(x, stock.extract_features(source, output_layer=layer)[0])
    assert frames.tolist() == [49] and encoder.n_layers == 2 and encoder.width == 48 and not encoder.normalise


@pytest.mark.parametrize("style", ["cfg", "args"])
def test_predictions_survive_without_fairseqs_special_rows(tmp_path, style):
    """fairseq has four rows of label embeddings more than labels: the rows of the labels themselves are kept."""
    stock = stock_checkpoint(tmp_path / "stock.pt", style)
    model = our_model()
    report = initialise(model, read_pretrained(tmp_path / "stock.pt"))
    assert torch.equal(model.label_embs_concat, stock.label_embs_concat[4:])
    assert report.resized == ["label_embs_concat"] and not report.new and not report.skipped


def test_another_number_of_clusters_and_several_sets(tmp_path):
    stock = stock_checkpoint(tmp_path / "stock.pt", untie_final_proj=True)
    model = our_model(classes=(7, 5), untie_final_proj=True)
    before = model.label_embs_concat.clone()
    report = initialise(model, read_pretrained(tmp_path / "stock.pt"))
    assert torch.equal(model.label_embs_concat, before) and report.new == ["label_embs_concat"]
    assert torch.equal(model.final_proj.weight, torch.cat([stock.final_proj.weight] * 2))
    assert sorted(report.resized) == ["final_proj.bias", "final_proj.weight"]
    assert torch.equal(model.encoder.layers[0].fc1.weight, stock.encoder.layers[0].fc1.weight)


def save_ours(path, model):
    cfg = {
        "model": {**OmegaConf.to_container(OmegaConf.structured(model.cfg), enum_to_str=True), "_name": "speaker_hubert"},
        "task": {"_name": "speaker_hubert_pretraining", "normalize": False},
    }
    torch.save({"model": model.state_dict(), "cfg": cfg, "task_state": {"speakers": model.speakers, "label_sets": []}}, path)


def test_speakers_keep_their_vectors_by_name(tmp_path):
    old = our_model(speakers=["anna", "ben", "cleo"], speaker_position="input")
    torch.nn.init.normal_(old.speaker_conditioning.embedding.weight)
    save_ours(tmp_path / "ours.pt", old)
    new = our_model(speakers=["dora", "cleo", "anna"], speaker_position="input")
    report = initialise(new, read_pretrained(tmp_path / "ours.pt"))
    old_table, new_table = old.speaker_conditioning.embedding.weight, new.speaker_conditioning.embedding.weight
    assert torch.equal(new_table, old_table[[0, 0, 3, 1]])
    assert "speaker_conditioning.embedding.weight" in report.resized


def test_another_speaker_position_starts_anew(tmp_path):
    old = our_model(speakers=["anna", "ben"], speaker_position="output")
    torch.nn.init.normal_(old.speaker_conditioning.embedding.weight)
    save_ours(tmp_path / "ours.pt", old)
    new = our_model(speakers=["anna", "ben"], speaker_position="input")
    report = initialise(new, read_pretrained(tmp_path / "ours.pt"))
    assert report.new == ["speaker_conditioning.embedding.weight"]
    assert not new.speaker_conditioning.embedding.weight.any()


@pytest.mark.parametrize(
    "values", [{"encoder_layers": 3}, {"encoder_embed_dim": 64}, {"extractor_mode": "layer_norm"}], ids=["layers", "width", "normalisation"]
)
def test_training_does_not_start_without_the_encoder(tmp_path, values):
    stock_checkpoint(tmp_path / "stock.pt")
    with pytest.raises(InputError, match="the encoder does not fit the model") as refusal:
        initialise(our_model(**values), read_pretrained(tmp_path / "stock.pt"))
    assert "2 layers × 48" in str(refusal.value)


def test_an_encoder_is_rebuilt_with_its_speakers(tmp_path):
    model = our_model(speakers=["anna", "ben"], speaker_position="film").eval()
    torch.nn.init.normal_(model.speaker_conditioning.embedding.weight)
    save_ours(tmp_path / "ours.pt", model)
    encoder = load_encoder(tmp_path / "ours.pt")
    source = torch.randn(3, 8_000)
    found, _ = encoder.features(source, [8_000] * 3, [2], speakers=["ben", "nobody", "anna"])
    expected, _ = model.layer_features(source, [8_000] * 3, [2], speaker=torch.tensor([2, 0, 1]))
    torch.testing.assert_close(found[2], expected[2], rtol=0, atol=1e-5)
    assert build_encoder(read_pretrained(tmp_path / "ours.pt")).label_embs_concat is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<!DOCTYPE html><html>404</html>", "a web page, no checkpoint"),
        (b'{"error": "gated"}', "JSON, no checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"no", "not a checkpoint, or a damaged one"),
    ],
)
def test_what_is_no_checkpoint_is_not_called_unsafe(tmp_path, content, expected):
    (tmp_path / "hubert.pt").write_bytes(content)
    with pytest.raises(InputError, match=expected):
        load_state(tmp_path / "hubert.pt")


@pytest.mark.parametrize(("error", "expected"), [(KeyError("model"), "damaged one .KeyError"), (MemoryError(), "too little memory")])
def test_what_the_content_of_a_file_leads_to_is_no_traceback(error, expected):
    with pytest.raises(InputError, match=f"^a.pt: .*{expected}"), taken_apart("a.pt"):
        raise error


def test_a_traceback_for_who_wants_it(tmp_path, monkeypatch):
    (tmp_path / "hubert.pt").write_bytes(b"no")
    arguments = ("tools/export_hf.py", tmp_path / "hubert.pt", tmp_path / "hf")
    assert run(*arguments) == 2
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InputError, match="damaged"):
        run(*arguments)


@pytest.mark.parametrize("error", [NameError("x"), ImportError("x")])
def test_bugs_are_not_taken_for_damage(error):
    with pytest.raises(type(error)), taken_apart("a.pt"):
        raise error


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "intermediate_size", "num_conv_pos_embeddings"])
def test_a_configuration_of_absurd_size_is_refused_before_memory_is_taken(tmp_path, name):
    stock_checkpoint(tmp_path / "stock.pt")
    write_folder(read_pretrained(tmp_path / "stock.pt"), tmp_path / "folder")
    path = tmp_path / "folder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: 10**9}))
    with pytest.raises(InputError, match="copy both from one model"):
        load_encoder(tmp_path / "folder")


@pytest.mark.parametrize("name", ["encoder_embed_dim", "encoder_layers", "final_dim", "conv_pos"])
def test_so_is_that_of_a_checkpoint(tmp_path, name):
    stock_checkpoint(tmp_path / "stock.pt")
    state = torch.load(tmp_path / "stock.pt", weights_only=True)
    state["cfg"]["model"][name] = 10**9 + 8
    torch.save(state, tmp_path / "stock.pt")
    with pytest.raises(InputError, match=r"stock\.pt: the configuration is of another model than the weights"):
        load_encoder(tmp_path / "stock.pt")
