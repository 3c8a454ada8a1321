"""Scores of predictions, as `metrics.json` holds them, and paired tests of two systems.

Everything is computed over whole sets. Utterances without a reference are counted and left out of every score.
"""

from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import make_folder, sha256, write_json
from ..corpus.manifest import NO_EMOTION
from . import metrics
from .predictions import NO_VALUE, ClassPredictions, rows_in_split, sweeps, write_embeddings, write_predictions, write_table

MOST_VALUES = 30
"""A metadata column with more values than this is named in `columns_left_out` instead of being broken down."""


def inputs(checkpoint, directory, split, **files):
    """What an evaluation is made from, for a `files.Stamp`: SHA-256s of a checkpoint, a split's manifest and sidecars, and other files."""

    def digest(path):
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; correct the path")
        return sha256(path)

    manifest = [sha256(p) for p in sorted(Path(directory).glob(f"{split}.*"))]
    return {"checkpoint": digest(checkpoint), "manifest": manifest, **{name: digest(path) for name, path in files.items() if path}}


def evaluate(predictions, split=None, repeats=2000, seed=1):
    """Every score of a set of predictions, as `metrics.json` holds them.

    Args:
        predictions: ClassPredictions or DimensionPredictions, with references.
        split: the manifest split they were made on, for its metadata columns; without one, `by` is empty.
        repeats, seed: of the bootstrap over speakers.

    Returns:
        A dict for JSON. Both kinds: `n` (utterances with a reference), `without_reference`, `speakers` (number, and mean ±
        standard deviation over speakers), `ci` (intervals by bootstrap over speakers), `by` (metadata column → value →
        scores), `difference` (columns with exactly two values, such as sex: first minus second), `columns_left_out`,
        `per_speaker`. Classification: `UA`, `WA`, `macro_f1`, `classes`, `confusion` (rows: references), `ece`.
        Regression: `dims` (name → ccc, pearson, rmse, bias = mean of prediction − reference, `speaker_ccc_mean`,
        `speaker_ccc_std`). NaN marks what is not defined (a CCC of one utterance) and is null in the file.

    Raises:
        InputError: an utterance is not in the split, or no utterance at all was predicted.
    """
    if not len(predictions):
        raise InputError("there are no predictions to evaluate; choose a split with utterances")
    measures = _measures(predictions)
    has_reference = _has_reference(measures)

    def scores(rows, **more):
        return {"n": int(has_reference[rows].sum()), **more, **_nested(measures, lambda m: m.scores(rows))}

    def group(rows):
        return scores(rows, speakers=len({predictions.speakers[i] for i in rows[has_reference[rows]]}))

    def intervals(measure):
        parts = np.stack([measure.parts(rows) for rows in speakers.values()])
        return metrics.confidence_intervals(parts, measure.score, repeats, seed)

    speakers = {name: rows for name, rows in _groups(predictions.speakers).items() if has_reference[rows].any()}
    per_speaker = {name: scores(rows) for name, rows in speakers.items()}
    spread = _nested(measures, lambda m: {n: _spread(m.of(s)[n] for s in per_speaker.values()) for n in m.names})
    columns, left_out = _columns(split, predictions)
    by = {column: {value: group(rows) for value, rows in groups.items()} for column, groups in columns.items()}
    return {
        **_overall(measures, scores(np.arange(len(predictions))), spread),
        "without_reference": int((~has_reference).sum()),
        "speakers": {"n": len(per_speaker), **spread},
        "ci": {
            "level": metrics.LEVEL,
            "resampled": "speakers",
            "repeats": repeats,
            "seed": seed,
            **(_nested(measures, intervals) if speakers else {}),
        },
        "by": by,
        "difference": {column: _difference(measures, *two) for column, groups in by.items() if (two := _two_scored(groups))},
        "columns_left_out": left_out,
        "per_speaker": per_speaker,
    }


