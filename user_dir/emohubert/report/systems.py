"""The systems of a run side by side: their scores over folds and seeds, and the picture that a page opens with."""

import re

from ..evaluation.metrics import mean_std
from ..evaluation.results import as_systems, by_scores
from .collect import SYSTEMS, fits

SETTINGS = ("seen", "transductive", "inductive", "adapted", "calibrated")
"""Settings in which test speakers are met, each with its colour in the picture."""
_DRAWN = 1e6  # beyond this, and for NaN, there is no place on an axis


def compared(run):
    """Tables of systems, contents of results.json as tools/results.py writes it: those highest in the run first. Without such a file,
    evaluations whose paths differ only in the number of a fold, session or seed are one system."""
    if found := [(name.count("/"), name) for name, content in run.results.items() if fits(content, SYSTEMS)]:
        return [run.results[name] for _, name in sorted(found)]
    runs = [
        (re.sub(r"(fold|seed|session)[_-]?\d+", r"\1*", e.name, flags=re.IGNORECASE), e.setting, e.scores["n"], e.headline())
        for e in run.evaluations
        if not e.is_training_split and e.scores["n"]
    ]
    systems = as_systems((*about, {score: value for score, (value, _) in headline.items()}) for *about, headline in runs)
    return [{"systems": systems}] if systems else []


def plots(run, systems):
    """Pictures of systems, one for each headline score (UA, or the CCC of a dimension): {score, ticks along the whole axis, chance, rows}.
    Rows are (system, kind of setting, values, mean, ends of the bar: mean ± standard deviation, or [] of a single run)."""
    from matplotlib.ticker import MaxNLocator

    found = []
    for score, members in ((s, of) for names, of in by_scores(systems) for s in names if not s.startswith(("WA", "macro"))):
        rows = []
        for system in members:
            values = [v for v in system["scores"][score] if abs(v) < _DRAWN]
            mean, std, n = mean_std(values)
            met = set(re.findall("|".join(SETTINGS), "".join(system.get("setting", []))))
            bar = [mean - std, mean + std] if n > 1 else []
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
