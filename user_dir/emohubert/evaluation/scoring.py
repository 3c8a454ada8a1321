"""Scores of predictions, as `metrics.json` holds them, and paired tests.

Everything is computed over whole sets. Utterances without a reference are counted and left out of every score.
"""

from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import make_folder, sha256, write_json
from ..corpus.manifest import NO_EMOTION, UNKNOWN_SPEAKER
from . import metrics
from .predictions import NO_VALUE, ClassPredictions, risk_coverage, rows_in_split, write_embeddings, write_predictions, write_table

NOBODY = {UNKNOWN_SPEAKER, NO_EMOTION}
"""Speakers who are none: utterances of unknown speakers count in overall scores and in groups, and for no speaker."""
MOST_VALUES = 30
"""A metadata column with more values than this is named in `columns_left_out` instead of being broken down."""


def inputs(checkpoint, split, **files):
    """What an evaluation is made from, for a `files.Stamp`: SHA-256s of a checkpoint, a Split's files, and other files."""
    paths = {"checkpoint": checkpoint, **{name: path for name, path in files.items() if path}}
    for path in paths.values():
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; correct the path")
    return {"manifest": [*map(sha256, split.files)], **{name: sha256(path) for name, path in paths.items()}}


def evaluate(predictions, split=None, repeats=2000, seed=1):
    """Every score of a set of predictions, as `metrics.json` holds them, where NaN (not defined) becomes null.

    `split` is the manifest split they were made on, for its metadata columns; `repeats` and `seed` are of the bootstrap over speakers.

    Returns, for both kinds: `n` (utterances with a reference), `without_reference`, `speakers` (number, and mean ± standard deviation
    over speakers), `ci` (bootstrap), `by` (metadata column → value → scores), `difference` (columns with exactly two values, such as sex:
    first minus second), `columns_left_out`, `per_speaker`; for classes `UA`, `WA`, `macro_f1`, `classes`, `confusion` (rows: references),
    `ece`, `aurc`, and where the split has `.votes`, `votes`: the means of `metrics.divergences` from the annotators' shares; for dimensions `dims`
    (name → ccc, pearson, rmse, bias = mean of prediction − reference, `speaker_ccc_mean`, `speaker_ccc_std`).
    InputError: an utterance is not in the split, or no utterance at all was predicted.
    """
    if not len(predictions):
        raise InputError("there are no predictions to evaluate; choose a split with utterances")
    measures = _measures(predictions)
    has_reference = np.logical_or.reduce([m.has_reference for m in measures])

    def scores(rows, **more):
        return {"n": int(has_reference[rows].sum()), **more, **_nested(measures, lambda m: m.scores(rows))}

    def group(rows):
        return scores(rows, speakers=len({predictions.speakers[i] for i in rows[has_reference[rows]]} - NOBODY))

    def intervals(measure):
        return metrics.confidence_intervals([measure.parts(rows) for rows in speakers.values()], measure.score, repeats, seed)

    speakers = {name: rows for name, rows in _speakers(predictions).items() if has_reference[rows].any()}
    per_speaker = {name: scores(rows) for name, rows in speakers.items()}
    overall = scores(np.arange(len(predictions)))
    drawn = {"level": metrics.LEVEL, "repeats": repeats, "seed": seed, "resampled": "speakers"}
    spread = _zipped(lambda s: dict(zip(("mean", "std", "n"), metrics.mean_std(s[1:]), strict=True)), overall, *per_speaker.values())
    columns, left_out = _columns(split, predictions)
    by = {column: {value: group(rows) for value, rows in groups.items()} for column, groups in columns.items()}
    return {
        **_overall(measures, overall, spread),
        **({"aurc": risk_coverage(predictions)["aurc"]} if isinstance(predictions, ClassPredictions) else {}),
        **_from_votes(predictions, split, repeats, seed),
        "without_reference": int((~has_reference).sum()),
        "speakers": {"n": len(per_speaker), **spread},
        "ci": {**drawn, **(_nested(measures, intervals) if speakers else {})},
        "by": by,
        "difference": {column: found for column, groups in by.items() if (found := _difference(groups))},
        "columns_left_out": left_out,
        "per_speaker": per_speaker,
    }


