"""Fine-tuning and evaluation: exact pooling, correct losses, and the whole way from a pretrained checkpoint to metrics.json."""

import argparse
import json
import math
import shutil

import audmetric
import numpy as np
import pytest
import torch
from corpus import CLASSES
from fairseq.logging import meters
from fairseq.logging.metrics import aggregate
from finetuning import build, checkpoint, finetune
from scripts import run
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import distributed, multiprocessing
from torch.nn import functional as F

from emohubert.core.errors import InputError
from emohubert.corpus.audio import n_frames
from emohubert.corpus.manifest import read_split
from emohubert.criterions.emotion import EmotionClassification, EmotionRegression, ccc
from emohubert.evaluation import metrics, scoring
from emohubert.evaluation.inference import predict_split
from emohubert.evaluation.predictions import from_probabilities, read_attention, read_embeddings, read_predictions
from emohubert.models.heads import HEADS
from emohubert.models.pooling import POOLINGS, AttentionPooling, loud_frames
from emohubert.pretrained.load import read_pretrained
from emohubert.pretrained.safe_files import load_state
from emohubert.tasks.trained import load_trained

POOLED = "model.pooling=attention"


@pytest.fixture(scope="module")
def classifier(corpus):
    finished = finetune(corpus, "classification", "optimization.max_epoch=12", "model.freeze=none")
    assert finished.returncode == 0, finished.stdout[-3000:]
    return corpus / "classification" / "checkpoint_best.pt"


@pytest.fixture(scope="module")
def regressor(corpus):
    finished = finetune(corpus, "regression", "task.target=[arousal,valence]", "optimization.max_epoch=12", "model.freeze=none", POOLED)
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert '"valid_ccc_arousal"' in finished.stdout
    return corpus / "regression" / "checkpoint_best.pt"


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("head", HEADS)
def test_a_mixed_batch_gives_what_single_utterances_give(corpus, pooling, head):
    torch.manual_seed(0)
    model = build(corpus, pooling=pooling, head=head, layer_weighting=head == "linear", silence_db=6.0 if head == "mlp" else None).eval()
    lengths = [5_000, 16_000, 400, 9_123]
    waves = [torch.randn(n) for n in lengths]
    source = torch.stack([F.pad(w, (0, max(lengths) - len(w))) for w in waves])
    speaker = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        together = model(source, lengths, speaker=speaker)
        for i, wave in enumerate(waves):
            alone = model(wave[None], [len(wave)], speaker=speaker[i : i + 1])
            for name in ("output", "embedding"):
                assert (together[name][i] - alone[name][0]).abs().max() < 1e-5, name


def test_attention_pooling_is_the_papers_equation():
    """FLEA, equations 2 and 3, one utterance at a time in numpy."""
    torch.manual_seed(0)
    pooling = AttentionPooling(6)
    x, valid = torch.randn(3, 9, 6), torch.arange(9) < torch.tensor([[9], [4], [1]])
    found = pooling(x, valid).detach().numpy()
    w = pooling.attention.weight.detach().numpy()[0]
    for i, n in enumerate((9, 4, 1)):
        frames = x[i, :n].numpy()
        a = np.exp(np.tanh(frames @ w))
        np.testing.assert_allclose(found[i], (a / a.sum()) @ frames, atol=1e-6)


def test_mean_and_standard_deviation():
    x, valid = torch.randn(3, 9, 6), torch.arange(9) < torch.tensor([[9], [4], [1]])
    for i, n in enumerate((9, 4, 1)):
        expected = np.concatenate([x[i, :n].numpy().mean(0), x[i, :n].numpy().std(0)])
        np.testing.assert_allclose(POOLINGS["mean_std"](6)(x, valid)[i], expected, atol=2e-4)  # √(variance + 1e-8)