def compare(predictions, other, repeats=2000, seed=1):
    """A paired test of two systems on the utterances that both predicted and that have a reference.

    Args:
        predictions, other: two ClassPredictions, or two DimensionPredictions.

    Returns:
        {"n", "speakers", "left_out": {"only_this", "only_other", "without_reference"}, "tests": score → {"this", "other",
        "difference", "ci", "p", "speakers"}}; scores of dimensions are named `ccc_NAME`.

    Raises:
        InputError: of different kinds, no common utterance, other classes, dimensions, speakers or references.
    """
    if type(predictions) is not type(other):
        raise InputError("--compare: one file holds classes and the other dimensions; compare two of one kind")
    place = {name: i for i, name in enumerate(other.ids)}
    common = [i for i, name in enumerate(predictions.ids) if name in place]
    if not common:
        raise InputError("--compare: the two systems share no utterance; evaluate both on the same split")
    this, that = predictions.take(common), other.take([place[predictions.ids[i]] for i in common])
    _check_comparable(this, that)
    measures, other_measures = _measures(this), _measures(that)
    groups, tests = list(_groups(this.speakers).values()), {}
    for a, b in zip(measures, other_measures, strict=True):
        if scored := [rows for rows in groups if a.has_reference[rows].any()]:
            result = metrics.paired_comparison(*([m.parts(rows) for rows in scored] for m in (a, b)), a.score, repeats, seed)
            tests |= {name if a.name is None else f"{name}_{a.name}": values for name, values in result.items()}
    if not tests:
        raise InputError("--compare: no common utterance has a reference; evaluate on a split with labels")
    scored = _has_reference(measures)
    left_out = {"only_this": len(predictions) - len(common), "only_other": len(other) - len(common)}
    return {
        "n": int(scored.sum()),
        "speakers": int(sum(scored[rows].any() for rows in groups)),
        "left_out": {**left_out, "without_reference": int((~scored).sum())},
        "level": metrics.LEVEL,
        "repeats": repeats,
        "seed": seed,
        "tests": tests,
    }


def save(directory, predictions, split=None, embeddings=None, repeats=2000, seed=1):
    """Evaluate, and write everything `tools/evaluate.py` promises; returns the metrics.

    Writes `predictions.tsv`, `embeddings.npz` (with `embeddings`), `thresholds.tsv` (classification), `figures/*.png`, and
    last, so that it vouches for the rest, `metrics.json`. Figures of an earlier run in the same folder are removed.

    Args:
        directory: output folder, made if needed.
        predictions, split, repeats, seed: as `evaluate`.
        embeddings: float (n, d), a row for every prediction, or None.
    """
    from .draw import draw

    directory = make_folder(directory)
    (directory / "metrics.json").unlink(missing_ok=True)
    scores = evaluate(predictions, split, repeats, seed)
    write_predictions(directory / "predictions.tsv", predictions)
    if embeddings is not None:
        write_embeddings(directory / "embeddings.npz", predictions.ids, predictions.speakers, embeddings)
    if isinstance(predictions, ClassPredictions):
        write_thresholds(directory / "thresholds.tsv", predictions)
    draw(directory / "figures", predictions, scores, split, embeddings, seed)
    write_json(directory / "metrics.json", scores)
    return scores