def paired_tests(predictions, other, repeats=2000, seed=1):
    """`metrics.paired_comparison` of two systems on the same utterances, by speakers: score → its result; scores of dimensions are named
    `ccc_NAME`. {} where no known speaker has a reference."""
    groups, tests = _speakers(predictions).values(), {}
    for a, b in zip(_measures(predictions), _measures(other), strict=True):
        if scored := [rows for rows in groups if a.has_reference[rows].any()]:
            result = metrics.paired_comparison(*([m.parts(rows) for rows in scored] for m in (a, b)), a.score, repeats, seed)
            tests |= {name if a.name is None else f"{name}_{a.name}": values for name, values in result.items()}
    return tests


def save(directory, predictions, split=None, embeddings=None, repeats=2000, seed=1):
    """`evaluate`, and write everything `tools/evaluate.py` promises; returns the metrics. `embeddings`: float (n, d), or None.
    `metrics.json` comes last, so that it vouches for the rest. Figures of an earlier run in the same folder are removed."""
    from .figures import draw  # slow to import

    directory = make_folder(directory)
    (directory / "metrics.json").unlink(missing_ok=True)
    scores = evaluate(predictions, split, repeats, seed)
    write_predictions(directory / "predictions.tsv", predictions)
    if embeddings is not None:
        write_embeddings(directory / "embeddings.npz", predictions.ids, predictions.speakers, embeddings)
    if isinstance(predictions, ClassPredictions):
        write_thresholds(directory / "thresholds.tsv", predictions)
    draw(directory / "figures", predictions, scores, split, embeddings)
    write_json(directory / "metrics.json", scores)
    return scores


def write_thresholds(path, predictions):
    """Write the decision-threshold sweep of every class: `class threshold accuracy precision recall F1 FP FN TP`."""
    import pandas as pd

    scored = predictions.scored
    emotions, probabilities = np.array(predictions.emotions, dtype=object)[scored], predictions.probabilities[scored]
    sweeps = (metrics.threshold_sweep(emotions == name, p) for name, p in zip(predictions.classes, probabilities.T, strict=True))
    tables = dict(zip(predictions.classes, map(pd.DataFrame, sweeps), strict=True))
    write_table(path, pd.concat(tables, names=["class"]).reset_index("class"), digits=6)


class _Classes:
    """Scores of classes, of any rows (utterances)."""

    name, score = None, staticmethod(metrics.confusion_scores)

    def __init__(self, predictions):
        self.classes, self.confidence = list(predictions.classes), predictions.confidence
        self.reference, self.predicted = (predictions.indices(names) for names in (predictions.emotions, predictions.predicted))
        self.has_reference = self.reference >= 0

    def parts(self, rows):
        """Their confusion matrix; those of disjoint rows add up."""
        rows = rows[self.has_reference[rows]]
        return metrics.confusion_matrix(self.reference[rows], self.predicted[rows], len(self.classes))

    def scores(self, rows):
        return {name: float(value) for name, value in self.score(self.parts(rows)).items()}


class _Dimension:
    """Scores of a dimension, of any rows (utterances)."""

    score = staticmethod(metrics.moment_scores)

    def __init__(self, predictions, column):
        self.name, self.has_reference = predictions.dims[column], predictions.scored[:, column]
        self.reference, self.predicted = predictions.references[:, column], predictions.predicted[:, column]
        self.origin = self.reference[self.has_reference].mean() if self.has_reference.any() else 0.0

    def _pair(self, rows):
        rows = rows[self.has_reference[rows]]
        return self.reference[rows], self.predicted[rows]

    def parts(self, rows):
        """Their moments; those of disjoint rows add up."""
        return metrics.moments(*self._pair(rows), self.origin)

    def scores(self, rows):
        pair = self._pair(rows)
        return {"n": len(pair[0]), **{f.__name__: f(*pair) for f in (metrics.ccc, metrics.pearson, metrics.rmse, metrics.bias)}}