def test_silence_is_not_pooled(corpus):
    """A tone of a second between two of silence 40 dB below it: the frames that lie in the tone are pooled, those at its edges too."""
    wave = torch.full((48_000,), 0.01)
    wave[16_000:32_000] = 1.0
    energy = np.array([(wave[i * 320 : i * 320 + 400] ** 2).mean() for i in range(n_frames(48_000))])
    found = loud_frames(torch.stack([wave, F.pad(wave[:16_000], (0, 32_000))]), n_frames(48_000), 35.0)
    assert found[0].tolist() == (10 * np.log10(energy) > -35).tolist() and found[0].sum() == 51
    assert found[1, : n_frames(16_000)].all() and not found[1, n_frames(16_000) + 2 :].any()
    model = build(corpus, silence_db=35.0).eval()
    with torch.no_grad():
        output = model(wave[None], [48_000])
        frames, _ = model.encode(wave[None], [48_000])
    torch.testing.assert_close(output["embedding"][0], frames[0][found[0]].mean(0))


def test_pooling_ignores_padding_and_counts_the_last_frame():
    x = torch.arange(12.0).view(1, 4, 3)
    valid = torch.tensor([[True, True, True, False]])
    assert torch.equal(POOLINGS["mean"](3)(x, valid), x[:, :3].mean(dim=1))
    x[:, 3] = float("nan")
    for name in POOLINGS:
        assert POOLINGS[name](3)(x, valid).isfinite().all()


def test_freezing(corpus):
    def trained(what):
        return {n.split(".")[1] for n, p in build(corpus, freeze=what).named_parameters() if p.requires_grad and n.startswith("backbone.")}

    assert "feature_extractor" in trained("none")
    assert "feature_extractor" not in trained("cnn") and "encoder" in trained("cnn")
    assert trained("encoder") == {"speaker_conditioning"} and trained("all") == set()
    frozen = build(corpus, freeze="encoder").train()
    assert not frozen.backbone.training and frozen.head.training


def test_fewer_layers(corpus):
    model = build(corpus, num_layers=1)
    assert len(model.backbone.encoder.layers) == 1
    with pytest.raises(InputError, match="has 2 layers"):
        build(corpus, num_layers=3)


def test_ccc_equals_audmetrics_and_its_gradient_finite_differences():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.normal(0.3, 2, size=(20, 3))
    found = ccc(torch.from_numpy(x), torch.from_numpy(y))
    for d in range(3):
        assert abs(found[d].item() - audmetric.concordance_cc(y[:, d], x[:, d])) < 1e-9
    assert torch.autograd.gradcheck(lambda p: (1 - ccc(p, torch.from_numpy(y))).mean(), torch.from_numpy(x).requires_grad_())


@pytest.mark.parametrize("n", [1, 2])
def test_ccc_of_tiny_and_constant_batches_is_finite(n):
    for x, y in ((torch.zeros(n, 2), torch.zeros(n, 2)), (torch.ones(n, 2), torch.rand(n, 2))):
        x.requires_grad_()
        loss = (1 - ccc(x, y)).mean()
        loss.backward()
        assert loss.isfinite() and x.grad.isfinite().all()


class Fixed(torch.nn.Module):
    """A model whose outputs are its parameters."""

    def __init__(self, output):
        super().__init__()
        self.output = torch.nn.Parameter(output)

    def forward(self, rows):
        return {"output": self.output[rows]}


def batches(target, sizes):
    start = 0
    for n in sizes:
        rows = torch.arange(start, start + n)
        yield {"net_input": {"rows": rows}, "target": target[rows], "ntokens": n, "nsentences": n}
        start += n


def epoch(criterion, model, samples, processes=2):
    """What fairseq logs for an epoch of these batches, so many at a time in different processes."""
    logs = [criterion(model, sample)[2] for sample in samples]
    with aggregate(new_root=True) as found:
        for first in range(0, len(logs), processes):
            type(criterion).reduce_metrics(logs[first : first + processes])
        return found.get_smoothed_values()


EPOCHS = {
    "all classes": (range(4), range(4)),
    "no reference": ((0, 1, 3), range(4)),
    "never predicted": (range(4), (0, 2, 3)),
    "absent": ((0, 1),) * 2,
}


