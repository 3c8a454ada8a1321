"""Figures, drawn without a display and the same every time. Every function writes a PNG to its first argument and returns that path.

Groups beyond the eight colours also differ in their markers; heat has viridis. Figures are about 5 inches wide, so that their labels
stay readable on a phone.
"""

import logging
import re

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..core.files import make_folder
from ..core.plotting import COLOURS, GREY, MARKERS, MOST_LABELLED, WIDTH, new_figure, save_figure, short
from ..training.curves import chosen_update
from .predictions import NO_VALUE, ClassPredictions, risk_coverage, rows_in_split

logging.getLogger("matplotlib").setLevel(logging.WARNING)  # at DEBUG it names every font it looks at

MOST_COLOURED = 16  # a map colours at most this many groups, the largest ones; the others are grey, and the legend says so
SCORE = re.compile(r"(?!best_)(.*_)?(accuracy|ccc|ua|wa|f1|perplexity)(_|$)")
_GRID = "#E6E6E6"
_BELOW = {"loc": "outside lower center", "borderaxespad": 0}  # where legends are


def file_name(text):
    """Text as a part of a file's name."""
    return re.sub(r"[^\w-]", "_", text)[:60]


def style_of(i, **more):
    """Colour and marker of the i-th of several series."""
    return {"color": COLOURS[i % 8], "marker": MARKERS[(i + i // 8) % 8], **more}


def confusion(path, counts, classes):
    """Confusion matrix, counts (classes, classes) with references as rows: shade and percentage are of each row, counts below."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    k, names = len(classes), [short(name) for name in classes]
    longest = max(map(len, names))
    small = 9 if k <= 6 else (8 if k <= 8 else 6.5)
    side = 1.9 + (0.54 if k <= 8 else 0.46) * max(k, 3)
    with new_figure(side + 0.05 * longest, side) as (figure, axes):
        image = axes.imshow(share, cmap="viridis", vmin=0, vmax=1)
        centred = {"ha": "center", "va": "center", "fontsize": small, "linespacing": 1.15}
        for i, j in np.ndindex(k, k):
            text = f"{100 * share[i, j]:.0f}%\n{int(counts[i, j])}" if total[i] else "–"
            axes.text(j, i, text, color="black" if share[i, j] > 0.6 else "white", **centred)
        axes.set_xticks(range(k), names, rotation=45 if longest > 4 else 0, ha="right" if longest > 4 else "center", rotation_mode="anchor")
        axes.set_yticks(range(k), names)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set(xlabel="predicted", ylabel="reference", title=f"Confusion, {int(counts.sum())} utterances")
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04, ticks=[0, 0.5, 1])
        bar.set_ticklabels(["0%", "50%", "100%"])
        bar.outline.set_visible(False)
        return save_figure(figure, path, square=True)


def bars(path, values, overall, label):
    """A bar per speaker, from the lowest score to the highest, with their mean ± standard deviation and the score of all utterances.
    `values`: speaker → score; NaN (not defined) has no bar and is counted in the title. `label`: name of the score."""
    defined = sorted(((v, str(name)) for name, v in values.items() if not np.isnan(v)), key=lambda pair: (pair[0], pair[1]))
    missing = len(values) - len(defined)
    scores, n = np.array([v for v, _ in defined]), len(defined)
    named = n <= MOST_LABELLED
    with new_figure(WIDTH, 1.6 + (0.24 * max(n, 3) if named else 4.4)) as (figure, axes):
        axes.barh(np.arange(n), scores, height=0.72 if named else 1.0, color=COLOURS[0], zorder=2)
        shown = range(n) if named else (0, n - 1)
        axes.set_yticks(shown, [short(defined[i][1]) for i in shown])
        axes.tick_params(axis="y", length=0)
        highest = max(1.0, scores.max(initial=1.0)) if label.startswith(("UA", "CCC")) else None
        axes.set(ylabel="" if named else f"{n} speakers, sorted", ylim=(-0.7, max(n, 1) - 0.3))
        axes.set_xlim(min(0.0, 1.1 * scores.min(initial=0.0)), highest)
        if n:
            mean, std = scores.mean(), scores.std()
            axes.axvspan(mean - std, mean + std, color=COLOURS[1], alpha=0.35, linewidth=0, zorder=1)
            axes.axvline(mean, color=COLOURS[1], linewidth=2, label=f"over speakers {mean:.3f} ± {std:.3f}", zorder=3)
        if not np.isnan(overall):
            axes.axvline(overall, color="black", linestyle="--", linewidth=1.5, label=f"all utterances {overall:.3f}", zorder=3)
        axes.set(xlabel=label, title=f"{label} per speaker" + (f" ({missing} without one)" if missing else ""))
        if axes.get_legend_handles_labels()[0]:
            figure.legend(ncols=2, **_BELOW)
        return save_figure(figure, path)


def scatter(path, reference, predicted, name, ccc, rmse):
    """Predicted against reference values of a dimension, (n) each, with the diagonal; CCC and RMSE in the title."""
    both, n = np.concatenate([reference, predicted]), len(reference)
    margin = 0.05 * np.ptp(both) or 0.5
    limits = (both.min() - margin, both.max() + margin)
    with new_figure(WIDTH, 5.2) as (figure, axes):
        axes.plot(limits, limits, color="black", linestyle="--", linewidth=1)
        size, alpha = float(np.clip(8000 / n, 4, 30)), float(np.clip(400 / n, 0.2, 0.75))
        axes.scatter(reference, predicted, s=size, alpha=alpha, color=COLOURS[0], linewidth=0)
        axes.set(xlim=limits, ylim=limits, xlabel=f"{short(name, 30)}, reference", ylabel=f"{short(name, 30)}, predicted", aspect="equal")
        axes.set_title(f"{short(name, 20)}: CCC {'–' if np.isnan(ccc) else f'{ccc:.3f}'}, RMSE {rmse:.3f}, n = {n}")
        axes.grid(color=_GRID)
        return save_figure(figure, path, square=True)


def coverage(path, selected):
    """Accuracy and UA of the most confident share of utterances over that share, from `metrics.risk_coverage`."""
    with new_figure(WIDTH, 3.6) as (figure, axes):
        for i, (name, label) in enumerate({"UA": "UA", "WA": "WA (accuracy)"}.items()):
            axes.plot(100 * selected["coverage"], selected[name], color=COLOURS[i], label=label, linewidth=1.8, linestyle=("-", "--")[i])
        lowest = np.nanmin([selected["UA"], selected["WA"]])
        axes.set(
            xlim=(0, 100), ylim=(min(0.5, lowest - 0.02), 1.01), xlabel="the most confident utterances, % of all", ylabel="score of these"
        )
        axes.set_title(f"Deciding for the most confident only: AURC {selected['aurc']:.3f}")
        axes.grid(color=_GRID)
        figure.legend(ncols=2, **_BELOW)
        return save_figure(figure, path)


def project(embeddings):
    """Two principal components of embeddings (n, d), n of 3 or more: (places (n, 2), names of the two axes)."""
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    points = np.asarray(embeddings, dtype=np.float64)
    if points.shape[1] == 1:
        points = np.column_stack([points, 0 * points])
    with threadpool_limits(1), np.errstate(invalid="ignore", divide="ignore"):  # equal points have no variance to explain
        pca = PCA(n_components=2, svd_solver="full")
        places = pca.fit_transform(points)
    explained = np.nan_to_num(pca.explained_variance_ratio_)
    return places, [f"component {i + 1} ({100 * v:.0f}% of variance)" for i, v in enumerate(explained)]


def embedding_map(path, projected, values, name, what="Utterances"):
    """A map of what was `project`ed, utterances or `what` the title says, coloured by its `values`, whose meaning is `name`. Values are a
    list of str (legend), or a float array (viridis, colour bar; NaN: grey)."""
    places, axis_names = projected
    size = float(np.clip(6000 / len(places), 4, 34))
    with new_figure(WIDTH, 5.6) as (figure, axes):
        if isinstance(values, np.ndarray):
            known = ~np.isnan(values)
            axes.scatter(*places[~known].T, s=size, color=GREY, linewidth=0)
            image = axes.scatter(*places[known].T, s=size, c=values[known], cmap="viridis", linewidth=0)
            figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03).outline.set_visible(False)
        else:
            sizes = {value: values.count(value) for value in set(values)}
            largest = sorted(sizes, key=lambda v: (-sizes[v], v))[:MOST_COLOURED]
            others = np.array([v not in largest for v in values])
            axes.scatter(*places[others].T, s=size * 0.7, color=GREY, linewidth=0, alpha=0.6)
            for i, value in enumerate(sorted(largest)):
                look = style_of(i, s=size, alpha=0.85, edgecolor="#444444", linewidth=0.25, label=short(value, 24))
                axes.scatter(*places[np.array([v == value for v in values])].T, **look)
            if others.any():
                axes.scatter([], [], s=size, color=GREY, label=f"{len(sizes) - len(largest)} others")
            scale, columns = max(1.0, (24 / size) ** 0.5), 4 if max(map(len, largest)) <= 14 else 2
            figure.legend(ncols=columns, handletextpad=0.2, columnspacing=1.0, markerscale=scale, **_BELOW)
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1], xticks=[], yticks=[])
        axes.set_title(f"{what} by {short(name)}")
        return save_figure(figure, path)


def training(path, curves):
    """Curves of `curves.read_training_log` over updates: the loss and scores, four at most; None: nothing to draw."""
    if not (names := [name for name in ("loss", *sorted(filter(SCORE.match, curves))) if name in curves][:4]):
        return None
    with new_figure(WIDTH, 0.8 + 1.9 * len(names), len(names), sharex=True, squeeze=False) as (figure, panels):
        panels = panels[:, 0]
        labels, splits = {}, sorted({"train"}.union(*(curves[name] for name in names)), key=lambda s: (s != "train", s))
        for axes, name in zip(panels, names, strict=True):
            for split in (s for s in splits if s in curves[name]):
                updates, values = curves[name][split]
                style = {"linestyle": "-" if split == "train" else "--", "marker": "o" if len(updates) < 40 else "", "markersize": 4}
                colour = COLOURS[splits.index(split) % 8]
                labels.setdefault(split, axes.plot(updates, values, color=colour, linewidth=1.8, **style)[0])
            axes.set_ylabel(short(name, 18))
            axes.grid(color=_GRID)
            axes.yaxis.set_major_locator(MaxNLocator(5))
        if (chosen := chosen_update(curves)) is not None:
            marks = [axes.axvline(chosen[1], color="black", linewidth=1, linestyle=":") for axes in panels]
            labels[f"best {short(chosen[0], 18)}"] = marks[-1]
        panels[0].set_title("Training")
        panels[-1].set_xlabel("update")
        panels[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.legend(labels.values(), labels.keys(), ncols=3, **_BELOW)
        return save_figure(figure, path)


def draw(directory, predictions, scores, split=None, embeddings=None):
    """Draw every figure that the predictions allow, in place of the `*.png` that are there. `scores` are of `scoring.evaluate`, the rest is
    as for `scoring.save`."""
    directory = make_folder(directory)
    for path in directory.glob("*.png"):
        path.unlink()
    if not isinstance(predictions, ClassPredictions):
        _draw_dimensions(directory, predictions, scores)
    elif scores["n"]:
        confusion(directory / "confusion.png", scores["confusion"], scores["classes"])
        bars(directory / "speakers.png", {name: s["UA"] for name, s in scores["per_speaker"].items()}, scores["UA"], "UA")
        coverage(directory / "coverage.png", risk_coverage(predictions))
    if embeddings is not None and len(predictions) > 2:
        _draw_maps(directory, predictions, split, embeddings)


def _draw_dimensions(directory, predictions, scores):
    for column, name in enumerate(predictions.dims):
        scored, values = predictions.scored[:, column], scores["dims"][name]
        if not scored.any():
            continue
        pair = predictions.references[scored, column], predictions.predicted[scored, column]
        scatter(directory / f"scatter_{file_name(name)}.png", *pair, name, values["ccc"], values["rmse"])
        speakers = {speaker: s["dims"][name]["ccc"] for speaker, s in scores["per_speaker"].items()}
        bars(directory / f"speakers_{file_name(name)}.png", speakers, values["ccc"], f"CCC of {name}")


def _draw_maps(directory, predictions, split, embeddings):
    """The embeddings by emotion, speaker, dimension and sex."""
    rows = rows_in_split(predictions, split)
    meta = (split.meta if split is not None else None) or {}
    if isinstance(predictions, ClassPredictions):
        columns = {"emotion": predictions.emotions, "speaker": predictions.speakers}
    else:
        columns = {"emotion": [split.emotions[r] for r in rows]} if split is not None and split.emotions else {}
        columns |= {"speaker": predictions.speakers, **dict(zip(predictions.dims, predictions.references.T, strict=True))}
    columns |= {name: [meta[name][r] or NO_VALUE for r in rows] for name in ("sex", "gender") if name in meta}
    projected = project(embeddings)
    for name, values in columns.items():
        embedding_map(directory / f"embeddings_{file_name(name)}.png", projected, values, name)
