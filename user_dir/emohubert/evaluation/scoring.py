"""From predictions to `metrics.json`, `thresholds.tsv` and figures.

Everything is computed over whole sets. Utterances without a reference are counted and left out of every score. Nothing here
is fitted on, or selected by, the data that is scored: the threshold sweep describes, it does not choose.
"""

import math
from collections import Counter
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import atomic, make_folder, sha256, write_json
from ..corpus.manifest import NO_EMOTION
from . import figures, metrics
from .predictions import ClassPredictions, write_embeddings, write_predictions

NO_VALUE = "-"
"""The group of the utterances whose metadata column is empty."""
MOST_VALUES = 30
"""A metadata column with more values than this is named in `columns_left_out` instead of being broken down."""
DIMENSION_SCORES = ("ccc", "pearson", "rmse")


def inputs(checkpoint, directory, split):
    """What an evaluation is made from, for a `files.Stamp`: the SHA-256s of a checkpoint and of a split's manifest and sidecars."""
    return {"checkpoint": sha256(checkpoint), "manifest": [sha256(p) for p in sorted(Path(directory).glob(f"{split}.*"))]}


def evaluate(predictions, split=None, repeats=2000, level=0.95, seed=1, bins=15):
    """Every score of a set of predictions, as `metrics.json` holds them.

    Args:
        predictions: ClassPredictions or DimensionPredictions, with references.
        split: the manifest split they were made on, for its metadata columns; without one, `by` is empty.
        repeats, level, seed: of the bootstrap over speakers.
        bins: of the expected calibration error.

    Returns:
        A dict for JSON. Both kinds: `n` (utterances with a reference), `without_reference`, `speakers` (number, and mean ±
        standard deviation over speakers), `ci` (intervals by bootstrap over speakers), `by` (metadata column → value →
        scores), `difference` (columns with exactly two values, such as sex: first minus second), `columns_left_out`,
        `per_speaker`. Classification: `UA`, `WA`, `macro_f1`, `classes`, `confusion` (rows: references), `per_class`, `ece`.
        Regression: `dims` (name → ccc, pearson, rmse, bias = mean of prediction − reference, `speaker_ccc_mean`,
        `speaker_ccc_std`). NaN marks what is not defined (a CCC of one utterance) and is null in the file.

    Raises:
        InputError: an utterance is not in the split, or no utterance at all was predicted.
    """
    if not len(predictions):
        raise InputError("there are no predictions to evaluate; choose a split with utterances")
    rows = _rows_in_split(predictions, split)
    chance = {"repeats": repeats, "level": level, "seed": seed}
    scorer = _Classes(predictions, bins) if isinstance(predictions, ClassPredictions) else _Dimensions(predictions)
    speakers = {name: members for name, members in _groups(predictions.speakers).items() if scorer.has_reference[members].any()}
    per_speaker = {name: scorer.scores(members) for name, members in speakers.items()}
    columns, left_out = _columns(split, rows)
    by = {c: {value: _group(predictions, scorer, members) for value, members in groups.items()} for c, groups in columns.items()}
    return {
        **scorer.overall(per_speaker),
        "without_reference": int((~scorer.has_reference).sum()),
        "speakers": scorer.over_speakers(per_speaker),
        "ci": {
            "level": level,
            "resampled": "speakers",
            "repeats": repeats,
            "seed": seed,
            **scorer.intervals(list(speakers.values()), chance),
        },
        "by": by,
        "difference": {column: scorer.difference(groups) for column, groups in by.items() if _two_scored(groups)},
        "columns_left_out": left_out,
        "per_speaker": per_speaker,
    }