@pytest.mark.parametrize("present", EPOCHS)
@pytest.mark.parametrize("sizes", [[7, 20, 1, 22], [50]])
def test_logged_scores_of_classes_are_those_of_the_whole_epoch(present, sizes):
    """Whatever the batches, and whichever classes are absent: scikit-learn's, audmetric's and those of an evaluation."""
    rng = np.random.default_rng(0)
    references, decisions = EPOCHS[present]
    target, output = torch.from_numpy(rng.choice(references, 50)), torch.from_numpy(rng.normal(size=(50, 4)))
    output[:, [c for c in range(4) if c not in decisions]] = -9.0
    found = epoch(
        EmotionClassification(argparse.Namespace(state=argparse.Namespace(class_counts=[1] * 4))).eval(),
        Fixed(output),
        batches(target, sizes),
    )
    truth, predicted = target.tolist(), output.argmax(1).tolist()
    assert found["ua"] == pytest.approx(balanced_accuracy_score(truth, predicted), abs=1e-4)
    assert found["wa"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-4)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-4)
    assert found["macro_f1"] == pytest.approx(audmetric.unweighted_average_fscore(truth, predicted, zero_division=0), abs=1e-4)
    assert found["loss"] == pytest.approx(F.cross_entropy(output, target).item(), abs=1e-3)
    scores = scoring.evaluate(from_probabilities(*[[*map(str, range(50))]] * 2, [*map(str, truth)], [*"0123"], output.softmax(1).numpy()))
    assert [found[name] for name in ("ua", "wa", "macro_f1")] == pytest.approx([scores[n] for n in ("UA", "WA", "macro_f1")], abs=1e-4)


@pytest.mark.parametrize(
    "kind", ["varied", "constant predictions", "constant references", "two constants", "one constant", "one utterance"]
)
@pytest.mark.parametrize("sizes", [[7, 20, 1, 22], [50]])
def test_logged_ccc_is_that_of_the_whole_epoch(kind, sizes):
    """Whatever the batches, and where a side is constant: audmetric's, that of an evaluation, and, where defined, of the loss."""
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.uniform(size=(50, 2)))
    output = target + torch.from_numpy(rng.normal(0.2, 0.3, size=(50, 2)))
    if kind in ("constant predictions", "two constants", "one constant"):
        output[:] = 0.3
    if kind in ("constant references", "two constants", "one constant"):
        target[:] = 0.7 if kind == "two constants" else 0.3
    if kind == "one utterance":
        target, output, sizes = target[:1], output[:1], [1]
    target, output = target.float().double(), output.float().double()  # what the criterion computes with
    task = argparse.Namespace(dimensions=["arousal", "valence"])
    found = epoch(EmotionRegression(task).eval(), Fixed(output), batches(target, sizes))
    for d, name in enumerate(task.dimensions):
        pair = target[:, d].numpy(), output[:, d].numpy()
        ours = metrics.ccc(*pair)
        assert found[f"ccc_{name}"] == pytest.approx(ours, abs=1e-4, nan_ok=True)
        if kind in ("varied", "constant references", "constant predictions"):
            assert ours == pytest.approx(audmetric.concordance_cc(*pair), abs=1e-7)
            assert ccc(output, target)[d].item() == pytest.approx(ours, abs=1e-9)
        elif kind == "two constants":
            assert ours == ccc(output, target)[d].item() == 0
        else:
            assert np.isnan(ours)
            assert kind == "one utterance" or np.isnan(audmetric.concordance_cc(*pair))
    assert found["ccc"] == pytest.approx((found["ccc_arousal"] + found["ccc_valence"]) / 2, abs=1e-4, nan_ok=True)


def test_balanced_class_weights():
    target, output = torch.tensor([0, 0, 0, 1]), torch.randn(4, 2)
    criterion = EmotionClassification(argparse.Namespace(state=argparse.Namespace(class_counts=[3, 1])), class_weights="balanced")
    loss, size, _ = criterion(Fixed(output), next(batches(target, [4])))
    expected = F.cross_entropy(output, target, weight=torch.tensor([2 / 3, 2.0]), reduction="sum")
    assert size == 4 and torch.allclose(loss, expected)


def criterion_with(counts, **options):
    return EmotionClassification(argparse.Namespace(state=argparse.Namespace(class_counts=counts)), **options)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"class_weights": "balanced", "label_smoothing": 0.1}])
