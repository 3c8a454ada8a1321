"""What a reader of a run should know first: honest, short, and in order of importance."""

import math
from dataclasses import dataclass
from pathlib import Path

from ..evaluation import metrics
from ..training.curves import chosen_update
from .collect import is_number, is_robustness
from .html import count, number

LEVELS = ("problem", "look", "note")
FEW_UTTERANCES, FEW_SPEAKERS, FEW_OF_CLASS = 100, 5, 10
SAME_BITS = 0.05
"""A loss that is not lower than another by so many bits a frame is no better."""


@dataclass(frozen=True)
class Finding:
    """Something a reader should know first.

    Attributes:
        level: one of `LEVELS`.
        kind: equal for findings of the same sort, so that one can stand for all folds.
        message: one or two sentences.
        where: the file, evaluation or training it is about, relative to the run.
    """

    level: str
    kind: str
    message: str
    where: str = ""


def of_run(run):
    """All findings, the most important first: leaks and problems, then where to look, then notes."""
    found = [*_of_checks(run), *_of_audits(run)]
    found += [Finding("look", "unread", f"Not in this page, since it could not be read: {why}", path) for path, why in run.unread.items()]
    found += [f for evaluation in run.evaluations for f in of_evaluation(evaluation)]
    found += [f for training in run.trainings for f in of_training(training)]
    found += [f for name, content in run.results.items() if is_robustness(content) for f in of_robustness(content, name)]
    return sorted(found, key=lambda f: LEVELS.index(f.level))


def _of_checks(run):
    if not run.checks:
        remedy = "run tools/check_manifest.py MANIFEST_DIR --json RUN_DIR/check_manifest.json"
        yield Finding("look", "no check", f"No leak check was found: {remedy}.")
    for name, check in run.checks.items():
        for error in check["errors"]:
            yield Finding("problem", "manifest", f"Manifest error: {error}", name)
        for leak in check["leaks"]:
            allowed = bool(leak.get("allowed"))
            yield Finding("note" if allowed else "problem", f"leak {leak.get('kind')} {allowed}", describe_leak(leak), name)


def _of_audits(run):
    for name, audit in run.audits.items():
        for problem in audit["problems"]:
            yield Finding("problem", "audit", f"Audit: {problem}", name)
        for (kind, role), leaks in _allowed_leaks(audit).items():
            message = f"Audit, allowed by the user: {kind} of the evaluation in {role}, in {count(leaks, 'evaluation')}."
            yield Finding("note", f"audit {kind} {role}", message, name)


def _allowed_leaks(audit):
    """(kind, role) → evaluations that share something, as far as it is allowed."""
    found = {}
    for leak in audit["leaks"]:
        if leak.get("allowed"):
            found.setdefault((leak.get("kind"), leak.get("role")), set()).add(leak.get("evaluation"))
    return {key: len(evaluations) for key, evaluations in found.items()}


def describe_leak(leak):
    """One sentence about a leak, as `tools/check_manifest.py --json` writes it."""
    shared = leak.get("shared") if isinstance(leak.get("shared"), list) else []
    named = ", ".join(str(s) for s in shared[:5]) + (f" and {len(shared) - 5} more" if len(shared) > 5 else "")
    verdict = "allowed by the user" if leak.get("allowed") else "not allowed"
    first, second = ("/".join(Path(str(leak.get(side))).parts[-2:]) for side in ("first", "second"))
    return f"Leak of {leak.get('kind')} ({verdict}): {len(shared)} shared by {first} and {second}: {named}."


def of_evaluation(evaluation):
    """What stands out in an evaluation."""
    scores, where = evaluation.scores, evaluation.name
    n, speakers = int(scores["n"]), len(scores["per_speaker"])
    if not n:
        yield Finding("problem", "nothing", "No utterance has a reference: nothing was scored.", where)
        return
    if evaluation.is_training_split:
        yield Finding("note", "training split", "A training split: it tells how well was learnt by heart, and is no test.", where)
        return
    yield from _of_calibration(evaluation)
    yield from _of_classes(evaluation) if evaluation.is_classification else _of_dimensions(evaluation)
    if n < FEW_UTTERANCES or speakers < FEW_SPEAKERS:
        few = f"{count(n, 'utterance')} of {count(speakers, 'speaker')}"
        narrow = " and intervals over so few speakers are too narrow" if speakers < FEW_SPEAKERS else ""
        message = f"Few data: {few}. Differences of a few points mean nothing here{narrow}; pool folds or seeds."
        yield Finding("look", "few", message, where)
    yield from _of_groups(scores, where)
    if missing := scores.get("without_reference"):
        yield Finding("note", "unscored", f"{count(missing, 'utterance')} without a reference: predicted, not scored.", where)