def write_thresholds(path, predictions):
    """Write the decision-threshold sweep of every class: `class threshold accuracy precision recall F1 FP FN TP`."""
    found = sweeps(predictions)
    columns = {name: np.concatenate([sweep[name] for sweep in found.values()]) for name in next(iter(found.values()))}
    write_table(path, {"class": np.repeat(list(found), len(columns["threshold"]) // len(found)), **columns}, digits=6)


class _Classes:
    """Scores of classes, of any rows (utterances)."""

    name = None
    names = ("UA", "WA", "macro_f1")
    score = staticmethod(metrics.confusion_scores)

    def __init__(self, predictions):
        self.classes = list(predictions.classes)
        index = {NO_EMOTION: -1, **{name: i for i, name in enumerate(self.classes)}}
        if unknown := sorted({*predictions.emotions, *predictions.predicted} - index.keys()):
            raise InputError(
                f"the references hold classes the model does not know: {' '.join(unknown)}; map them, or set them to “{NO_EMOTION}”"
            )
        self.reference, self.predicted = (np.array([index[n] for n in v]) for v in (predictions.emotions, predictions.predicted))
        self.has_reference, self.confidence = self.reference >= 0, predictions.confidence

    def of(self, scores):
        """The part of a group's scores that is of this measure."""
        return scores

    def parts(self, rows):
        """Their confusion matrix; those of disjoint rows add up."""
        rows = rows[self.has_reference[rows]]
        counts = np.zeros((len(self.classes),) * 2, dtype=np.int64)
        np.add.at(counts, (self.reference[rows], self.predicted[rows]), 1)
        return counts

    def scores(self, rows):
        return {name: float(value) for name, value in self.score(self.parts(rows)).items()}

    def ece(self):
        scored = self.has_reference
        return metrics.expected_calibration_error(self.confidence[scored], (self.reference == self.predicted)[scored])


class _Dimension:
    """Scores of a dimension, of any rows (utterances)."""

    names = ("ccc", "pearson", "rmse", "bias")
    score = staticmethod(metrics.moment_scores)

    def __init__(self, predictions, column):
        self.name, self.has_reference = predictions.dims[column], predictions.scored[:, column]
        self.reference, self.predicted = predictions.references[:, column], predictions.predicted[:, column]
        self.origin = self.reference[self.has_reference].mean() if self.has_reference.any() else 0.0

    def of(self, scores):
        """The part of a group's scores that is of this dimension."""
        return scores["dims"][self.name]

    def _pair(self, rows):
        rows = rows[self.has_reference[rows]]
        return self.reference[rows], self.predicted[rows]

    def parts(self, rows):
        """Their moments; those of disjoint rows add up."""
        return metrics.moments(*self._pair(rows), self.origin)

    def scores(self, rows):
        pair = self._pair(rows)
        return {"n": len(pair[0]), **{name: getattr(metrics, name)(*pair) for name in self.names}}


def _measures(predictions):
    if isinstance(predictions, ClassPredictions):
        return [_Classes(predictions)]
    return [_Dimension(predictions, column) for column in range(len(predictions.dims))]


def _has_reference(measures):
    return np.logical_or.reduce([m.has_reference for m in measures])


def _nested(measures, of):
    """`of` of each measure, as metrics.json nests it: that of classes as it is, those of dimensions by name under `dims`."""
    found = {measure.name: of(measure) for measure in measures}
    return found.get(None, {"dims": found})


def _overall(measures, scores, spread):
    """The scores of all utterances, with what only they have."""
    if "dims" not in scores:
        (measure,) = measures
        confusion = measure.parts(np.arange(len(measure.reference))).tolist()
        return {**scores, "classes": measure.classes, "confusion": confusion, "ece": measure.ece()}
    for name, values in scores["dims"].items():
        over = spread["dims"][name]["ccc"]
        values |= {"speaker_ccc_mean": over["mean"], "speaker_ccc_std": over["std"], "speakers_with_ccc": over["n"]}
    return scores


def _spread(values):
    return dict(zip(("mean", "std", "n"), metrics.mean_std(values), strict=True))


def _two_scored(groups):
    """The two groups with references, of a column that has exactly two known values; otherwise None."""
    scored = [(value, scores) for value, scores in groups.items() if value != NO_VALUE and scores["n"]]
    return scored if len(scored) == 2 else None


def _difference(measures, first, second):
    (name, a), (other, b) = first, second
    return {"first": name, "second": other, **_nested(measures, lambda m: {n: m.of(a)[n] - m.of(b)[n] for n in m.names})}


def _groups(values):
    """Value → rows that have it; numbers first, in their order, then texts."""
    import pandas as pd

    def order(value):
        try:
            return (0, float(value), value)
        except ValueError:
            return (1, 0.0, value)

    rows = pd.Series(values, dtype=object).groupby(values).indices
    return {value: rows[value] for value in sorted(rows, key=order)}


def _columns(split, predictions):
    """Metadata column → value → rows, of the columns with few values, and the names of the others."""
    rows = rows_in_split(predictions, split)
    columns, left_out = {}, []
    for column, texts in ((split.meta if split is not None else None) or {}).items():
        if column == "id":
            continue
        values = [texts[row].strip() or NO_VALUE for row in rows]
        if len(set(values)) <= MOST_VALUES:
            columns[column] = _groups(values)
        else:
            left_out.append(column)
        if column == "age" and set(bands := _age_bands(values)) != {NO_VALUE}:
            columns["age_band"] = _groups(bands)
    return columns, left_out


def _age_bands(ages):
    import pandas as pd

    decades = pd.to_numeric(pd.Series(ages), errors="coerce") // 10
    return [f"{int(d) * 10}-{int(d) * 10 + 9}" if 0 <= d < 100 else NO_VALUE for d in decades]


def _check_comparable(this, that):
    """Raise InputError unless references, speakers and what is predicted are the same; brings the classes into one order."""
    if isinstance(this, ClassPredictions):
        if set(this.classes) != set(that.classes):
            raise InputError(f"--compare: the classes differ ({' '.join(this.classes)}; {' '.join(that.classes)}); compare equal classes")
        that.probabilities = that.probabilities[:, [that.classes.index(name) for name in this.classes]]
        that.classes = this.classes
        differ = np.array(this.emotions, dtype=object) != np.array(that.emotions, dtype=object)
    else:
        if this.dims != that.dims:
            raise InputError(f"--compare: the dimensions differ ({' '.join(this.dims)}; {' '.join(that.dims)}); compare equal dimensions")
        differ = ~np.isclose(this.references, that.references, rtol=1e-6, atol=1e-9, equal_nan=True).all(1)
    speakers_differ = np.array(this.speakers, dtype=object) != np.array(that.speakers, dtype=object)
    for what, rows in (("reference", differ), ("speaker", speakers_differ)):
        if rows.any():
            first = this.ids[np.flatnonzero(rows)[0]]
            raise InputError(f"--compare: the {what} of “{first}” differs between the two; evaluate both on the same manifest")