def test_soft_labels_are_torchs_cross_entropy_with_probabilities(options):
    output, shares = torch.randn(5, 3), torch.rand(5, 3).softmax(1)
    sample = next(batches(torch.tensor([0, 1, 2, 2, -1]), [5])) | {"shares": shares.double()}
    criterion = criterion_with([4, 2, 1], soft_labels=True, **options)
    loss, size, log = criterion(Fixed(output), sample)
    smoothing = options.get("label_smoothing", 0)
    expected = F.cross_entropy(output, shares, weight=criterion.class_weights, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(loss, expected.sum())
    assert size == 5 and log["sums"].sum() == 4, "an utterance without a class is learned from, and not scored"
    if not options:  # and the divergence from the model, but for the entropy of the shares
        divergence = F.kl_div(output.log_softmax(1), shares, reduction="sum")
        torch.testing.assert_close(loss - divergence, -(shares * shares.log()).sum())
    one_hot = next(batches(torch.tensor([0, 1]), [2])) | {"shares": torch.eye(3)[:2]}
    torch.testing.assert_close(criterion(Fixed(output), one_hot)[0], criterion_with([4, 2, 1], **options)(Fixed(output), one_hot)[0])


def test_focal_loss_by_hand():
    output, target = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([0, 1])
    loss, _, _ = criterion_with([3, 1], focal_gamma=2.0)(Fixed(output), next(batches(target, [2])))
    assert loss.item() == pytest.approx(0.5**2 * math.log(2) + 0.25**2 * math.log(4 / 3))
    weighted, _, _ = criterion_with([3, 1], focal_gamma=2.0, class_weights="balanced")(Fixed(output), next(batches(target, [2])))
    assert weighted.item() == pytest.approx(2 / 3 * 0.5**2 * math.log(2) + 2 * 0.25**2 * math.log(4 / 3))
    soft = next(batches(target[:1], [1])) | {"shares": torch.tensor([[0.25, 0.75]])}
    loss, _, _ = criterion_with([1, 1], focal_gamma=1.0, soft_labels=True)(Fixed(output[1:]), soft)
    assert loss.item() == pytest.approx(0.25 * 0.75 * math.log(4) + 0.75 * 0.25 * math.log(4 / 3))
    output, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 0])
    options = {"class_weights": "balanced", "label_smoothing": 0.1}
    nearly, plain = (
        criterion_with([4, 3, 2, 1], focal_gamma=g, **options)(Fixed(output), next(batches(target, [6])))[0] for g in (1e-6, 0)
    )
    torch.testing.assert_close(nearly, plain, rtol=1e-4, atol=1e-4)
    model = Fixed(torch.tensor([[200.0, 0.0]]))
    criterion_with([1, 1], focal_gamma=0.5)(model, next(batches(torch.tensor([0]), [1])))[0].backward()
    assert model.output.grad.isfinite().all()


def test_logit_adjustment_by_hand():
    """Menon et al. 2021, equation 10: log(1 + Σ_{y' ≠ y} (π_y' / π_y)^τ exp(f_y' − f_y)); decisions are by the logits as they are."""
    output, target = torch.tensor([[0.0, 0.1], [1.0, 0.0]]), torch.tensor([0, 1])
    loss, _, log = criterion_with([3, 1], logit_adjustment=2.0)(Fixed(output), next(batches(target, [2])))
    assert loss.item() == pytest.approx(math.log1p((1 / 3) ** 2 * math.exp(0.1)) + math.log1p(3**2 * math.exp(1)), rel=1e-6)
    assert log["sums"].tolist() == [0, 1, 1, 0]


def test_half_precision_leaves_the_loss_in_float32():
    """fairseq brings a criterion to bf16 as it does the model (found on a GPU)."""
    output, sample = torch.randn(4, 2), next(batches(torch.tensor([0, 0, 0, 1]), [4]))
    criterion = criterion_with([3, 1], class_weights="balanced", logit_adjustment=1.0)
    expected = criterion(Fixed(output), sample)[0]
    assert torch.equal(criterion.bfloat16()(Fixed(output), sample)[0], expected)


@pytest.mark.parametrize("options", [{"focal_gamma": -1.0}, {"logit_adjustment": math.nan}, {"logit_adjustment": -0.5}])
def test_strange_options_are_refused(options):
    with pytest.raises(InputError, match=rf"criterion\.{[*options][0]}=.*; "):
        criterion_with([1, 1], **options)