def compare(predictions, other, repeats=2000, level=0.95, seed=1):
    """A paired test of two systems on the utterances that both predicted and that have a reference.

    Args:
        predictions, other: two ClassPredictions, or two DimensionPredictions.

    Returns:
        {"n", "speakers", "left_out": {"only_this", "only_other", "without_reference"}, "tests": score → {"this", "other",
        "difference", "ci", "p", "speakers"}, "mcnemar"}; scores of dimensions are named `ccc_NAME`.

    Raises:
        InputError: of different kinds, no common utterance, other classes, dimensions, speakers or references.
    """
    kind = type(predictions)
    if not isinstance(other, kind):
        raise InputError("--compare: one file holds classes and the other dimensions; compare two of one kind")
    place = {name: i for i, name in enumerate(other.ids)}
    common = [i for i, name in enumerate(predictions.ids) if name in place]
    if not common:
        raise InputError("--compare: the two systems share no utterance; evaluate both on the same split")
    this, that = predictions.take(common), other.take([place[predictions.ids[i]] for i in common])
    left_out = {"only_this": len(predictions) - len(common), "only_other": len(other) - len(common)}
    _check_comparable(this, that)
    if kind is ClassPredictions:
        scorers = {"": (_Classes(this), _Classes(that))}
    else:
        scorers = {f"_{name}": (_Dimensions(this, [name]), _Dimensions(that, [name])) for name in this.dims}
    tests = {}
    for suffix, (a, b) in scorers.items():
        members = [m for m in _groups(this.speakers).values() if a.has_reference[m].any()]
        if members:
            result = metrics.paired_comparison(a.parts(members), b.parts(members), a.score, repeats, level, seed)
            tests |= {name + suffix: values for name, values in result.items()}
    scored = np.logical_or.reduce([a.has_reference for a, _ in scorers.values()])
    if not tests:
        raise InputError("--compare: no common utterance has a reference; evaluate on a split with labels")
    report = {
        "n": int(scored.sum()),
        "speakers": len({s for s, ok in zip(this.speakers, scored, strict=True) if ok}),
        "left_out": {**left_out, "without_reference": int((~scored).sum())},
        "level": level,
        "repeats": repeats,
        "seed": seed,
        "tests": tests,
    }
    if kind is ClassPredictions:
        right = [[e == p for e, p, ok in zip(s.emotions, s.predicted, scored, strict=True) if ok] for s in (this, that)]
        report["mcnemar"] = metrics.mcnemar(*right)
    return report


def save(directory, predictions, split=None, embeddings=None, repeats=2000, seed=1):
    """Evaluate, and write everything `tools/evaluate.py` promises.

    Writes `predictions.tsv`, `embeddings.npz` (with `embeddings`), `thresholds.tsv` (classification), `figures/*.png`, and
    last, so that it vouches for the rest, `metrics.json`. Figures of an earlier run in the same folder are removed.

    Args:
        directory: output folder, made if needed.
        predictions, split, repeats, seed: as `evaluate`.
        embeddings: float (n, d), a row for every prediction, or None.

    Returns:
        The metrics.
    """
    directory = make_folder(directory)
    (directory / "metrics.json").unlink(missing_ok=True)
    scores = evaluate(predictions, split, repeats=repeats, seed=seed)
    write_predictions(directory / "predictions.tsv", predictions)
    if embeddings is not None:
        write_embeddings(directory / "embeddings.npz", predictions.ids, predictions.speakers, embeddings)
    if isinstance(predictions, ClassPredictions):
        write_thresholds(directory / "thresholds.tsv", predictions)
    draw(directory / "figures", predictions, scores, split, embeddings, seed)
    write_json(directory / "metrics.json", scores)
    return scores


def draw(directory, predictions, scores, split=None, embeddings=None, seed=1):
    """Draw every figure that the predictions allow, in place of the `*.png` that are there; returns the paths.

    Args:
        directory: output folder, made if needed.
        predictions, split, embeddings: as `save`.
        scores: of `evaluate`.
        seed: of t-SNE and of the choice of utterances where a map would hold too many.
    """
    directory = make_folder(directory)
    for path in directory.glob("*.png"):
        path.unlink()
    if isinstance(predictions, ClassPredictions):
        paths = _draw_classes(directory, predictions, scores)
    else:
        paths = _draw_dimensions(directory, predictions, scores)
    if embeddings is not None and len(predictions) > 2:
        paths += _draw_maps(directory, predictions, split, np.asarray(embeddings, dtype=np.float64), seed)
    return paths


def sweeps(predictions):
    """Class → `metrics.threshold_sweep` over the utterances with a reference; {} when none has one."""
    scored = np.flatnonzero(predictions.scored)
    emotions = np.array(predictions.emotions, dtype=object)[scored]
    return {
        name: metrics.threshold_sweep(emotions == name, predictions.probabilities[scored, column])
        for column, name in enumerate(predictions.classes)
        if len(scored)
    }


