"""Several targets from one pooled vector: each has the loss and the scores it has alone, with labels missing here and there."""

import argparse
import json
import math
import shutil

import audmetric
import numpy as np
import pytest
import torch
from fairseq.logging.metrics import aggregate
from finetuning import checkpoint, finetune
from scripts import run
from sklearn.metrics import balanced_accuracy_score
from torch import nn
from torch.nn import functional as F

import emohubert
from emohubert.core.errors import InputError
from emohubert.corpus.audio import read
from emohubert.corpus.manifest import read_split
from emohubert.criterions.emotion import EmotionClassification, EmotionMultitask, EmotionMultitaskConfig, EmotionRegression, ccc
from emohubert.evaluation.predictions import read_predictions
from emohubert.models.heads import outputs_of
from emohubert.tasks.trained import load_trained

NAMES = ["emo", "arousal", "valence", "sex"]
COUNTS = {"emo": [4, 2, 1], "sex": [3, 5]}


class Fixed(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, rows):
        return {"output": self.output[rows]}


def task_of(names=tuple(NAMES)):
    sizes = {"classes": ["a", "b", "c"] * ("emo" in names), "categories": {"sex": ["f", "m"]} if "sex" in names else {}}
    outputs = outputs_of(sizes["classes"], [n for n in ("arousal", "valence") if n in names], sizes["categories"])
    state = argparse.Namespace(class_counts=COUNTS["emo"])
    counts_of = lambda output: COUNTS[output.target]  # noqa: E731
    return argparse.Namespace(outputs=outputs, label_names=list(names), state=state, counts_of=counts_of, dimensions=["arousal", "valence"])


def criterion(task, **options):
    return EmotionMultitask(EmotionMultitaskConfig(**options), task)


def sample(target, first=0, last=None):
    target = target[first:last]
    return {"net_input": {"rows": torch.arange(first, first + len(target))}, "target": target, "ntokens": 1, "nsentences": len(target)}


@pytest.fixture
def output_and_target():
    """(20, 3 + 2 + 2) and (20, 4), of which every target lacks some."""
    rng = np.random.default_rng(0)
    target = np.stack([rng.integers(0, 3, 20), rng.uniform(size=20), rng.uniform(size=20), rng.integers(0, 2, 20)], axis=1)
    target[0, 0] = target[1:3, 1] = target[5, 2] = target[8:12, 3] = np.nan
    return torch.randn(20, 7), torch.from_numpy(target).float()


def test_losses_are_those_of_each_target_alone(output_and_target):
    output, target = output_and_target
    options = {"class_weights": "balanced", "label_smoothing": 0.1}
    model = Fixed(output)
    loss, n, log = criterion(task_of(), target_weights=[2, 1, 0, 1], **options)(model, sample(target))
    parts = []
    for column, columns, name in ((0, slice(0, 3), "emo"), (3, slice(5, 7), "sex")):
        known, counts = ~target[:, column].isnan(), torch.tensor(COUNTS[name]).float()
        own = {"weight": counts.mean() / counts, "label_smoothing": 0.1, "reduction": "none"}
        parts.append(F.cross_entropy(output[known, columns], target[known, column].long(), **own).sum() / 20)
    known = ~target[:, 1].isnan()
    parts.insert(1, 1 - ccc(output[known, 3:4], target[known, 1:2])[0])
    torch.testing.assert_close(loss / n, (2 * parts[0] + parts[1] + parts[2]) / 4)
    for name, expected in zip(("emo", "arousal", "sex"), parts, strict=True):
        assert (log[f"loss_{name}"] / 20).item() == pytest.approx(expected.item(), rel=1e-5)
    assert (log["loss"] / n).item() == pytest.approx((loss / n).item(), rel=1e-6)
    loss.backward()
    assert not model.output.grad[:, 4].any() and not model.output.grad[8:12, 5:].any() and model.output.grad[8:12, :3].any()


