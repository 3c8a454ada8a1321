"""Automatic warnings for a run."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .table_cells import count, number

LEVELS = ("problem", "warning", "note")
FEW_UTTERANCES, FEW_SPEAKERS = 100, 5
UNIGRAM_MARGIN = 0.05  # by how many bits per frame a masked-prediction loss must be below the labels' unigram entropy


@dataclass(frozen=True)
class RunWarning:
    """A message about `where`, relative to the run. `level` is one of `LEVELS`; warnings of one `kind` are shown together."""

    level: str
    kind: str
    message: str
    where: str = ""


def of_run(run):
    """All warnings, the most important first."""
    remedy = "run tools/check_manifest.py MANIFEST_DIR --json RUN_DIR/check_manifest.json"
    found = [] if run.checks else [RunWarning("warning", "no check", f"No leak check was found: {remedy}.")]
    found += [RunWarning("warning", "unread", f"Left out, since it could not be read: {why}", name) for name, why in run.unread.items()]
    found += [RunWarning(*parts, name) for name, check in run.checks.items() for parts in _of_check(check)]
    found += [RunWarning(*parts, name) for name, audit in run.audits.items() for parts in _of_audit(audit)]
    found += [RunWarning(*parts, evaluation.name) for evaluation in run.evaluations for parts in of_evaluation(evaluation)]
    found += [RunWarning(*parts, training.name) for training in run.trainings for parts in of_training(training)]
    return sorted(found, key=lambda warning: LEVELS.index(warning.level))


def of_evaluation(evaluation):
    """(level, kind, message) of the warnings about an evaluation."""
    scores = evaluation.scores
    if not scores["n"]:
        return [("problem", "nothing", "No utterance has a reference: nothing was scored.")]
    if evaluation.is_training_split:
        return [("note", "training split", "Scores of a training split: they show how well it was learnt, and are no test.")]
    of_scores = _of_classes if evaluation.is_classification else _of_dimensions
    return [*_of_calibration(evaluation), *of_scores(evaluation), *_of_size(scores), *_of_groups(scores)]


def _of_check(check):
    for error in check["errors"]:
        yield "problem", "manifest", f"Manifest error: {error}"
    for leak in check["leaks"]:
        level, verdict = ("note", "allowed by the user") if leak.get("allowed") else ("problem", "not allowed")
        shared, kind = leak.get("shared", []), leak.get("kind")
        named = ", ".join(map(str, shared[:5])) + (f" and {len(shared) - 5} more" if len(shared) > 5 else "")
        first, second = ("/".join(Path(str(leak.get(side))).parts[-2:]) for side in ("first", "second"))
        message = f"Leak of {kind} ({verdict}): {len(shared)} shared by {first} and {second}: {named}."
        yield level, f"leak {kind} {verdict}", message


def _of_audit(audit):
    for problem in audit["problems"]:
        yield "problem", "audit", f"Audit: {problem}"
    for leak in audit["leaks"]:
        if leak.get("allowed"):
            what = f"{leak.get('kind')} of the evaluation in {leak.get('role')}"
            yield "note", f"audit {what}", f"Audit, allowed by the user: {what}, in {leak.get('evaluation')}."


def _of_size(scores):
    n, speakers = scores["n"], len(scores["per_speaker"])
    if n < FEW_UTTERANCES or speakers < FEW_SPEAKERS:
        narrow = " and intervals over so few speakers are too narrow" if speakers < FEW_SPEAKERS else ""
        message = f"Few data: {count(n, 'utterance')} of {count(speakers, 'speaker')}. Differences of a few points mean nothing here"
        yield "warning", "few", f"{message}{narrow}; pool folds or seeds."
    if missing := scores.get("without_reference"):
        yield "note", "unscored", f"{count(missing, 'utterance')} without a reference: predicted, not scored."


def _of_classes(evaluation):
    scores = evaluation.scores
    references, predicted = (dict(zip(scores["classes"], np.sum(scores["confusion"], axis).tolist(), strict=True)) for axis in (1, 0))
    chance, (ua, interval) = 1 / sum(n > 0 for n in references.values()), evaluation.headline()["UA"]
    if min([ua, *interval]) <= chance < 1:
        yield "problem", "chance", f"Not above chance: UA {ua:.3f}{_begins(interval)}; always predicting one class gives {chance:.3f}."
    for name, n in references.items():
        if n and not predicted[name]:
            yield "problem", f"never {name}", f"“{name}” is never predicted, though it is the class of {count(n, 'utterance')}."
    if scores.get("ece", 0) > 0.15:
        yield "warning", "ece", f"The probabilities are poorly calibrated: expected calibration error {scores['ece']:.2f}."


def _of_dimensions(evaluation):
    for name, values in evaluation.scores["dims"].items():
        ccc, pearson, interval = values["ccc"], values["pearson"], evaluation.headline()[f"CCC {name}"][1]
        if math.isnan(pearson):
            if values.get("n", evaluation.scores["n"]) > 1:
                yield "problem", f"constant {name}", f"{name}: constant predictions or references, so no correlation."
        elif ccc <= 0.05 or (interval and interval[0] <= 0):
            yield "problem", f"chance {name}", f"{name}: not clearly better than a constant, CCC {number(ccc)}{_begins(interval)}."
        elif pearson - ccc > 0.15:
            message = f"{name}: CCC {ccc:.3f} is far below Pearson {pearson:.3f}: the predictions' mean or scale is off"
            yield "warning", f"scale {name}", f"{message} (bias {number(values.get('bias'))})."


def _begins(interval):
    return f", its interval begins at {interval[0]:.3f}" if interval else ""


def _of_groups(scores):
    """Large differences between the two values of a column: of persons, where a value has one speaker only."""
    for column, d in scores.get("difference", {}).items():
        changes = {"UA": d["UA"]} if "UA" in d else {f"CCC of {n}": v.get("ccc") for n, v in d.get("dims", {}).items()}
        large = [f"{name} {value:+.3f}" for name, value in changes.items() if number(value) != "–" and abs(value) > 0.1]
        first, second = (str(d.get(side)) for side in ("first", "second"))
        alone = any(scores["by"].get(column, {}).get(group, {}).get("speakers") == 1 for group in (first, second))
        if large:
            message = f"Unequal by {column}, {first} minus {second}: {', '.join(large)}{' (a group of one speaker)' if alone else ''}."
            yield "note" if alone else "warning", f"unequal {column}", message


def _of_calibration(evaluation):
    if worse := {name: f"{name} {before:.3f} → {after:.3f}" for name, before, after, is_worse in changes(evaluation) if is_worse}:
        level = "problem" if any(name.startswith(("UA", "ccc", "speaker_ccc")) for name in worse) else "warning"
        yield level, "calibration", f"Worse after calibration: {', '.join(worse.values())}."


def changes(evaluation):
    """The scores on both sides of a calibration: list of (name as in calibration.json, before, after, whether it is worse)."""
    before, after = _named(evaluation.before or {}), _named(evaluation.scores)
    signs = {name: -1 if name.startswith(("ece", "rmse")) else 1 for name in after}
    return [(name, before[name], value, signs[name] * (before[name] - value) > 5e-4) for name, value in after.items() if name in before]


def _named(scores):
    found = {name: scores.get(name) for name in ("UA", "WA", "macro_f1", "ece")}
    for dimension, values in scores.get("dims", {}).items():
        found |= {f"{name}_{dimension}": values.get(name) for name in ("ccc", "pearson", "rmse", "speaker_ccc_mean")}
    return {name: value for name, value in found.items() if number(value) != "–"}


def of_training(training):
    """(level, kind, message) where a pretraining predicts labels no better than by their frequencies."""
    curves = training.curves
    for name in (n for n in curves if n.startswith("unigram_")):
        part = name.removeprefix("unigram_")
        losses, entropies = curves.get(f"loss_{part}", {}), curves[name]
        for split in [s for s in entropies if s != "train" and s in losses] or [s for s in entropies if s in losses]:
            loss, unigram = losses[split][1][-1], entropies[split][1][-1]
            if loss > unigram - UNIGRAM_MARGIN:
                message = f"The model ignores its input: {loss:.3f} bits per frame at the end ({part}, {split}), {unigram:.3f} from label "
                yield "problem", "unigram", message + "frequencies alone. Train longer, or with another seed or learning rate."