def _rank(rank, folder, output, target):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = Fixed(output).train()
    criterion = EmotionRegression(argparse.Namespace(dimensions=["a"])).train()
    rows = torch.arange(3) if rank == 0 else torch.arange(3, 10)
    loss, size, _ = criterion(model, {"net_input": {"rows": rows}, "target": target[rows], "ntokens": 1, "nsentences": 1})
    loss.backward()
    total = torch.tensor(float(size))
    distributed.all_reduce(model.output.grad)
    distributed.all_reduce(total)
    torch.save({"loss": loss.detach() / total, "gradient": model.output.grad / total}, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_loss_and_gradient_of_one(tmp_path):
    torch.manual_seed(0)
    output, target = torch.randn(10, 1), torch.randn(10, 1)
    multiprocessing.spawn(_rank, args=(str(tmp_path), output, target), nprocs=2)
    whole = output.clone().requires_grad_()
    expected = 1 - ccc(whole, target).mean()
    expected.backward()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["loss"], expected.detach())
        torch.testing.assert_close(found["gradient"], whole.grad)


@pytest.mark.slow
def test_classification_from_checkpoint_to_metrics(corpus, classifier, tmp_path, capsys, monkeypatch):
    assert run("tools/evaluate.py", classifier, corpus / "manifest", "test", tmp_path / "out", "--embeddings", "--repeats", "50") == 0
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    predictions = read_predictions(tmp_path / "out" / "predictions.tsv")
    split = read_split(corpus / "manifest", "test")
    assert predictions.ids == split.ids and predictions.speakers == split.speakers and predictions.emotions == split.emotions
    assert scores["UA"] == pytest.approx(balanced_accuracy_score(predictions.emotions, predictions.predicted))
    assert scores["classes"] == list(CLASSES) and scores["n"] == 16 and set(scores["by"]["sex"]) == {"female", "male"}
    assert scores["UA"] > 0.7, "four tones are easy"
    assert scores["setting"] == "seen (4 speakers)" and scores["speaker_embedding"] == "speaker embedding at the input"
    embeddings = read_embeddings(tmp_path / "out" / "embeddings.npz")
    assert embeddings.ids == split.ids and embeddings.values.shape == (16, 32)
    assert f"UA {scores['UA']:.3f}" in capsys.readouterr().out
    before = (tmp_path / "out" / "predictions.tsv").stat().st_mtime_ns
    monkeypatch.setattr("emohubert.tasks.trained.load_trained", None)  # what is whole is found without loading the model
    assert run("tools/evaluate.py", classifier, corpus / "manifest", "test", tmp_path / "out", "--embeddings", "--repeats", "50") == 0
    assert (tmp_path / "out" / "predictions.tsv").stat().st_mtime_ns == before, "made again although nothing changed"