def test_one_target_is_the_criterion_of_one(output_and_target):
    output, target = output_and_target[0], torch.tensor([0, 1, 2, 2, 1] * 4)
    for mine, alone in (
        (criterion(task_of(["emo"]), label_smoothing=0.2), EmotionClassification(task_of(["emo"]), label_smoothing=0.2)),
        (criterion(task_of(["arousal", "valence"])), EmotionRegression(task_of())),
    ):
        columns = output[:, :3] if isinstance(alone, EmotionClassification) else output[:, 3:5]
        labels = target if isinstance(alone, EmotionClassification) else torch.rand(20, 2)
        (loss, _, log), (expected, _, theirs) = mine(Fixed(columns), sample(labels)), alone(Fixed(columns), sample(labels))
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(log["sums"], theirs["sums"])


def test_logged_scores_are_those_of_the_labelled_in_the_whole_epoch(output_and_target):
    output, target = output_and_target
    task = task_of()
    task.corpora = ["x", "y"]
    mine, model, whose = criterion(task, target_weights=[1, 1, 1, 3]), Fixed(output), torch.arange(20) < 12
    with aggregate(new_root=True) as meters:
        for first, last in ((0, 7), (7, 8), (8, 20)):
            batch = sample(target, first, last) | {"corpora": torch.stack([whose, ~whose], dim=1)[first:last]}
            mine.reduce_metrics([mine(model, batch)[2]])
        found = meters.get_smoothed_values()
    for ending, chosen in (("", whose | ~whose), ("_in_x", whose), ("_in_y", ~whose)):
        expected = []
        for name, column, columns in (("ua", 0, slice(0, 3)), ("ua_sex", 3, slice(5, 7))):
            known = chosen & ~target[:, column].isnan()
            with np.errstate(all="ignore"):
                expected.append(balanced_accuracy_score(target[known, column].int(), output[known, columns].argmax(1)))
            assert found[name + ending] == pytest.approx(expected[-1], abs=1e-4)
        for name, column in (("ccc_arousal", 1), ("ccc_valence", 2)):
            known = chosen & ~target[:, column].isnan()
            expected.append(audmetric.concordance_cc(target[known, column].double().numpy(), output[known, column + 2].double().numpy()))
            assert found[name + ending] == pytest.approx(expected[-1], abs=1e-4)
        emo, sex, arousal, valence = expected
        assert found["score" + ending] == pytest.approx((emo + 3 * sex + arousal + valence) / 6, abs=1e-4)


@pytest.mark.parametrize("weights", [[1, 1], [0, 0, 0, 0], [1, 1, 1, -1], 2.0, [1, 1, 1, "x"], [1, 1, 1, math.inf]])
def test_strange_weights_are_refused(weights):
    with pytest.raises(InputError, match=r"criterion.target_weights=.*: give numbers from 0 on, not all 0, for emo, arousal, valence, sex"):
        criterion(task_of(), target_weights=weights)


@pytest.fixture(scope="module")
def trained(corpus):
    manifest = corpus / "several"
    shutil.copytree(corpus / "manifest", manifest)
    lines = (manifest / "train.emo").read_text().splitlines()
    (manifest / "train.emo").write_text("\n".join(["-"] * 5 + lines[5:]) + "\n")
    table = (manifest / "train.meta.tsv").read_text().splitlines()
    (manifest / "train.meta.tsv").write_text("\n".join([*table[:-2], *(f"{line.split()[0]}\t" for line in table[-2:])]) + "\n")
    options = ["task.target=[sex,emo,arousal]", "criterion.target_weights=[0.5,1,1]", "task.sampling=balanced", "model.freeze=none"]
    finished = finetune(corpus, "multitask", f"task.data={manifest}", *options, "optimization.max_epoch=8")
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert "5 of 24 utterances have no emo" in finished.stdout and "2 of 24 utterances have no sex" in finished.stdout
    assert all(f'"valid_{name}"' in finished.stdout for name in ("ua", "ccc_arousal", "ua_sex", "loss_sex", "score", "best_score"))
    return corpus / "multitask" / "checkpoint_best.pt"