def _measures(predictions):
    if isinstance(predictions, ClassPredictions):
        return [_Classes(predictions)]
    return [_Dimension(predictions, column) for column in range(len(predictions.dims))]


def _nested(measures, of):
    """`of` of each measure, as metrics.json nests it: that of classes as it is, those of dimensions by name under `dims`."""
    found = {measure.name: of(measure) for measure in measures}
    return found.get(None, {"dims": found})


def _overall(measures, scores, spread):
    """The scores of all utterances, with what only they have."""
    if "dims" not in scores:
        (measure,) = measures
        confusion, scored = measure.parts(np.arange(len(measure.reference))).tolist(), measure.has_reference
        ece = metrics.expected_calibration_error(measure.confidence[scored], (measure.reference == measure.predicted)[scored])
        return {**scores, "classes": measure.classes, "confusion": confusion, "ece": ece}
    for name, values in scores["dims"].items():
        over = spread["dims"][name]["ccc"]
        values |= {"speaker_ccc_mean": over["mean"], "speaker_ccc_std": over["std"], "speakers_with_ccc": over["n"]}
    return scores


def _from_votes(predictions, split, repeats, seed):
    """{"votes": {"n", "kl", "js", "tv", "ci"}}: means over the utterances with votes, and their intervals over speakers; {} without votes."""
    if split is None or split.votes is None or getattr(predictions, "name", None) != "emo":
        return {}
    shares = split.shares(predictions.classes)[rows_in_split(predictions, split)]
    voted = shares.any(axis=1)
    if not voted.any():
        return {}
    distances = metrics.divergences(shares, predictions.probabilities)
    sums = np.stack([np.ones(len(voted)), *distances.values()], axis=1) * voted[:, None]  # (utterances, 1 + distances)

    def means(sums):
        return {name: sums[..., i] / sums[..., 0] for i, name in enumerate(distances, 1)}

    own = [sums[rows].sum(axis=0) for rows in _speakers(predictions).values() if voted[rows].any()]
    intervals = metrics.confidence_intervals(own, means, repeats, seed) if own else {}
    return {"votes": {"n": int(voted.sum()), **{name: float(x) for name, x in means(sums.sum(axis=0)).items()}, "ci": intervals}}


def _zipped(of, *groups):
    """`of` the values of each score in all groups of scores, nested as they are; counts are left out."""
    return {
        name: _zipped(of, *(g[name] for g in groups)) if isinstance(score, dict) else of([g[name] for g in groups])
        for name, score in groups[0].items()
        if name not in ("n", "speakers")
    }


def _difference(groups):
    """First minus second, of a column in which exactly two known values have references; otherwise {}."""
    scored = [(value, scores) for value, scores in groups.items() if value != NO_VALUE and scores["n"]]
    if len(scored) != 2:
        return {}
    (first, a), (second, b) = scored
    return {"first": first, "second": second, **_zipped(lambda pair: pair[0] - pair[1], a, b)}


def _speakers(predictions):
    """Speaker → rows; those whose speaker is not known are nobody's."""
    return {name: rows for name, rows in _groups(predictions.speakers).items() if name not in NOBODY}


def _groups(values):
    """Value → rows that have it; numbers first, in their order, then texts."""
    import pandas as pd

    rows = pd.Series(values, dtype=object).groupby(values).indices
    numbers = pd.to_numeric(pd.Series(list(rows)), errors="coerce").fillna(np.inf)
    return {value: rows[value] for _, value in sorted(zip(numbers, rows, strict=True))}


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
    return columns, left_out
