"""Predictions of a split and their files: `predictions.tsv`, `embeddings.npz` and `attention.npz`.

Classification, one line per utterance: `id speaker emo emo_pred p_CLASS…`, with another name than `emo` for what else has classes, such as
`sex`. Regression: `id speaker`, then `NAME NAME_pred` for every dimension. A reference that does not exist is `-` (class) or `nan`
(dimension): such an utterance is predicted, not scored.
"""

import csv
import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError
from ..core.files import atomic
from ..corpus.manifest import NO_EMOTION, read_table
from ..data.speaker_vectors import read_arrays
from . import metrics

logger = logging.getLogger(__name__)

PREFIX, SUFFIX = "p_", "_pred"
NO_VALUE = "-"
"""The group of the utterances whose metadata column is empty."""


@dataclass
class ClassPredictions:
    """Predicted classes: `emotions` are references or "-", `predicted` decisions, `probabilities` float64 (n, classes)."""

    ids: list
    speakers: list
    emotions: list
    predicted: list
    classes: list
    probabilities: np.ndarray
    name: str = "emo"  # or the column of .meta.tsv whose values are the classes

    def __len__(self):
        return len(self.ids)

    @property
    def scored(self):
        """Bool (n): has a reference."""
        return np.array([e != NO_EMOTION for e in self.emotions], dtype=bool)

    @property
    def confidence(self):
        """Float64 (n): the probability of the decided class."""
        return self.probabilities[np.arange(len(self)), self.indices(self.predicted)]

    def indices(self, names):
        """Int64 (n): the place of each name, such as of `emotions`, among the classes; -1 of “-”. InputError: it is none of them."""
        index = {NO_EMOTION: -1, **{name: i for i, name in enumerate(self.classes)}}
        if unknown := sorted({*names} - index.keys()):
            raise InputError(f"no class of the model, but a reference: {' '.join(unknown)}; map them, or set them to “{NO_EMOTION}”")
        return np.array([index[name] for name in names], dtype=np.int64)

    @property
    def columns(self):
        """Column of `predictions.tsv` → values."""
        probabilities = {PREFIX + name: self.probabilities[:, i] for i, name in enumerate(self.classes)}
        decisions = {self.name: self.emotions, self.name + SUFFIX: self.predicted}
        return {"id": self.ids, "speaker": self.speakers, **decisions, **probabilities}


@dataclass
class DimensionPredictions:
    """Predicted dimensions: `references`, NaN where there is none, and `predicted` are float64 (n, dims)."""

    ids: list
    speakers: list
    dims: list
    references: np.ndarray
    predicted: np.ndarray

    def __len__(self):
        return len(self.ids)

    @property
    def scored(self):
        """Bool (n, dims): has a reference."""
        return ~np.isnan(self.references)

    @property
    def columns(self):
        """Column of `predictions.tsv` → values."""
        columns = {"id": self.ids, "speaker": self.speakers}
        for i, name in enumerate(self.dims):
            columns |= {name: self.references[:, i], name + SUFFIX: self.predicted[:, i]}
        return columns