def write_thresholds(path, predictions):
    """Write the decision-threshold sweep of every class: `class threshold accuracy precision recall F1 FP FN TP`."""
    names = ("threshold", "accuracy", "precision", "recall", "F1", "FP", "FN", "TP")
    with atomic(path) as f:
        f.write("\t".join(("class", *names)) + "\n")
        for name, sweep in sweeps(predictions).items():
            f.writelines(
                "\t".join([name, *(f"{value:.6g}" for value in row)]) + "\n" for row in zip(*(sweep[n] for n in names), strict=True)
            )


class _Classes:
    """Scores of classes for any group of utterances."""

    score = staticmethod(metrics.confusion_scores)

    def __init__(self, predictions, bins=15):
        self.predictions, self.bins = predictions, bins
        self.has_reference = predictions.scored
        index = {name: i for i, name in enumerate(predictions.classes)}
        unknown = sorted({*predictions.emotions, *predictions.predicted} - {*index, NO_EMOTION})
        if unknown:
            raise InputError(
                f"the references hold classes the model does not know: {' '.join(unknown)}; map them, or set them to “{NO_EMOTION}”"
            )
        self.reference = np.array([index.get(name, -1) for name in predictions.emotions])
        self.predicted = np.array([index[name] for name in predictions.predicted])

    def confusion(self, members):
        members = members[self.has_reference[members]]
        counts = np.zeros((len(self.predictions.classes),) * 2, dtype=np.int64)
        np.add.at(counts, (self.reference[members], self.predicted[members]), 1)
        return counts

    def parts(self, groups):
        return np.stack([self.confusion(members) for members in groups])

    def scores(self, members):
        confusion = self.confusion(members)
        return {"n": int(confusion.sum()), **_floats(metrics.confusion_scores(confusion))}

    def overall(self, per_speaker):
        everyone = np.arange(len(self.predictions))
        confusion = self.confusion(everyone)
        classes, scored = self.predictions.classes, self.has_reference
        table = zip(
            classes, confusion, metrics.recalls(confusion), metrics.precisions(confusion), metrics.f1_scores(confusion), strict=True
        )
        return {
            **self.scores(everyone),
            "classes": list(classes),
            "confusion": confusion.tolist(),
            "per_class": {
                name: {
                    "n": int(row.sum()),
                    "predicted": int(confusion[:, i].sum()),
                    "recall": float(r),
                    "precision": float(p),
                    "f1": float(f),
                }
                for i, (name, row, r, p, f) in enumerate(table)
            },
            "ece": metrics.expected_calibration_error(
                self.predictions.confidence[scored], (self.reference == self.predicted)[scored], self.bins
            ),
        }

    def over_speakers(self, per_speaker):
        return {"n": len(per_speaker), **{name: _spread(s[name] for s in per_speaker.values()) for name in ("UA", "WA", "macro_f1")}}

    def intervals(self, groups, chance):
        return metrics.confidence_intervals(self.parts(groups), self.score, **chance) if groups else {}

    def difference(self, groups):
        (first, a), (second, b) = _two_scored(groups)
        return {"first": first, "second": second, **{name: a[name] - b[name] for name in ("UA", "WA", "macro_f1")}}