def _of_classes(evaluation):
    scores, where = evaluation.scores, evaluation.name
    classes, confusion = scores["classes"], scores["confusion"]
    asked = {c: sum(row) for c, row in zip(classes, confusion, strict=True)}
    recalls = {c: r for c, r in zip(classes, metrics.recalls(confusion).tolist(), strict=True) if asked[c]}
    chance, low = 1 / len(recalls), evaluation.interval("UA")[0]
    if len(recalls) > 1 and (scores["UA"] <= chance or low <= chance):
        begins = "" if math.isnan(low) else f", its interval begins at {low:.3f}"
        message = f"Not above chance: UA {scores['UA']:.3f}{begins}; always naming one class gives {chance:.3f}."
        yield Finding("problem", "chance", message, where)
    for i, name in enumerate(classes):
        if asked[name] and not sum(row[i] for row in confusion):
            message = f"“{name}” is never predicted, though it is the class of {count(asked[name], 'utterance')}."
            yield Finding("problem", f"never {name}", message, where)
    if len(recalls) > 1:
        worst = min(recalls, key=recalls.get)
        others = {c: v for c, v in zip(classes, confusion[classes.index(worst)], strict=True) if c != worst}
        taken = max(others, key=others.get)
        mostly = f", most often taken for “{taken}” ({others[taken]})" if others[taken] else ""
        right = asked[worst] - sum(others.values())
        yield Finding("look", "recall", f"Lowest recall: “{worst}”, {right} of {asked[worst]} found{mostly}.", where)
    if few := [f"“{c}” {n}" for c, n in asked.items() if 0 < n < FEW_OF_CLASS]:
        message = f"Classes with fewer than {FEW_OF_CLASS} utterances weigh as much in UA as the others: {', '.join(few)}."
        yield Finding("look", "few of a class", message, where)
    if absent := [f"“{c}”" for c, n in asked.items() if not n]:
        yield Finding("note", "absent", f"No reference has {', '.join(absent)}: not part of UA.", where)
    yield from _of_speakers({s: v.get("UA") for s, v in scores["per_speaker"].items()}, "UA", scores["per_speaker"], where)
    if is_number(scores.get("ece")) and scores["ece"] > 0.15:
        message = f"The probabilities cannot be taken at their word: calibration error {scores['ece']:.2f}."
        yield Finding("look", "ece", message, where)


def _of_dimensions(evaluation):
    scores, where = evaluation.scores, evaluation.name
    for name, values in scores["dims"].items():
        ccc, pearson, low = values["ccc"], values["pearson"], evaluation.interval("ccc", name)[0]
        if math.isnan(pearson):
            if values.get("n", scores["n"]) > 1:
                yield Finding("problem", f"constant {name}", f"{name}: constant predictions or references, so no correlation.", where)
        elif ccc <= 0.05 or low <= 0:
            begins = "" if math.isnan(low) else f", its interval begins at {low:.3f}"
            yield Finding("problem", f"chance {name}", f"{name}: not clearly better than a constant, CCC {number(ccc)}{begins}.", where)
        elif pearson - ccc > 0.15:
            message = f"{name}: CCC {ccc:.3f} is far below Pearson {pearson:.3f}: the predictions' mean or scale is off"
            yield Finding("look", f"scale {name}", f"{message} (bias {number(values.get('bias'))}).", where)
        speakers = {s: (v.get("dims") or {}).get(name, {}) for s, v in scores["per_speaker"].items()}
        yield from _of_speakers({s: v.get("ccc") for s, v in speakers.items()}, f"CCC of {name}", scores["per_speaker"], where)


def _of_speakers(values, label, speakers, where):
    defined = {s: v for s, v in values.items() if is_number(v) and not math.isnan(v)}
    if len(defined) < 2:
        return
    mean, std, n = metrics.mean_std(defined.values())
    worst = sorted(defined, key=defined.get)[: 1 if n < 6 else 3]
    named = ", ".join(f"{s} {defined[s]:.2f} ({speakers[s].get('n', '?')} utterances)" for s in worst)
    message = f"{label} over {n} speakers {mean:.3f} ± {std:.3f}; lowest: {named}."
    yield Finding("look" if std > 0.1 else "note", f"speakers {label}", message, where)


def _of_groups(scores, where):
    """Large differences between the two values of a column: of persons, where a value has one speaker only."""
    for column, d in (scores.get("difference") or {}).items():
        pair = f"{d.get('first')} minus {d.get('second')}"
        changes = {"UA": d.get("UA")} if "UA" in d else {f"CCC of {n}": v.get("ccc") for n, v in (d.get("dims") or {}).items()}
        large = [f"{name} {value:+.3f}" for name, value in changes.items() if is_number(value) and abs(value) > 0.1]
        if not large:
            continue
        alone = any(scores["by"].get(column, {}).get(d.get(side), {}).get("speakers") == 1 for side in ("first", "second"))
        message = f"Unequal by {column}, {pair}: {', '.join(large)}" + (" (one speaker has to stand for a group)." if alone else ".")
        yield Finding("note" if alone else "look", f"unequal {column}", message, where)


