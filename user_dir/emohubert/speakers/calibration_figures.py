"""Figures of a calibration: who is near whom, what it did to each speaker, and how much audio that takes."""

import matplotlib
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ..core.plotting import COLOURS, DPI, GREY, MARKERS, MOST_LABELLED, STYLE, WIDTH, new_figure, save_figure, short

MOST_NAMED = 14
"""A map names the speakers that are calibrated when they are not more than this."""
MOST_LINES = 3
"""A map draws lines to at most this many neighbours of a speaker, the most similar ones."""


def draw(directory, calibration, vectors, estimates, rows, report):
    """Draw every figure the calibration allows, in place of the `*.png` that are there; returns the paths.

    Args:
        directory: output folder, which exists.
        calibration: fitted.
        vectors: SpeakerVectors of the calibrated speakers.
        estimates: Estimates of them.
        rows: of `calibration_report.speaker_table`.
        report: the content of `calibration.json`.
    """
    for path in directory.glob("*.png"):
        path.unlink()
    vectors = vectors.take(estimates.ids)
    hood = calibration.neighbourhood
    if calibration.kind == "classes":
        usual = [calibration.names[i] for i in hood.values.argmax(1)]
        paths = [nearest_speakers(directory / "nearest_speakers.png", hood.speakers, vectors, estimates, usual, "most frequent class")]
    else:
        paths = [
            nearest_speakers(directory / f"nearest_speakers_{_safe(name)}.png", hood.speakers, vectors, estimates, column, f"mean {name}")
            for name, column in zip(calibration.names, hood.values.T, strict=False)
        ]
    for measure in dict.fromkeys(row["measure"] for row in rows):
        chosen = [row for row in rows if row["measure"] == measure and row["gain"] == row["gain"]]
        if chosen:
            paths.append(before_after(directory / f"before_after_{_safe(measure)}.png", chosen, measure))
    if report["gain"]["curve"]:
        paths.append(gain(directory / "gain.png", report["gain"], rows))
    return paths


def nearest_speakers(path, training, vectors, estimates, values, name):
    """A map of the training speakers (filled) and the calibrated ones (crosses), with lines to their nearest neighbours.

    The two axes are the principal components of the training speakers' vectors; neighbours are by cosine over all dimensions.

    Args:
        path: of the PNG.
        training, vectors: SpeakerVectors.
        estimates: Estimates.
        values: of the training speakers: numbers (viridis) or a list of str (legend).
        name: what the values are.

    Returns:
        The path, as every function here.
    """
    known, new, axis_names = _principal_components(training.vectors, vectors.vectors)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(WIDTH, 5.4)
        axes = figure.add_subplot()
        for row in range(len(vectors)):
            order = np.lexsort([-estimates.similarities[row], -estimates.weights[row]])[:MOST_LINES]
            for j in order[estimates.weights[row, order] > 0]:
                axes.plot(*np.stack([new[row], known[j]]).T, color=GREY, linewidth=0.8, alpha=0.7, zorder=1)
        size = float(np.clip(3000 / len(training), 12, 46))
        if isinstance(values, np.ndarray):
            image = axes.scatter(*known.T, c=values, cmap="viridis", s=size, zorder=2, linewidth=0.3, edgecolor="#444444")
            bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
            bar.set_label(f"{short(name, 24)} of training speakers")
            bar.outline.set_visible(False)
        else:
            for i, value in enumerate(sorted(set(values))):
                members = np.array([v == value for v in values])
                look = {"color": COLOURS[i % 8], "marker": MARKERS[(i + i // 8) % 8], "edgecolor": "#444444", "linewidth": 0.3}
                axes.scatter(*known[members].T, s=size, zorder=2, label=short(value), **look)
        axes.scatter(*new.T, marker="x", s=46, color="white", zorder=3, linewidth=4)
        axes.scatter(*new.T, marker="x", s=40, color=COLOURS[3], zorder=4, linewidth=1.8, label="calibrated speaker")
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1], xticks=[], yticks=[])
        axes.set_title(f"Nearest speakers by {short(name, 24)}")
        axes.margins(0.08)
        if len(vectors) <= MOST_NAMED:
            _name_points(axes, [short(name) for name in vectors.ids], new, np.concatenate([new, known]))
        figure.legend(loc="outside lower center", borderaxespad=0, ncols=4, handletextpad=0.2, columnspacing=1.0)
        return save_figure(figure, path)


def before_after(path, rows, measure):
    """Each speaker's score before and after, sorted by the gain; the worse ones are marked.

    Args:
        path: of the PNG.
        rows: of `speaker_table`, of one measure.
        measure: its name.
    """
    rows = sorted(rows, key=lambda row: (row["gain"], row["speaker"]))
    n = len(rows)
    named = n <= MOST_LABELLED
    before, after = np.array([row["before"] for row in rows]), np.array([row["after"] for row in rows])
    worse = after < before - 1e-9
    y = np.arange(n)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(WIDTH, 1.9 + (0.24 * max(n, 3) if named else 4.4))
        axes = figure.add_subplot()
        for members, colour, style, label in ((~worse, COLOURS[0], "-", "better or equal"), (worse, COLOURS[3], "--", "worse")):
            if members.any():
                text = f"{label} ({int(members.sum())})"
                axes.hlines(y[members], before[members], after[members], color=colour, linestyle=style, linewidth=1.8, zorder=2, label=text)
                axes.scatter(after[members], y[members], s=26 if named else 8, color=colour, zorder=3)
        axes.scatter(before, y, s=26 if named else 8, facecolor="white", edgecolor="black", zorder=4, label="before")
        if named:
            axes.set_yticks(y, [short(row["speaker"]) for row in rows])
        else:
            axes.set_yticks([0, n - 1], [short(rows[0]["speaker"]), short(rows[-1]["speaker"])])
            axes.set_ylabel(f"{n} speakers, sorted by gain")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.7, n - 0.3)
        axes.grid(axis="x", color="#E6E6E6")
        axes.set_xlabel(short(measure, 30))
        axes.set_title(f"Before and after: {before.mean():.3f} → {after.mean():.3f} over speakers")
        figure.legend(loc="outside lower center", borderaxespad=0, ncols=3)
        return save_figure(figure, path)


