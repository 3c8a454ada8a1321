"""Options of fine-tuning: the speaker at the head, frames classified too, balanced epochs, cached features, selection."""

import argparse
import json

import numpy as np
import pytest
import torch
from corpus import CLASSES
from finetuning import build, finetune
from scripts import run
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from emohubert.core.errors import InputError
from emohubert.corpus.manifest import read_split
from emohubert.criterions.emotion import EmotionClassification
from emohubert.data.cached_features import CachedFeatures
from emohubert.data.speaker_vectors import mfcc_means
from emohubert.data.utterance_labelled import UtteranceLabelledSpeech
from emohubert.evaluation.inference import speaker_setting
from emohubert.pretrained.safe_files import load_state
from emohubert.tasks.trained import load_trained

pytestmark = pytest.mark.slow  # its tests share trainings that take longer than all of them


def test_a_speaker_at_the_head_starts_as_none(corpus):
    source, lengths = torch.randn(2, 8_000), [8_000, 5_000]
    torch.manual_seed(0)
    plain = build(corpus).eval()
    for kind, given in {"embedding": {"speaker": torch.tensor([1, 3])}, "mfcc": {"speaker_features": torch.randn(2, 13)}}.items():
        torch.manual_seed(0)
        model = build(corpus, head_speaker=kind).eval()
        model.head.load_state_dict(plain.head.state_dict())
        encoder = {"speaker": given["speaker"]} if "speaker" in given else {}
        with torch.no_grad():
            expected = plain(source, lengths, **encoder)
            assert torch.equal(model(source, lengths, **given)["output"], expected["output"])
            torch.nn.init.normal_(model.speaker_at_head.dense.weight)
            found = model(source, lengths, **given)
        known = model.speaker_at_head.embedding(given["speaker"]) if kind == "embedding" else given["speaker_features"]
        moved = expected["embedding"] + known @ model.speaker_at_head.dense.weight.T
        torch.testing.assert_close(found["output"], plain.head(moved)["output"])
        assert torch.equal(found["embedding"], expected["embedding"]), "voices are compared by what the encoder hears"


def test_mfccs_at_the_head_are_scaled_on_the_training_speakers(corpus, tmp_path):
    options = ["model.head_speaker=mfcc", "model.speaker_position=none", "optimization.max_epoch=1", f"checkpoint.save_dir={tmp_path}"]
    assert finetune(corpus, "classification", *options).returncode == 0
    task, model = load_trained(tmp_path / "checkpoint_best.pt")
    train, test = read_split(corpus / "manifest", "train"), read_split(corpus / "manifest", "test")
    means, speakers = mfcc_means(train), sorted(set(train.speakers))
    vectors = np.stack([means[[i for i, s in enumerate(train.speakers) if s == name]].mean(0) for name in speakers])
    scaler = StandardScaler().fit(vectors)
    found = task.make_dataset(test, training=False).speaker_features
    expected = scaler.transform(vectors)[[speakers.index(s) for s in test.speakers]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert speaker_setting(task, test)["speaker_embedding"] == "mean MFCCs of the speaker's own audio at the head"
    test.speakers = ["eve", *test.speakers[1:]]
    found = task.make_dataset(test, training=False).speaker_features
    np.testing.assert_allclose(found[0], scaler.transform(mfcc_means(test)[:1])[0], atol=1e-5)
    test.speakers = None
    assert not task.make_dataset(test, training=False).speaker_features.any()
    assert model.speaker_at_head.dense.weight.abs().sum() > 0


def test_a_learned_speaker_at_the_head_is_trained(corpus, tmp_path):
    options = ["model.head_speaker=embedding", "model.speaker_position=none", "optimization.max_epoch=2", f"checkpoint.save_dir={tmp_path}"]
    assert finetune(corpus, "classification", *options).returncode == 0
    task, model = load_trained(tmp_path / "checkpoint_best.pt")
    assert task.speakers == ["anna", "ben", "cleo", "dan"] and model.speaker_at_head.embedding.weight.shape == (5, 64)
    assert model.speaker_at_head.dense.weight.abs().sum() > 0 and model.backbone.speaker_conditioning is None
    assert speaker_setting(task, read_split(corpus / "manifest", "test"))["speaker_embedding"] == "speaker embedding at the head"


class Framed(torch.nn.Module):
    def __init__(self, output, frame_output, valid):
        super().__init__()
        self.found = {"output": output, "frame_output": frame_output, "valid": valid}

    def forward(self):
        return self.found


def test_every_frame_carries_its_utterances_class():
    torch.manual_seed(0)
    output, frames, target = torch.randn(3, 4), torch.randn(3, 6, 4), torch.tensor([0, 3, 1])
    lengths = [6, 2, 4]
    valid = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    frames[~valid] = float("nan")
    sample = {"net_input": {}, "target": target, "ntokens": 1, "nsentences": 3}
    task = argparse.Namespace(state=argparse.Namespace(class_counts=[1, 2, 3, 4]))
    criterion = EmotionClassification(task, class_weights="balanced", frame_weight=0.5)
    loss, _, _ = criterion(Framed(output, frames, valid), sample)
    counts = torch.tensor([1.0, 2, 3, 4])
    weights = counts.mean() / counts
    expected = F.cross_entropy(output, target, weight=weights, reduction="sum")
    for i, n in enumerate(lengths):
        expected += 0.5 * F.cross_entropy(frames[i, :n], target[i].repeat(n), weight=weights, reduction="sum") / n
    torch.testing.assert_close(loss, expected)
    with pytest.raises(InputError, match=r"model\.frame_head=true"):
        criterion(lambda: {"output": output}, sample)


def test_training_with_frames(corpus, tmp_path):
    options = ["model.frame_head=true", "criterion.frame_weight=1", "optimization.max_epoch=1", f"checkpoint.save_dir={tmp_path}"]
    assert finetune(corpus, "classification", *options).returncode == 0
    _, model = load_trained(tmp_path / "checkpoint_best.pt")
    assert model.frame_head.weight.shape == (4, 32)


def test_balanced_epochs(corpus):
    split = read_split(corpus / "manifest", "train")
    targets = np.array([0] * 15 + [1] * 6 + [2] * 2 + [-1])
    dataset = UtteranceLabelledSpeech(split, targets, balanced=True)
    dataset.kept = np.flatnonzero(targets >= 0)
    epochs = []
    for epoch in (1, 2):
        dataset.set_epoch(epoch)
        drawn = dataset.ordered_indices()
        assert np.bincount(targets[drawn]).tolist() == [8, 8, 8]
        assert len(set(drawn[targets[drawn] == 0])) == 8 and np.bincount(drawn)[21:23].tolist() == [4, 4]
        batches = dataset.batch_by_size(drawn, max_sentences=5)
        assert sorted(np.concatenate(batches)) == sorted(drawn)
        epochs.append(drawn.tolist())
    assert epochs[0] != epochs[1]
    dataset.set_epoch(1)
    assert dataset.ordered_indices().tolist() == epochs[0]
    assert len(UtteranceLabelledSpeech(split, targets, balanced=True, training=False).ordered_indices()) == 24


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "attention"},
        {"layer_weighting": True},
        {"layer_weighting": True, "pooling": "statistics"},
        {"frame_head": True},
        {"pooling": "mean_std", "silence_db": 3.0},
        {"pooling": "mean_std", "layer_weighting": True},
        {"silence_db": 3.0},
    ],
)
def test_cached_features_give_what_audio_gives(corpus, tmp_path, options):
    torch.manual_seed(0)
    model = build(corpus, freeze="all", **options).eval()
    split = read_split(corpus / "manifest", "test")
    dataset = UtteranceLabelledSpeech(split, np.zeros(len(split), dtype=np.int64), None, np.arange(len(split)) % 5, 0.9)
    heard = UtteranceLabelledSpeech(split, dataset.targets, None, dataset.speaker_rows)
    with torch.no_grad():
        expected = model(**heard.collater([heard[i] for i in range(len(split))])["net_input"])["output"]
        for folder in (None, tmp_path):
            dataset.features = CachedFeatures(model, dataset, folder, "the encoder")
            found = model(**dataset.collater([dataset[i] for i in range(len(split))])["net_input"])["output"]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    written = list(tmp_path.iterdir())
    CachedFeatures(model, dataset, tmp_path, "the encoder")
    assert list(tmp_path.iterdir()) == written and len(written) == 1, "computed again"


