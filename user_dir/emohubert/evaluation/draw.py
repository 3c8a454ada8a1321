"""The figures of an evaluation: which ones its predictions allow."""

import numpy as np

from ..core.files import make_folder
from . import figures
from .predictions import NO_VALUE, ClassPredictions, rows_in_split, sweeps


def draw(directory, predictions, scores, split=None, embeddings=None, seed=1):
    """Draw every figure that the predictions allow, in place of the `*.png` that are there.

    Args:
        directory: output folder, made if needed.
        predictions, split, embeddings: as `scoring.save`.
        scores: of `scoring.evaluate`.
        seed: of t-SNE and of the choice of utterances where a map would hold too many.
    """
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
    for number, (name, sweep) in enumerate(sweeps(predictions).items(), 1):
        figures.thresholds(directory / f"threshold_{number:02d}_{_safe(name)}.png", sweep, name)


def _draw_dimensions(directory, predictions, scores):
    for column, name in enumerate(predictions.dims):
        scored, values = predictions.scored[:, column], scores["dims"][name]
        if not scored.any():
            continue
        pair = predictions.references[scored, column], predictions.predicted[scored, column]
        figures.scatter(directory / f"scatter_{_safe(name)}.png", *pair, name, values["ccc"], values["rmse"])
        speakers = {speaker: s["dims"][name]["ccc"] for speaker, s in scores["per_speaker"].items()}
        figures.bars(directory / f"speakers_{_safe(name)}.png", speakers, values["ccc"], f"CCC of {name}")


def _draw_maps(directory, predictions, split, embeddings, seed):
    """The embeddings by emotion, speaker, dimension and sex."""
    rows = rows_in_split(predictions, split)
    meta = (split.meta if split is not None else None) or {}
    columns = {}
    if isinstance(predictions, ClassPredictions):
        columns["emotion"] = predictions.emotions
    elif split is not None and split.emotions:
        columns["emotion"] = [split.emotions[r] for r in rows]
    columns["speaker"] = predictions.speakers
    if not isinstance(predictions, ClassPredictions):
        columns |= {name: predictions.references[:, i] for i, name in enumerate(predictions.dims)}
    columns |= {name: [meta[name][r] or NO_VALUE for r in rows] for name in ("sex", "gender") if name in meta}
    for method in ("pca", "tsne"):
        places, chosen, axes = figures.project(embeddings, method, seed)
        for name, values in columns.items():
            coloured = values[chosen] if isinstance(values, np.ndarray) else [values[i] for i in chosen]
            path = directory / f"embeddings_{method}_{_safe(name)}.png"
            figures.embedding_map(path, places, coloured, name, axes, of=len(predictions))


def _safe(name):
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60]
