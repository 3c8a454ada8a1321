"""The figures of an evaluation: which ones its predictions allow."""

import numpy as np

from ..core.files import make_folder
from . import figures
from .predictions import NO_VALUE, ClassPredictions, rows_in_split, sweeps


def draw(directory, predictions, scores, split=None, embeddings=None, seed=1):
    """Draw every figure that the predictions allow, in place of the `*.png` that are there. `scores` are of `scoring.evaluate`, the rest is
    as for `scoring.save`; the seed is of t-SNE and of the choice of utterances for a map."""
    directory = make_folder(directory)
    for path in directory.glob("*.png"):
        path.unlink()
    if isinstance(predictions, ClassPredictions):
        _draw_classes(directory, predictions, scores)
    else:
        _draw_dimensions(directory, predictions, scores)
    if embeddings is not None and len(predictions) > 2:
        _draw_maps(directory, predictions, split, np.asarray(embeddings, dtype=np.float64), seed)


def _draw_classes(directory, predictions, scores):
    if not scores["n"]:
        return
    figures.confusion(directory / "confusion.png", scores["confusion"], scores["classes"])
    figures.bars(directory / "speakers.png", {name: s["UA"] for name, s in scores["per_speaker"].items()}, scores["UA"], "UA")
    figures.thresholds(directory / "thresholds.png", sweeps(predictions))


def _draw_dimensions(directory, predictions, scores):
    for column, name in enumerate(predictions.dims):
        scored, values = predictions.scored[:, column], scores["dims"][name]
        if not scored.any():
            continue
        pair = predictions.references[scored, column], predictions.predicted[scored, column]
        figures.scatter(directory / f"scatter_{figures.file_name(name)}.png", *pair, name, values["ccc"], values["rmse"])
        speakers = {speaker: s["dims"][name]["ccc"] for speaker, s in scores["per_speaker"].items()}
        figures.bars(directory / f"speakers_{figures.file_name(name)}.png", speakers, values["ccc"], f"CCC of {name}")


def _draw_maps(directory, predictions, split, embeddings, seed):
    """The embeddings by emotion, speaker, dimension and sex."""
    rows = rows_in_split(predictions, split)
    meta = (split.meta if split is not None else None) or {}
    if isinstance(predictions, ClassPredictions):
        columns = {"emotion": predictions.emotions, "speaker": predictions.speakers}
    else:
        columns = {"emotion": [split.emotions[r] for r in rows]} if split is not None and split.emotions else {}
        columns |= {"speaker": predictions.speakers, **dict(zip(predictions.dims, predictions.references.T, strict=True))}
    columns |= {name: [meta[name][r] or NO_VALUE for r in rows] for name in ("sex", "gender") if name in meta}
    for method in ("pca", "tsne"):
        projected = figures.project(embeddings, method, seed)
        for name, values in columns.items():
            figures.embedding_map(directory / f"embeddings_{method}_{figures.file_name(name)}.png", projected, values, name)