class _Dimensions:
    """Scores of dimensions for any group of utterances."""

    score = staticmethod(metrics.moment_scores)

    def __init__(self, predictions, dims=None):
        self.predictions = predictions
        self.columns = {name: i for i, name in enumerate(predictions.dims) if dims is None or name in dims}
        self.has_reference = predictions.scored[:, list(self.columns.values())].any(1)

    def pair(self, name, members):
        """References and predictions of a dimension, where there is a reference."""
        column = self.columns[name]
        members = members[self.predictions.scored[members, column]]
        return self.predictions.references[members, column], self.predictions.predicted[members, column]

    def parts(self, groups, name=None):
        """Per-speaker moments of a dimension (of the only one, by default), around its mean reference."""
        name = next(iter(self.columns)) if name is None else name
        reference, _ = self.pair(name, np.arange(len(self.predictions)))
        origin = reference.mean() if len(reference) else 0.0
        return np.stack([metrics.moments(*self.pair(name, members), origin) for members in groups])

    def scores(self, members):
        dims = {}
        for name in self.columns:
            pair = self.pair(name, members)
            dims[name] = {"n": len(pair[0]), **{s: getattr(metrics, s)(*pair) for s in (*DIMENSION_SCORES, "bias")}}
        return {"n": int(self.has_reference[members].sum()), "dims": dims}

    def overall(self, per_speaker):
        scores = self.scores(np.arange(len(self.predictions)))
        for name, values in scores["dims"].items():
            spread = _spread(s["dims"][name]["ccc"] for s in per_speaker.values())
            values |= {"speaker_ccc_mean": spread["mean"], "speaker_ccc_std": spread["std"], "speakers_with_ccc": spread["n"]}
        return scores

    def over_speakers(self, per_speaker):
        spread = {
            name: {score: _spread(s["dims"][name][score] for s in per_speaker.values()) for score in (*DIMENSION_SCORES, "bias")}
            for name in self.columns
        }
        return {"n": len(per_speaker), "dims": spread}

    def intervals(self, groups, chance):
        if not groups:
            return {}
        return {"dims": {name: metrics.confidence_intervals(self.parts(groups, name), self.score, **chance) for name in self.columns}}

    def difference(self, groups):
        (first, a), (second, b) = _two_scored(groups)
        dims = {n: {s: a["dims"][n][s] - b["dims"][n][s] for s in (*DIMENSION_SCORES, "bias")} for n in self.columns}
        return {"first": first, "second": second, "dims": dims}


def _group(predictions, scorer, members):
    """Scores of the utterances with one metadata value, and how many speakers stand behind them."""
    scores = scorer.scores(members)
    speakers = len({predictions.speakers[i] for i in members if scorer.has_reference[i]})
    return {"n": scores.pop("n"), "speakers": speakers, **scores}


def _floats(scores):
    return {name: float(value) for name, value in scores.items()}


def _spread(values):
    return dict(zip(("mean", "std", "n"), metrics.mean_std(values), strict=True))


def _groups(values):
    """Value → indices (int array) of the utterances that have it, values sorted naturally."""
    members = {}
    for index, value in enumerate(values):
        members.setdefault(value, []).append(index)
    return {value: np.array(members[value]) for value in sorted(members, key=_natural)}


def _natural(value):
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, 0.0, value)


def _rows_in_split(predictions, split):
    if split is None or split.ids == predictions.ids:
        return np.arange(len(predictions))
    twice = [name for name, count in Counter(split.ids).items() if count > 1]
    if twice:
        raise InputError(f"{split.tsv}: the id “{twice[0]}” is listed twice; make the manifest again")
    place = {name: i for i, name in enumerate(split.ids)}
    missing = [name for name in predictions.ids if name not in place]
    if missing:
        raise InputError(f"{split.tsv}: lacks {len(missing)} predicted utterances, “{missing[0]}” first; give the split they were made on")
    return np.array([place[name] for name in predictions.ids])


def _columns(split, rows):
    """Metadata column → value → members, of the columns with few values, and the names of the others."""
    columns, left_out = {}, []
    for column, texts in ((split.meta if split is not None else None) or {}).items():
        if column == "id":
            continue
        values = [texts[row].strip() or NO_VALUE for row in rows]
        if len(set(values)) <= MOST_VALUES:
            columns[column] = _groups(values)
        else:
            left_out.append(column)
        if column == "age" and any(_age_band(v) != NO_VALUE for v in values):
            columns["age_band"] = _groups([_age_band(v) for v in values])
    return columns, left_out


def _age_band(text):
    try:
        age = float(text)
    except ValueError:
        return NO_VALUE
    if not math.isfinite(age) or age < 0:
        return NO_VALUE
    return f"{int(age // 10) * 10}-{int(age // 10) * 10 + 9}"


def _two_scored(groups):
    """The two groups with references, of a column that has exactly two known values; otherwise None."""
    scored = [(value, scores) for value, scores in groups.items() if value != NO_VALUE and scores["n"]]
    return scored if len(scored) == 2 else None


