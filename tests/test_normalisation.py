"""Speaker normalisation: the formula by hand, its limits, in training, and evaluation with it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finetuning import finetune
from scripts import run

from emohubert.core.errors import InputError
from emohubert.corpus.manifest import read_split
from emohubert.evaluation import inference
from emohubert.evaluation.inference import predict_split
from emohubert.models.speaker_normalisation import AverageSpeaker, OnlineNormalisation, SpeakerNormalisation
from emohubert.tasks.emotion_finetuning import EmotionFinetuningTask
from emohubert.tasks.trained import load_trained


def test_by_hand():
    """Training: a has 0, 2, 4 and b 10, 12: μ̄ = (2 + 11) / 2, σ̄² = (8 + 2) / 3; κ = 4."""
    average = AverageSpeaker.of([np.array([[0.0], [2], [4]]), np.array([[10.0], [12]])], 4.0)
    np.testing.assert_allclose([average.mean, average.variance], [[6.5], [10 / 3]])
    # one utterance: μ = (20 + 4 · 6.5) / 5 = 9.2 and σ = σ̄; three: μ = (3 · 4 + 26) / 7, σ² = (2 + 4 · 10/3) / 6
    np.testing.assert_allclose(average.normalised(np.array([[20.0]])), [[(20 - 9.2) / np.sqrt(10 / 3)]])
    three = (np.array([[3.0], [4], [5]]) - 38 / 7) / np.sqrt((2 + 40 / 3) / 6)
    np.testing.assert_allclose(average.normalised(np.array([[3.0], [4], [5]])), three)
    np.testing.assert_allclose(average.normalised(np.array([[3.0], [4], [5]]), scaled_back=True), three * np.sqrt(10 / 3) + 6.5)


def test_one_utterance_after_the_other():
    average, rng = AverageSpeaker(np.array([6.5, 0.0]), np.array([10 / 3, 1.0])), np.random.default_rng(2)
    x = np.concatenate([[[20.0, 0.0]], rng.normal(1000, [0.1, 10], (50, 2))])
    speaker = OnlineNormalisation(average)
    found = [speaker.add(row) for row in x]
    assert found[0][0] == pytest.approx((20 - 9.2) / np.sqrt(10 / 3))
    np.testing.assert_allclose(found, [average.normalised(x[:n])[-1] for n in range(1, 52)], rtol=1e-9)


def test_many_utterances_are_exactly_standardised():
    rng = np.random.default_rng(0)
    average = AverageSpeaker.of(rng.normal(size=(2, 2, 3)))
    x = rng.normal(5, [1, 10, 0.1], (200_000, 3))
    np.testing.assert_allclose(average.normalised(x), (x - x.mean(0)) / x.std(0), atol=2e-3)
    exact = AverageSpeaker(average.mean, average.variance, pseudo_count=0)
    np.testing.assert_allclose(exact.normalised(x[:9]), (x[:9] - x[:9].mean(0)) / x[:9].std(0, ddof=1))
    np.testing.assert_array_equal(AverageSpeaker(np.zeros(1), np.zeros(1)).normalised(np.full((3, 1), 2.0)), 2 * 4 / 7)
    with pytest.raises(InputError, match="two utterances"):
        AverageSpeaker.of(np.ones((2, 1, 3)))


def test_the_table_gives_what_the_formula_gives():
    rng = np.random.default_rng(1)
    groups = [rng.normal(i, 1 + i, (5 + i, 4)) for i in range(3)]
    new, module, average = rng.normal(7, 2, (6, 4)), SpeakerNormalisation(4, 3), AverageSpeaker.of(groups)
    module.fit(groups, epoch=2)
    module.add([new])
    for rows, x in [(1, groups[0]), (3, groups[2]), (4, new)]:
        found = module(torch.from_numpy(x).float(), torch.full((len(x),), rows))
        np.testing.assert_allclose(found, average.normalised(x), atol=1e-5)
    found = module(torch.from_numpy(new).float())  # nobody in particular: the average speaker
    np.testing.assert_allclose(found, (new - average.mean) / np.sqrt(average.variance), atol=1e-5)
    np.testing.assert_allclose(module.average.mean, average.mean, rtol=1e-6)
    assert set(module.state_dict()) == {"table", "epoch"} and module.state_dict()["table"].shape == (2, 4, 4)


OPTIONS = ("model.speaker_normalisation=true", "optimization.max_epoch=3", "checkpoint.save_interval_updates=4", "dataset.batch_size=3")


@pytest.fixture(scope="module")
def normalised(corpus):
    result = finetune(corpus, "classification", f"checkpoint.save_dir={corpus}/normalised", *OPTIONS)
    assert result.returncode == 0, result.stdout[-3000:]
    return corpus / "normalised" / "checkpoint_last.pt"


@pytest.mark.slow
def test_trained_and_evaluated(corpus, normalised, tmp_path, capsys):
    """What evaluate writes is the head's output for vectors that are normalised here by the training speakers' statistics."""
    task, model = load_trained(normalised)
    train, test = (read_split(corpus / "manifest", name) for name in ("train", "test"))
    _, vectors = predict_split(task, model, test)
    base = ("tools/evaluate.py", normalised, corpus / "manifest", "test")
    assert (
        run(*base, tmp_path / "a", "--repeats", "5") == 0
        and run(*base, tmp_path / "b", "--repeats", "5", "--normalise-speakers", "no") == 0
    )
    settings = [json.loads((tmp_path / name / "metrics.json").read_text())["setting"] for name in ("a", "b")]
    assert settings[0] == "seen and normalised (4 speakers)" and "normalised" not in settings[1]
    assert (tmp_path / "a" / "normalisation.seen").is_file() and not (tmp_path / "b" / "normalisation.seen").is_file()
    rows = np.loadtxt(tmp_path / "a" / "predictions.tsv", dtype=str, skiprows=1)[:, 4:].astype(float)
    mean, deviation = model.normalisation.table[:, 0].double().numpy()
    for speaker in set(test.speakers):
        own = np.array([s == speaker for s in test.speakers])
        x, n = vectors[own].astype(np.float64), own.sum()
        spread = np.sqrt((x.var(0) * n + 4 * deviation**2) / (n + 3))
        with torch.no_grad():
            head = model.head(torch.from_numpy((x - (x.sum(0) + 4 * mean) / (n + 4)) / spread).float())["output"].softmax(1)
        np.testing.assert_allclose(rows[own], head, atol=1e-5)
    voices = sorted(set(train.speakers))
    assert task.voices == voices and model.normalisation.table.shape[1] == 1 + len(voices)


@pytest.mark.slow
def test_the_table_is_of_the_weights_that_the_epoch_began_with(corpus, normalised, tmp_path):
    """Stopped within the last epoch and continued: the same model, bit for bit."""
    options = [f"checkpoint.save_dir={tmp_path}", *OPTIONS]
    updates = torch.load(normalised, weights_only=False)["optimizer_history"][-1]["num_updates"]
    assert finetune(corpus, "classification", *options, f"optimization.max_update={updates - 1}").returncode == 0
    assert finetune(corpus, "classification", *options).returncode == 0
    found, expected = (torch.load(path, weights_only=False)["model"] for path in (tmp_path / "checkpoint_last.pt", normalised))
    assert int(found["normalisation.epoch"]) == 3
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow
def test_with_a_frozen_encoder_the_table_is_computed_once_and_right(corpus, tmp_path):
    frozen = ("model.freeze=all", "model.pooling=mean_std", f"checkpoint.save_dir={tmp_path}", *OPTIONS)
    run = finetune(corpus, "classification", *frozen)
    assert run.returncode == 0, run.stdout[-3000:]
    task, model = load_trained(tmp_path / "checkpoint_last.pt")
    split = read_split(corpus / "manifest", "train")
    _, vectors = predict_split(task, model, split)
    own = np.array(split.speakers) == task.voices[1]
    average = AverageSpeaker.of([vectors[np.array(split.speakers) == s] for s in task.voices])
    assert int(model.normalisation.epoch) == 3
    np.testing.assert_allclose(model.normalisation.table[:, 2], np.stack(average.statistics(vectors[own])), atol=1e-4)
    test = read_split(corpus / "manifest", "test")
    plain, expected = predict_split(task, model, test)
    for _ in range(2):  # made, and found
        cached, found = predict_split(task, model, test, feature_cache=tmp_path / "cache")
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(cached.probabilities, plain.probabilities, atol=1e-5)
        (file,) = (tmp_path / "cache").iterdir()
        assert np.load(file).shape == (2 * len(test), model.backbone.width)
    with torch.no_grad():
        model.backbone.post_extract_proj.bias.add_(1.0)
    _, other = predict_split(task, model, test, feature_cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2 and np.abs(other - expected).max() > 0.01


@pytest.mark.slow
def test_statistics_of_a_model_in_half_precision(corpus, normalised):
    """As training on a GPU takes them: the model is in bf16, the table stays in float32."""
    task, model = load_trained(normalised)
    test = read_split(corpus / "manifest", "test")
    _, expected = predict_split(task, model, test)
    table = model.normalisation.table.clone()
    _, found = predict_split(task, model.bfloat16(), test)
    assert torch.equal(model.normalisation.table, table)
    assert 0 < np.abs(found - expected).mean() < 0.02 * np.abs(expected).mean()


def test_audio_that_spoils_before_an_epoch_is_named(monkeypatch):
    error = InputError("a.wav: is truncated")
    monkeypatch.setattr(inference, "run", lambda *_, **__: iter([inference.Outcome(0, error=error)]))
    dataset = SimpleNamespace(split=None, kept=[0], features=None)
    task = SimpleNamespace(datasets={"train": dataset}, make_dataset=lambda *_, **__: dataset)
    with pytest.raises(InputError, match="a.wav: is truncated"):
        EmotionFinetuningTask._pooled(task, "train", ["anna"], torch.nn.Linear(1, 1))


def test_speakers_are_needed(corpus):
    (corpus / "unnamed").mkdir()
    for path in (corpus / "manifest").iterdir():
        if path.suffix != ".spk":
            (corpus / "unnamed" / path.name).write_bytes(path.read_bytes())
    options = (f"task.data={corpus}/unnamed", f"checkpoint.save_dir={corpus}/none", "model.speaker_position=none")
    result = finetune(corpus, "classification", "model.speaker_normalisation=true", *options)
    assert result.returncode == 2 and "model.speaker_normalisation" in result.stdout, result.stdout[-500:]
