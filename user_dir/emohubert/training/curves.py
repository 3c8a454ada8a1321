"""The curves in a training log of fairseq."""

import json
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..corpus.manifest import as_number


def read_training_log(path):
    """The curves in a fairseq log of `log_format=json`: {name: {split: (updates, values)}}, arrays sorted by update; the splits are `train`
    and those validated on, names include `best_…`. A resumed run logs some updates twice; the later line counts. InputError: unreadable."""
    curves = {}
    for split, update, values in filter(None, map(_log_row, _lines(path))):
        for name, value in values.items():
            curves.setdefault(name, {}).setdefault(split, {})[update] = value
    return {
        name: {s: tuple(np.array(column) for column in zip(*sorted(points.items()), strict=True)) for s, points in splits.items()}
        for name, splits in curves.items()
    }


def chosen_update(curves):
    """(metric, update) at which the best validation value was first reached, as fairseq logs it; None without one."""
    for name, splits in curves.items():
        for split, (updates, values) in splits.items():
            if name.startswith("best_") and split != "train" and len(values):
                return name.removeprefix("best_"), int(updates[np.flatnonzero(values == values[-1])[0]])
    return None


def _lines(path):
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as f:
            yield from f
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the log of a training run") from error


def _log_row(line):
    """(split, update, {name: value}) of one log line, or None."""
    start = line.rfind('{"epoch"')  # a resumed run continues in the line that a killed one left unfinished
    try:
        stats = json.loads(line[start:]) if start >= 0 else {}
    except json.JSONDecodeError:  # the last line of a killed run
        return None
    counter = next((name for name in stats if name.endswith("num_updates")), None)
    prefix = counter.removesuffix("num_updates") if counter else ""
    stats = {name.removeprefix(prefix): value for name, value in stats.items() if name not in ("epoch", "update")}
    values = {name: number for name, text in stats.items() if np.isfinite(number := as_number(text))}
    update = values.pop("num_updates", None)
    return None if update is None else (prefix.rstrip("_") or "train", int(update), values)
