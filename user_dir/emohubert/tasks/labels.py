"""From the sidecars of a split to what a training learns: class indices, dimensions, shares of votes."""

from collections import Counter

import numpy as np

from ..core.errors import InputError
from ..corpus.manifest import NO_EMOTION


def count_categories(manifests, names):
    """{column of .meta.tsv: {value: training utterances}} of those targets that are neither `emo` nor in .dim."""
    others = [name for name in names if name != "emo"]
    if all(name in (manifests.read("train", "dimensions").dimensions or {}) for name in others):
        return {}
    split, found = manifests.read("train", "dimensions", "meta"), {}
    for name in others:
        if name in (split.meta or {}) and name not in (split.dimensions or {}) and name not in ("id", "speaker"):
            counts = Counter(text.strip() for text in split.meta[name])
            found[name] = {value: n for value, n in sorted(counts.items()) if value not in ("", NO_EMOTION)}
            if len(found[name]) < 2:
                raise InputError(f"{split.where(0, 'meta.tsv')}: {name} has no two values to tell apart; correct task.target")
    return found


def dimensions_of(split, output):
    """The values of an Output's dimensions, (n, dimensions) float32, NaN without one; InputError: there is no such column."""
    columns = split.dimensions or {}
    if missing := [name for name in output.names if name not in columns]:
        has = f"it has {', '.join(columns) or 'none'}, and .meta.tsv {', '.join(split.meta or ()) or 'none'}"
        raise InputError(f"{split.directory / split.name}.dim: no column “{missing[0]}” ({has}); correct task.target")
    return np.stack([columns[name] for name in output.names], axis=1).astype(np.float32)


def classes_of(split, output):
    """Indices of an Output's classes, (n,) int64, -1 without one; InputError: the sidecar or column is missing, or one is not known."""
    if output.target == "emo":
        suffix, column, known = "emo", split.emotions, f"{split.directory}/dict.emo.txt"
        missing = "no such file; use task.target=[…] with columns of .dim, or add classes"
    else:
        suffix, column, known = "meta.tsv", (split.meta or {}).get(output.target), "the training data"
        missing = f"no column “{output.target}”; correct task.target"
    if column is None:
        raise InputError(f"{split.directory / split.name}.{suffix}: {missing}")
    table = {name: i for i, name in enumerate(output.names)} | {NO_EMOTION: -1, "": -1}
    found = [table.get(text.strip()) for text in column]
    if None in found:
        first = found.index(None)
        what = f"the class “{column[first]}” is not in {known} ({', '.join(output.names)})"
        raise InputError(f"{split.where(first, suffix)}: {what}; add it there, or make the manifest again")
    return np.array(found, dtype=np.int64)


def shares_of(split, output):
    """What annotators say of a split's utterances: float64 (n, classes), the shares of their votes; without votes the class has all of it,
    without either the row is 0. InputError: the sidecar is missing, or a class of it is not in the dictionary."""
    path = f"{split.directory / split.name}.votes"
    if split.votes is None:
        raise InputError(f"{path}: no such file; make the manifest with its annotators' votes, or set criterion.soft_labels=false")
    if others := sorted(set(split.votes) - set(output.names)):
        known = f"{split.directory}/dict.emo.txt ({', '.join(output.names)})"
        raise InputError(f"{path}:1: the class “{others[0]}” is not in {known}; remove its column, or make the manifest again")
    shares, targets = split.shares(output.names), classes_of(split, output)
    alone = np.flatnonzero(~shares.any(axis=1) & (targets >= 0))
    shares[alone, targets[alone]] = 1
    return shares