def test_training_on_cached_features(corpus, tmp_path):
    options = [
        "model.freeze=all",
        "optimization.max_epoch=2",
        f"checkpoint.save_dir={tmp_path}/run",
        f"task.feature_cache={tmp_path}/cache",
    ]
    finished = finetune(corpus, "classification", *options)
    assert finished.returncode == 0 and "nothing is masked" in finished.stdout
    assert sorted(p.name.split("-")[0] for p in (tmp_path / "cache").iterdir()) == ["train", "valid"]
    before, after = (load_state(p)["model"] for p in (corpus / "hubert" / "checkpoint_last.pt", tmp_path / "run" / "checkpoint_best.pt"))
    encoder = [n for n in before if n.startswith("encoder.")]
    assert encoder and all(torch.equal(before[n], after[f"backbone.{n}"]) for n in encoder)
    finished = finetune(corpus, "classification", *options[:2], f"checkpoint.save_dir={tmp_path}/crops", "task.max_sample_size=8000")
    assert finished.returncode == 0 and "features are not cached" in finished.stdout


def test_without_validation_data_the_last_epoch_is_used_and_said_so(corpus, tmp_path):
    manifest = tmp_path / "manifest"
    manifest.mkdir()
    for path in (corpus / "manifest").iterdir():
        if not path.name.startswith("valid"):
            (manifest / path.name).write_bytes(path.read_bytes())
    options = [f"task.data={manifest}", "optimization.max_epoch=2", f"checkpoint.save_dir={tmp_path}/run"]
    finished = finetune(corpus, "classification", *options)
    assert finished.returncode == 2 and "dataset.disable_validation=true" in finished.stdout
    assert finetune(corpus, "classification", *options, "dataset.disable_validation=true").returncode == 0
    assert run("tools/evaluate.py", tmp_path / "run" / "checkpoint_last.pt", manifest, "test", tmp_path / "out", "--repeats", "20") == 0
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert scores["epoch"] == 2 and scores["selected"] == "the last epoch (2); nothing was selected on validation data"


def test_early_stopping_and_what_was_selected(corpus, tmp_path):
    options = ["optimization.max_epoch=30", "checkpoint.patience=2", "optimization.lr=[1e-9]", f"checkpoint.save_dir={tmp_path}"]
    finished = finetune(corpus, "classification", *options)
    assert finished.returncode == 0 and "early stop" in finished.stdout
    best, last = (load_trained(tmp_path / f"checkpoint_{name}.pt")[0].selection for name in ("best", "last"))
    assert last["epoch"] == 3, "two epochs without a better UA"
    assert best["selected"].startswith(f"epoch {best['epoch']}, the best on validation data so far (ua")
    assert set(load_trained(tmp_path / "checkpoint_best.pt")[0].classes) == set(CLASSES)