def gain(path, curve, rows):
    """The score against the number of utterances heard of every speaker, and each speaker's gain against how many they have.

    Args:
        path: of the PNG.
        curve: {"measure", "before", "curve"} of `calibration.json`.
        rows: of `speaker_table`.
    """
    amounts = np.array([point["utterances"] for point in curve["curve"]])
    scores = [np.array(point["scores"]) for point in curve["curve"]]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(WIDTH, 5.6)
        top, below = figure.subplots(2, 1, sharex=True)
        top.axhline(curve["before"], color="black", linestyle="--", linewidth=1.2, label="before")
        top.fill_between(amounts, [s.min() for s in scores], [s.max() for s in scores], color=COLOURS[0], alpha=0.2, linewidth=0)
        top.plot(
            amounts,
            [s.mean() for s in scores],
            "o-",
            color=COLOURS[0],
            linewidth=1.8,
            markersize=5,
            label="calibrated (mean, range of draws)",
        )
        top.set(ylabel=short(curve["measure"], 24), title="Unlabelled utterances heard per speaker")
        for i, measure in enumerate(dict.fromkeys(row["measure"] for row in rows)):
            chosen = [row for row in rows if row["measure"] == measure and row["gain"] == row["gain"]]
            look = {"color": COLOURS[(i + 1) % 8], "marker": MARKERS[i % 8], "edgecolor": "#444444", "linewidth": 0.3}
            below.scatter(
                [row["utterances"] for row in chosen], [row["gain"] for row in chosen], s=26, alpha=0.85, label=short(measure, 24), **look
            )
        below.axhline(0, color="black", linewidth=0.8)
        below.set(xlabel="utterances of the speaker", ylabel="gain of the speaker")
        below.set_xscale("log", base=2)
        below.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        below.xaxis.set_minor_formatter(NullFormatter())
        for axes in (top, below):
            axes.grid(color="#E6E6E6")
            axes.yaxis.set_major_locator(MaxNLocator(5))
        figure.legend(loc="outside lower center", borderaxespad=0, ncols=2)
        return save_figure(figure, path)


def _principal_components(training, vectors):
    """Two principal components of training vectors, (speakers, 2), the same of others, and the names of the axes."""
    mean = training.mean(0)
    _, singular, directions = np.linalg.svd(training - mean, full_matrices=False)
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(1)])  # the same map on every machine
    axes = np.zeros((2, training.shape[1]))
    axes[: len(directions)] = (signs[:, None] * directions)[:2]
    share = singular**2 / max((singular**2).sum(), 1e-300)
    names = [f"component {i + 1} ({100 * v:.0f}% of variance)" for i, v in enumerate([*share, 0.0][:2])]
    return (training - mean) @ axes.T, (vectors - mean) @ axes.T, names


def _name_points(axes, names, places, points):
    """Write each name beside its place, on the side with the most room between the points and the names already there."""
    taken = axes.transData.transform(points)
    for name, place in zip(names, places, strict=True):
        width = 0.03 * DPI * len(name) + 12
        sides = [(x, y) for y in (12, -16, 0) for x in (width, -width)]
        here = axes.transData.transform(place)
        room = [np.sort(np.abs((taken - here - side) / (width, 14)).max(1))[:2].sum() for side in sides]
        x, y = sides[int(np.argmax(room))]
        taken = np.concatenate([taken, [here + (x, y), here + (x / 2, y)]])
        place_text = {"xytext": (x * 72 / DPI, y * 72 / DPI), "textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 8}
        axes.annotate(name, place, zorder=5, **place_text)


def _safe(name):
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60]