@pytest.mark.slow
def test_a_corpus_with_other_classes(corpus, classifier, regressor, tmp_path, capsys):
    """Its classes are mapped onto the model's; what has no place there is named, and the rest is scored as if there were nothing else."""
    manifest, same, out = tmp_path / "m", tmp_path / "same", tmp_path / "out"
    for other in (manifest, same):
        shutil.copytree(corpus / "manifest", other)
        (other / "corpus.json").write_text((other / "corpus.json").read_text().replace('"noise"', '"other"'))
    renamed = {"angry": "Anger", "happy": "exc", "neutral": "calm", "sad": "sad"}
    truth = (manifest / "test.emo").read_text().split()
    (manifest / "test.emo").write_text("".join(f"{renamed[name]}\n" for name in truth))
    (manifest / "test.votes").write_text("Anger\tcalm\texc\thap\n" + "1\t5\t1\t2\n" * len(truth))
    usual = ("tools/evaluate.py", classifier, manifest, "test", out)
    assert run(*usual, "--label-map", "usual") == 0
    assert "Anger → angry, exc → happy, hap → happy, sad; left out: calm 4" in capsys.readouterr().out
    assert run("tools/evaluate.py", classifier, same, "test", tmp_path / "plain") == 0
    found, plain = read_predictions(out / "predictions.tsv"), read_predictions(tmp_path / "plain" / "predictions.tsv")
    assert found.classes == ["angry", "happy", "sad"] and found.emotions == [name if name != "neutral" else "-" for name in truth]
    three = plain.probabilities[:, [0, 1, 3]]
    np.testing.assert_allclose(found.probabilities, three / three.sum(1, keepdims=True), rtol=1e-9)
    scores = json.loads((out / "metrics.json").read_text())
    assert scores["setting"] == "inductive (4 speakers)", "of the same names as training speakers, but not of the same corpus"
    keep = np.array(truth) != "neutral"
    decided = np.array(found.classes)[three.argmax(1)]
    assert scores["UA"] == pytest.approx(balanced_accuracy_score(np.array(truth)[keep], decided[keep]))
    assert scores["n"] == keep.sum() == 12 and scores["without_reference"] == 4 and scores["label_map"]["left_out"] == {"calm": 4}
    assert scores["votes"]["n"] == 16 and scores["votes"]["tv"] == pytest.approx(
        np.abs(found.probabilities - [0.25, 0.75, 0]).sum(1).mean() / 2
    )
    assert run("tools/audit_run.py", tmp_path, "--allow", "speaker") == 0
    (tmp_path / "map.json").write_text('{"Anger": "sad", "exc": null, "calm": "neutral"}')
    assert run(*usual, "--label-map", tmp_path / "map.json") == 0
    assert read_predictions(out / "predictions.tsv").classes == ["neutral", "sad"]
    capsys.readouterr()
    for content, model, message in (
        (
            '{"Anger": "furious", "exc": "angry", "sad": "angry"}',
            classifier,
            "test.tsv: of its classes (Anger calm exc hap sad) fewer than two",
        ),
        ('["sad"]', classifier, "map.json: expected an object of class names"),
        ("{}", regressor, "predicts dimensions (arousal valence)"),
    ):
        (tmp_path / "map.json").write_text(content)
        assert run("tools/evaluate.py", model, manifest, "test", out, "--label-map", tmp_path / "map.json") == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert run(*usual, "--label-map", tmp_path / "none.json") == 2


@pytest.mark.slow
def test_soft_labels_from_votes_to_metrics(corpus, tmp_path, capsys):
    """Ambiguous utterances are learned from; without votes nothing is."""
    manifest, out = tmp_path / "m", tmp_path / "run"
    shutil.copytree(corpus / "manifest", manifest)
    options = [f"task.data={manifest}", f"checkpoint.save_dir={out}", "criterion.soft_labels=true", "optimization.max_epoch=2"]
    finished = finetune(corpus, "classification", *options)
    assert finished.returncode == 2 and f"error: {manifest}/valid.votes: no such file; " in finished.stdout
    for name in ("train", "valid", "test"):
        classes = (manifest / f"{name}.emo").read_text().split()
        votes = [[3 * (own == c) + (c == "sad") for c in CLASSES] for own in classes]
        votes[0], votes[1], classes[1] = [0] * 4, [0, 2, 2, 0], "-"
        (manifest / f"{name}.votes").write_text("\n".join(["\t".join(CLASSES), *("\t".join(map(str, row)) for row in votes), ""]))
        (manifest / f"{name}.emo").write_text("".join(f"{c}\n" for c in classes))
    extra = ["model.frame_head=true", "criterion.frame_weight=0.5", "criterion.logit_adjustment=1", "task.sampling=balanced"]
    finished = finetune(corpus, "classification", *options, *extra)
    assert finished.returncode == 0 and "train: 24 utterances" in finished.stdout, finished.stdout[-3000:]
    task, _ = load_trained(out / "checkpoint_best.pt")
    shares = read_split(manifest, "train").shares(CLASSES)
    shares[0, 0] = 1  # angry, and no votes
    np.testing.assert_allclose(task.state.class_counts, shares.sum(0), rtol=1e-5)
    assert run("tools/evaluate.py", out / "checkpoint_best.pt", manifest, "test", tmp_path / "test") == 0
    assert "from the annotators' votes: KL" in capsys.readouterr().out
    scores = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert (scores["n"], scores["votes"]["n"]) == (15, 15)