def _of_calibration(evaluation):
    worse = [c for c in changes(evaluation) if not c.is_better and abs(c.after - c.before) > 5e-4]
    if worse:
        level = "problem" if any(c.score.endswith(("UA", "ccc", "CCC over speakers")) for c in worse) else "look"
        listed = ", ".join(f"{c.score} {c.before:.3f} → {c.after:.3f}" for c in worse)
        yield Finding(level, "calibration", f"Worse after calibration: {listed}.", evaluation.name)


@dataclass(frozen=True)
class Change:
    """A score before and after calibration; `is_better` includes no change."""

    score: str
    before: float
    after: float
    is_better: bool


def changes(evaluation):
    """The headline scores that both sides of a calibration have, as a list of Change; [] without `metrics_before.json`."""
    before, after = evaluation.before, evaluation.scores
    if before is None:
        return []
    if evaluation.is_classification:
        rows = [(s, before.get(s), after.get(s), lower) for s, lower in (("UA", 0), ("WA", 0), ("macro_f1", 0), ("ece", 1))]
    else:
        scores = (("ccc", "ccc", 0), ("pearson", "pearson", 0), ("rmse", "rmse", 1), ("speaker_ccc_mean", "CCC over speakers", 0))
        dims = [d for d in after["dims"] if d in before.get("dims", {})]
        rows = [(f"{d}: {label}", before["dims"][d].get(s), after["dims"][d].get(s), lower) for d in dims for s, label, lower in scores]
    return [Change(s, b, a, a <= b if lower else a >= b) for s, b, a, lower in rows if is_number(b) and is_number(a)]


def of_robustness(content, where):
    """Under which condition UA, or the CCC of each dimension, falls most, of those whose interval lies below zero."""
    clean, *conditions = content["conditions"]
    scores = clean["scores"]
    for name, before in ({"UA": scores["UA"]} if "UA" in scores else scores).items():
        falls = []
        for condition in conditions:
            score = condition["scores"][name]
            ci = score["change_ci"] if isinstance(score["change_ci"], list) else []
            if is_number(score["change"]) and len(ci) == 2 and is_number(ci[1]) and ci[1] < 0:
                falls.append((score["change"], condition["name"], score["value"]))
        if falls:
            change, condition, value = min(falls)
            message = f"{name} falls most with {condition}: {number(before['value'])} → {number(value)}"
            message += f"; in {len(falls)} of {count(len(conditions), 'condition')} the interval of the change lies below zero."
            yield Finding("look" if change < -0.1 else "note", f"robustness {name}", message, where)


def of_training(training):
    """What stands out in a training's curves."""
    where, curves = training.name, training.curves
    if not curves:
        yield Finding("note", "no log", "No training log with curves was found; common.log_format=json writes one.", where)
        return
    yield from _of_masked_prediction(curves, where)
    chosen, last = chosen_update(curves), training.last_update()
    losses = [values for split, (_, values) in curves.get("loss", {}).items() if split != "train"]
    if not losses and chosen is None:
        yield Finding("note", "no validation", "No validation was logged: the last checkpoint is the result.", where)
    if chosen and chosen[1] == last and any(len(values) > 2 for values in losses):
        message = f"Validation ({chosen[0]}) was best at the very last update, {last}: longer training may help."
        yield Finding("look", "improving", message, where)
    for values in losses:
        if len(values) > 2 and values[-1] > 1.2 * values.min() > 0:
            message = f"The validation loss rose from {values.min():.3f} to {values[-1]:.3f}: overfitting late in training."
            yield Finding("note" if chosen else "look", "overfitting", message, where)


def _of_masked_prediction(curves, where):
    """Whether a pretraining has learnt anything from what it heard."""
    for name in (n for n in curves if n.startswith("unigram_")):
        part = name.removeprefix("unigram_")
        losses, alone = curves.get(f"loss_{part}", {}), curves[name]
        for split in [s for s in alone if s != "train" and s in losses] or [s for s in alone if s in losses]:
            loss, unigram = losses[split][1][-1], alone[split][1][-1]
            if loss > unigram - SAME_BITS:
                message = (
                    f"Masked prediction has learnt little but how frequent labels are: {loss:.3f} bits a frame at the end ({part}, {split}), "
                    f"{unigram:.3f} by their frequencies alone. What starts from it starts from nothing: train longer, or with another seed "
                    "or learning rate."
                )
                yield Finding("problem", "unigram", message, where)