def from_probabilities(ids, speakers, emotions, classes, probabilities, name="emo"):
    """ClassPredictions that decide for the most probable class (the first of equals)."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    predicted = [classes[i] for i in probabilities.argmax(1)]
    return ClassPredictions(*map(list, (ids, speakers, emotions, predicted, classes)), probabilities, name)


def known_references(emotions, classes, where):
    """References that can be scored: those that are no class of the model become "-", counted in the log for the file `where`."""
    if unknown := Counter(e for e in emotions if e not in classes and e != NO_EMOTION):
        names = ", ".join(f"{name} {n}" for name, n in unknown.most_common(5))
        logger.warning("%s: %d references are no class of the model and are not scored (%s)", where, unknown.total(), names)
    return [e if e in classes else NO_EMOTION for e in emotions]


def risk_coverage(predictions):
    """`metrics.risk_coverage` over the utterances with a reference."""
    rows = predictions.scored
    reference, predicted = (predictions.indices(names)[rows] for names in (predictions.emotions, predictions.predicted))
    return metrics.risk_coverage(predictions.confidence[rows], reference, predicted, len(predictions.classes))


def rows_in_split(predictions, split):
    """Where in the split each predicted utterance is, (n,); InputError for one that is not there, or more than once."""
    if split is None or split.ids == predictions.ids:
        return np.arange(len(predictions))
    import pandas as pd

    index = pd.Index(split.ids)
    if index.has_duplicates:
        raise InputError(f"{split.tsv}: the id “{index[index.duplicated()][0]}” is listed twice; make the manifest again")
    rows = index.get_indexer(predictions.ids)
    if missing := [name for name, row in zip(predictions.ids, rows, strict=True) if row < 0]:
        raise InputError(f"{split.tsv}: lacks {len(missing)} predicted utterances, “{missing[0]}” first; give the split they were made on")
    return rows


def write_table(path, columns, digits, undefined="nan"):
    """Write {column: values} as TSV, atomically; numbers have so many significant digits. A tab or line break is an InputError."""
    import pandas as pd

    table = pd.DataFrame(columns)
    for name in table.select_dtypes("str"):
        if (wrong := table[name].str.contains(r"[\t\r\n]")).any():
            text = table[name][wrong].iloc[0]
            raise InputError(f"{path}: the id, speaker or class {text!r} holds a tab or line break; rename it in the manifest")
    options = {"float_format": f"%.{digits}g", "na_rep": undefined, "quoting": csv.QUOTE_NONE, "lineterminator": "\n"}
    with atomic(path) as f:
        table.to_csv(f, sep="\t", index=False, **options)


def write_predictions(path, predictions):
    """Write `predictions.tsv`."""
    write_table(path, predictions.columns, digits=12)


def read_predictions(path):
    """ClassPredictions or DimensionPredictions from a `predictions.tsv`; InputError names the line and what was expected."""
    table = read_table(path)
    header = list(table)
    if header[:2] != ["id", "speaker"] or len(header) < 4:
        expected = "expected `id speaker emo emo_pred p_CLASS…` or `id speaker NAME NAME_pred …`, as tools/evaluate.py writes it"
        raise InputError(f"{path}:1: the header {' '.join(header)[:120]} is not that of predictions; {expected}")
    if not table["id"]:
        raise InputError(f"{path}: lists no utterance; run tools/evaluate.py again")
    if twice := [name for name, count in Counter(table["id"]).items() if count > 1]:
        line = len(table["id"]) + 1 - table["id"][::-1].index(twice[0])
        raise InputError(f"{path}:{line}: the utterance “{twice[0]}” is listed twice; remove one line")
    classes = header[2:4] == ["emo", "emo_pred"] or header[4:] and all(c.startswith(PREFIX) and not c.endswith(SUFFIX) for c in header[4:])
    return _read_classes(path, table) if classes else _read_dimensions(path, table)


def _read_classes(path, table):
    _, _, name, decision, *columns = table
    if len(columns) < 2 or not all(c.startswith(PREFIX) and len(c) > len(PREFIX) for c in columns):
        expected = f"expected a column p_CLASS for each of two or more classes after {decision}"
        raise InputError(f"{path}:1: {expected}, found {columns}; correct it")
    classes = [c[len(PREFIX) :] for c in columns]
    probabilities = _numbers(path, table, columns)
    for line, (row, decided) in enumerate(zip(probabilities, table[decision], strict=True), 2):
        if not ((row >= 0).all() and abs(row.sum() - 1) <= 0.01):  # NaN fails the first
            raise InputError(f"{path}:{line}: the probabilities {row.round(4).tolist()} do not sum to 1; write them again")
        if decided not in classes:
            raise InputError(f"{path}:{line}: {decision} is “{decided}”, which is not among the classes {' '.join(classes)}; correct it")
    emotions = known_references(table[name], classes, path)
    return ClassPredictions(table["id"], table["speaker"], emotions, table[decision], classes, probabilities, name)


def _read_dimensions(path, table):
    columns = list(table)[2:]
    dims = columns[::2]
    if columns[1::2] != [name + SUFFIX for name in dims]:
        raise InputError(f"{path}:1: expected columns in pairs NAME NAME_pred after speaker, found {' '.join(columns)[:120]}; correct it")
    numbers = _numbers(path, table, columns)
    wrong = ~np.isfinite(numbers)
    wrong[:, ::2] &= ~np.isnan(numbers[:, ::2])  # a reference may be missing
    for row, column in np.argwhere(wrong)[:1]:
        raise InputError(f"{path}:{row + 2}: {columns[column]} is {numbers[row, column]}, not a finite number; correct it")
    return DimensionPredictions(table["id"], table["speaker"], dims, numbers[:, ::2], numbers[:, 1::2])


def _numbers(path, table, columns):
    """(n, columns) float64."""
    numbers = np.empty((len(table["id"]), len(columns)))
    for column, name in enumerate(columns):
        for row, text in enumerate(table[name]):
            try:
                numbers[row, column] = float(text)
            except ValueError:
                raise InputError(f"{path}:{row + 2}: {name} is “{text[:40]}”, not a number; correct it") from None
    return numbers


@dataclass
class Embeddings:
    """Utterance embeddings: `ids` and `speakers`, lists of str, and `values`, float32 (n, d)."""

    ids: list
    speakers: list
    values: np.ndarray


def write_embeddings(path, ids, speakers, values):
    """Write `embeddings.npz` atomically: `ids`, `speakers` (unicode arrays) and `embeddings` (float32, n × d)."""
    with atomic(path, "wb") as f:
        np.savez(f, ids=np.array(ids, dtype=np.str_), speakers=np.array(speakers, dtype=np.str_), embeddings=np.asarray(values, np.float32))


def read_embeddings(path):
    """Embeddings from an `embeddings.npz`; nothing in it can run. InputError for another file, and for values that are not finite."""
    arrays = read_arrays(path, ("ids", "speakers", "embeddings"), "embeddings of tools/evaluate.py --embeddings")
    ids, speakers, values = arrays.values()
    if values.ndim != 2 or values.dtype.kind != "f" or ids.shape != (len(values),) or speakers.shape != ids.shape or ids.dtype.kind != "U":
        what = f"embeddings {values.shape} {values.dtype} with ids {ids.shape} {ids.dtype} and speakers {speakers.shape}"
        raise InputError(f"{path}: {what}; expected n × d floats with n names each; make it again with tools/evaluate.py --embeddings")
    for row in np.flatnonzero(~np.isfinite(values).all(1))[:1]:
        raise InputError(f"{path}: the embedding of “{ids[row]}” is not finite; evaluate a checkpoint that did not diverge")
    return Embeddings(ids.tolist(), speakers.astype(np.str_).tolist(), values.astype(np.float32))


def write_attention(path, weights):
    """Write `attention.npz` atomically from {id: weights of its frames}: `ids`, `frames` (n), `weights` (float32, one after the other)."""
    lengths = [len(w) for w in weights.values()]
    with atomic(path, "wb") as f:
        np.savez(f, ids=np.array(list(weights), dtype=np.str_), frames=lengths, weights=np.concatenate(list(weights.values())))


def read_attention(path):
    """{id: weights of its frames} from an `attention.npz`."""
    ids, frames, weights = read_arrays(path, ("ids", "frames", "weights"), "weights of tools/evaluate.py").values()
    if ids.shape != frames.shape or weights.shape != (frames.sum(),):
        raise InputError(f"{path}: {weights.size} weights for {frames.sum()} frames of {ids.size} utterances; run tools/evaluate.py again")
    return dict(zip(ids.tolist(), np.split(weights, frames.cumsum()[:-1]), strict=True))