@pytest.mark.slow
def test_regression_from_checkpoint_to_metrics(corpus, regressor, tmp_path):
    assert run("tools/evaluate.py", regressor, corpus / "manifest", "test", tmp_path / "out", "--repeats", "50") == 0
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    predictions = read_predictions(tmp_path / "out" / "predictions.tsv")
    assert predictions.dims == ["arousal", "valence"]
    expected = audmetric.concordance_cc(predictions.references[:, 0], predictions.predicted[:, 0])
    assert scores["dims"]["arousal"]["ccc"] == pytest.approx(expected)
    assert scores["dims"]["arousal"]["ccc"] > 0.4
    assert list(read_attention(tmp_path / "out" / "attention.npz")) == predictions.ids


def test_predictions_depend_on_neither_batches_nor_references(corpus, classifier):
    task, model = load_trained(classifier)
    split = read_split(corpus / "manifest", "test")
    one, vectors = predict_split(task, model, split, batch_seconds=0.1)
    split.emotions = ["-"] * len(split)
    many, other_vectors = predict_split(task, model, split, batch_seconds=100)
    np.testing.assert_allclose(one.probabilities, many.probabilities, atol=1e-5)
    np.testing.assert_allclose(vectors, other_vectors, atol=1e-4)
    assert one.predicted == many.predicted


def test_attention_is_that_of_the_utterance_alone(corpus, classifier):
    task, model = load_trained(classifier)
    model.pooling = AttentionPooling(model.pooling.width)
    split, alone, together = read_split(corpus / "manifest", "test"), {}, {}
    predict_split(task, model, split, padded=False, attention=alone)
    predict_split(task, model, split, padded=True, attention=together)
    assert list(alone) == split.ids
    assert [len(weights) for weights in alone.values()] == [n_frames(int(n)) for n in split.n_samples]
    for name, weights in alone.items():
        assert weights.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(together[name], weights, atol=1e-5)


def test_unknown_speakers_and_short_files(corpus, classifier, caplog):
    task, model = load_trained(classifier)
    split = read_split(corpus / "manifest", "test")
    split.speakers = ["somebody else"] * len(split)
    split.n_samples = split.n_samples.copy()
    split.n_samples[3] = 300
    predictions, _ = predict_split(task, model, split)
    assert len(predictions) == 15 and split.ids[3] not in predictions.ids
    assert split.paths[3] in caplog.text


def test_a_fine_tuned_checkpoint_stands_alone_and_can_be_continued_from(corpus, classifier, tmp_path):
    moved = shutil.copy(classifier, tmp_path / "moved.pt")
    state = torch.load(moved, weights_only=True)
    state["cfg"]["task"]["data"] = state["cfg"]["model"]["init_from"] = "/nowhere"
    torch.save(state, moved)
    task, model = load_trained(moved)
    assert task.classes == list(CLASSES) and task.state.training_speakers == ["anna", "ben", "cleo", "dan"]
    assert torch.serialization.get_unsafe_globals_in_checkpoint(classifier) == []
    pretrained = read_pretrained(moved)
    assert pretrained.family == "emotion_hubert" and pretrained.speakers == task.speakers
    assert torch.equal(pretrained.weights["encoder.layers.0.fc1.weight"], model.backbone.encoder.layers[0].fc1.weight)
    assert "speaker_conditioning.embedding.weight" in pretrained.weights


def test_the_speakers_of_pretraining_are_carried_over(corpus, classifier):
    before, after = load_state(checkpoint(corpus))["model"], load_state(classifier)["model"]
    assert after["backbone.speaker_conditioning.embedding.weight"].shape == before["speaker_conditioning.embedding.weight"].shape


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task.target=[tension]"], "no column “tension”"),
        (["model.init_from=/nowhere.pt"], "/nowhere.pt: no such checkpoint"),
        (["model.num_layers=9"], "has 2 layers"),
        (["task.data=/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(corpus, overrides, expected):
    finished = finetune(corpus, "classification", f"checkpoint.save_dir={corpus}/bad", *overrides)
    errors = [line for line in finished.stdout.splitlines() if line.startswith("error: ")]
    assert finished.returncode == 2 and len(errors) == 1 and expected in errors[0], finished.stdout[-2000:]


def test_meters_of_an_interrupted_epoch_are_plain_values(classifier):
    """What fairseq keeps of the metrics in a checkpoint must load safely."""
    assert isinstance(load_state(classifier)["extra_state"]["metrics"], (dict, list))
    assert issubclass(meters.MetersDict, dict)