def _check_comparable(this, that):
    if isinstance(this, ClassPredictions):
        if set(this.classes) != set(that.classes):
            raise InputError(f"--compare: the classes differ ({' '.join(this.classes)}; {' '.join(that.classes)}); compare equal classes")
        that.probabilities = that.probabilities[:, [that.classes.index(name) for name in this.classes]]
        that.classes = this.classes
        differ = [i for i, pair in enumerate(zip(this.emotions, that.emotions, strict=True)) if pair[0] != pair[1]]
    else:
        if this.dims != that.dims:
            raise InputError(f"--compare: the dimensions differ ({' '.join(this.dims)}; {' '.join(that.dims)}); compare equal dimensions")
        differ = np.flatnonzero(~np.isclose(this.references, that.references, rtol=1e-6, atol=1e-9, equal_nan=True).all(1))
    if len(differ):
        raise InputError(f"--compare: the reference of “{this.ids[differ[0]]}” differs between the two; evaluate both on the same manifest")
    if this.speakers != that.speakers:
        first = next(i for i, pair in enumerate(zip(this.speakers, that.speakers, strict=True)) if pair[0] != pair[1])
        raise InputError(f"--compare: the speaker of “{this.ids[first]}” differs between the two; evaluate both on the same manifest")


def _draw_classes(directory, predictions, scores):
    scored = np.flatnonzero(predictions.scored)
    if not len(scored):
        return []
    taken = predictions.take(scored)
    correct = [e == p for e, p in zip(taken.emotions, taken.predicted, strict=True)]
    paths = [
        figures.confusion(directory / "confusion.png", scores["confusion"], scores["classes"]),
        figures.reliability(directory / "reliability.png", metrics.reliability(taken.confidence, correct, bins=10), scores["ece"]),
        _draw_speakers(directory, {name: s["UA"] for name, s in scores["per_speaker"].items()}, scores["UA"], "UA"),
    ]
    for number, (name, sweep) in enumerate(sweeps(predictions).items(), 1):
        paths.append(figures.thresholds(directory / f"threshold_{number:02d}_{_safe(name)}.png", sweep, name))
    return paths


def _draw_dimensions(directory, predictions, scores):
    paths = []
    for column, name in enumerate(predictions.dims):
        scored = np.flatnonzero(predictions.scored[:, column])
        if not len(scored):
            continue
        reference, predicted = predictions.references[scored, column], predictions.predicted[scored, column]
        values = scores["dims"][name]
        paths.append(figures.scatter(directory / f"scatter_{_safe(name)}.png", reference, predicted, name, values["ccc"], values["rmse"]))
        speakers = {speaker: s["dims"][name]["ccc"] for speaker, s in scores["per_speaker"].items()}
        paths.append(_draw_speakers(directory, speakers, values["ccc"], "CCC", name))
    return paths


def _draw_speakers(directory, values, overall, label, dimension=None):
    name = "speakers" if dimension is None else f"speakers_{_safe(dimension)}"
    return figures.bars(directory / f"{name}.png", values, overall, label if dimension is None else f"{label} of {dimension}")


def _draw_maps(directory, predictions, split, embeddings, seed):
    rows = _rows_in_split(predictions, split)
    meta = (split.meta if split is not None else None) or {}
    columns = {"speaker": predictions.speakers}
    if isinstance(predictions, ClassPredictions):
        columns = {"emotion": predictions.emotions, **columns}
    else:
        emotions = split.emotions if split is not None else None
        columns = {**({"emotion": [emotions[r] for r in rows]} if emotions else {}), **columns}
        columns |= {name: predictions.references[:, i] for i, name in enumerate(predictions.dims)}
    columns |= {name: [meta[name][r] or NO_VALUE for r in rows] for name in ("sex", "gender") if name in meta}
    paths = []
    for method in ("pca", "tsne"):
        places, chosen, axes = figures.project(embeddings, method, seed)
        for name, values in columns.items():
            coloured = values[chosen] if isinstance(values, np.ndarray) else [values[i] for i in chosen]
            path = directory / f"embeddings_{method}_{_safe(name)}.png"
            paths.append(figures.embedding_map(path, places, coloured, name, axes, of=len(predictions)))
    return paths


def _safe(name):
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60]
