"""The systems of a run side by side: their scores over folds and seeds, and the picture that a page opens with."""

import math
import re

from ..evaluation.metrics import mean_std
from .collect import SYSTEMS, fits

SETTINGS = ("seen", "transductive", "inductive", "adapted", "nearest")
"""Settings in which test speakers are met, each with its colour in the picture."""
_DRAWN = 1e6  # beyond this, and for NaN, there is no place on an axis


def compared(run):
    """Tables of systems, those highest in the run first.

    Returns:
        list of results.json as tools/results.py writes it: title, notes, and systems with name, setting, runs, utterances and
        scores, a list over runs. Without such a file, evaluations whose paths differ only in the number of a fold, session or
        seed are one system.
    """
    if found := [(name.count("/"), name) for name, content in run.results.items() if fits(content, SYSTEMS)]:
        return [run.results[name] for _, name in sorted(found)]
    systems = {}
    for e in (e for e in run.evaluations if not e.is_training_split and e.scores["n"]):
        name = re.sub(r"(fold|seed|session)[_-]?\d+", r"\1*", e.name, flags=re.IGNORECASE)
        new = {"name": name, "setting": [], "runs": 0, "utterances": 0, "scores": {score: [] for score in e.headline()}}
        system = systems.setdefault((name, *new["scores"]), new)
        system["runs"] += 1
        system["utterances"] += e.scores["n"]
        system["setting"] += [e.setting] * (e.setting not in system["setting"])
        for score, (value, _) in e.headline().items():
            system["scores"][score].append(value)
    return [{"systems": list(systems.values())}] if systems else []


def by_scores(systems):
    """Systems in groups with the same scores: list of (names of the scores, systems)."""
    groups = {}
    for system in systems:
        groups.setdefault(tuple(system["scores"]), []).append(system)
    return list(groups.items())


def spread(values, score):
    """A system's score as text: mean ± standard deviation of several runs; percentages with one decimal."""
    mean, std, n = mean_std(values)
    digits = 1 if score.endswith("%") else 3
    return "–" if not n else f"{mean:.{digits}f}" if len(values) == 1 else f"{mean:.{digits}f} ± {std:.{digits}f}"


def plots(run, systems):
    """Pictures of systems, one for each headline score (UA, or the CCC of a dimension).

    Returns:
        list of {score, ticks from one end of the axis to the other, chance, rows}; rows are (system, kind of setting, values, mean,
        ends of the bar): mean ± standard deviation, or the interval over speakers of a single run.
    """
    from matplotlib.ticker import MaxNLocator

    found = []
    for score, members in ((s, of) for names, of in by_scores(systems) for s in names if not s.startswith(("WA", "macro"))):
        rows = []
        for system in members:
            values = [v for v in system["scores"][score] if abs(v) < _DRAWN]
            mean, std, n = mean_std(values)
            met = set(re.findall("|".join(SETTINGS), "".join(system.get("setting", []))))
            bar = [mean - std, mean + std] if n > 1 else _interval(run, system, score)
            rows.append((system, met.pop() if len(met) == 1 else "other", values, mean, bar))
        classes = {len(e.scores["classes"]) for e in run.evaluations if e.is_classification}
        chance = [_scale(score) / classes.pop()] if score.startswith("UA") and len(classes) == 1 else []
        if ends := [v for _, _, values, _, bar in rows for v in (*values, *bar)]:
            margin = 0.02 * _scale(score)
            low, high = min(ends + chance) - margin, max(ends + chance) + margin
            ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high).round(9).tolist()
            found.append({"score": score, "ticks": ticks, "chance": chance, "rows": rows})
    return found


def _scale(score):
    return 100 if score.endswith(" %") else 1


def _interval(run, system, score):
    """The interval of a system that is one evaluation: of the one with as many utterances and just its scores; else []."""
    for e in run.evaluations:
        own = e.headline()
        pairs = [(values, own.get(s.removesuffix(" %"), [math.nan])[0] * _scale(s)) for s, values in system["scores"].items()]
        if system.get("utterances") == e.scores["n"] and all(len(v) == 1 and math.isclose(v[0], value) for v, value in pairs):
            return [_scale(score) * v for v in own[score.removesuffix(" %")][1] if abs(v) < _DRAWN]
    return []