@pytest.mark.slow
def test_evaluation_writes_a_folder_for_each_further_target(corpus, trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("tools/evaluate.py", trained, corpus / "manifest", "test", out, "--repeats", "20") == 0
    printed = capsys.readouterr().out
    assert "\ndimensions: arousal: CCC" in printed and "\nsex: UA" in printed
    split, folders = read_split(corpus / "manifest", "test"), {"emo": out, "dimensions": out / "dimensions", "sex": out / "sex"}
    scores = {name: json.loads((folder / "metrics.json").read_text()) for name, folder in folders.items()}
    found = {name: read_predictions(folder / "predictions.tsv") for name, folder in folders.items()}
    assert list(found["emo"].columns)[:5] == ["id", "speaker", "emo", "emo_pred", "p_angry"]
    assert found["emo"].emotions == list(split.emotions)
    assert list(found["sex"].columns) == ["id", "speaker", "sex", "sex_pred", "p_female", "p_male"]
    assert found["sex"].emotions == list(split.meta["sex"]) and found["sex"].name == "sex"
    np.testing.assert_allclose(found["dimensions"].references[:, 0], split.dimensions["arousal"], atol=1e-6)
    assert scores["emo"]["UA"] > 0.5 and scores["emo"]["others"] == ["dimensions", "sex"]
    assert scores["sex"]["UA"] == pytest.approx(balanced_accuracy_score(found["sex"].emotions, found["sex"].predicted))
    assert scores["sex"]["classes"] == ["female", "male"] and list(scores["dimensions"]["dims"]) == ["arousal"]
    assert scores["sex"]["setting"] == scores["emo"]["setting"]
    assert run("tools/evaluate.py", trained, corpus / "manifest", "test", out, "--repeats", "20") == 0
    assert capsys.readouterr().out == printed, "skipped, and shown again"


@pytest.mark.slow
def test_predictions_hold_all_targets(corpus, trained, capsys):
    split, recogniser = read_split(corpus / "manifest", "test"), emohubert.load(trained, device="cpu")
    path = split.audio(0)
    found = recogniser.predict(read(path), 16_000)
    assert recogniser.others == {"sex": ["female", "male"]} and recogniser.dimensions == [*found.dimensions] == ["arousal"]
    assert sum(found.probabilities.values()) == pytest.approx(1) and sum(found.others["sex"].values()) == pytest.approx(1)
    assert found.emotion == max(found.probabilities, key=found.probabilities.get)
    capsys.readouterr()
    assert run("tools/predict.py", trained, path, "--format", "json", "--temperature", "3") == 0
    line = json.loads(capsys.readouterr().out)
    assert line["sex"] == pytest.approx(found.others["sex"], abs=1e-5) and line["dimensions"] == pytest.approx(found.dimensions, abs=1e-5)
    flat = np.array(list(found.probabilities.values())) ** (1 / 3)
    assert list(line["probabilities"].values()) == pytest.approx(list(flat / flat.sum()), abs=1e-4)
    assert run("tools/predict.py", trained, path, "--format", "csv") == 0
    header = capsys.readouterr().out.splitlines()[0].split(",")
    assert header[2:] == ["p_angry", "p_happy", "p_neutral", "p_sad", "arousal", "sex_female", "sex_male"]


@pytest.mark.slow
def test_programs_of_one_target_refuse_several(corpus, trained, tmp_path, capsys):
    for program, *arguments in (
        ("tools/export_hf.py", trained, tmp_path / "hf"),
        ("tools/export_onnx.py", trained, tmp_path / "m.onnx"),
        ("tools/robustness.py", trained, corpus / "manifest", "test", tmp_path / "r"),
    ):
        capsys.readouterr()
        assert run(program, *arguments) == 2
        assert "predicts several targets (emo, dimensions, sex)" in capsys.readouterr().err
    with pytest.raises(InputError, match="several targets"):
        load_trained(trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "target", "expected"),
    [
        ("classification", "[emo,sex]", "criterion.emotion_classification: task.target=[emo,sex] is more than"),
        ("regression", "[arousal,sex]", "use a configuration ser_multitask_"),
        ("multitask", "[emo,mood]", ".dim: no column “mood” (it has arousal, valence, and .meta.tsv id, sex); correct task.target"),
        ("multitask", "[emo,id]", "no column “id”"),
    ],
)
def test_targets_that_cannot_be(corpus, tmp_path, kind, target, expected):
    finished = finetune(corpus, kind, f"task.target={target}", f"checkpoint.save_dir={tmp_path}", f"model.init_from={checkpoint(corpus)}")
    errors = [line for line in finished.stdout.splitlines() if line.startswith("error: ")]
    assert finished.returncode == 2 and len(errors) == 1 and expected in errors[0], finished.stdout[-3000:]
