"""Figures of a corpus: how long its clips are, what is in it, who speaks, and how similar the speakers' voices are."""

import itertools
import logging
from collections import Counter

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from ..core.plotting import COLOURS, GREY, WIDTH, new_figure, save_figure, short
from ..corpus.manifest import NO_EMOTION
from ..data.speaker_vectors import standardise
from ..evaluation import figures

logger = logging.getLogger(__name__)

MOST_BARS = 12  # more values of a column than this are summed up in one bar
MOST_GROUPS = 8  # a map is coloured by columns with at most this many values
FEWEST_SPEAKERS = 3  # a map of fewer shows nothing


def draw(directory, corpus, metadata, vectors):
    """Draw every figure that a corpus, its `speaker_metadata` and `voices` allow, in place of the `*.png` that are there; returns the paths."""
    for path in directory.glob("*.png"):
        path.unlink()
    paths = [lengths(directory / "lengths.png", corpus.table["seconds"])]
    places = corpus.table["split"].where(~corpus.table["split"].str.contains("/"), "in folds")
    paths.append(classes(directory / "classes.png", list(zip(corpus.table["emotion"], places, strict=True))))
    columns = {name: list(of.values()) for name, of in metadata.items()}
    if columns := {name: values for name, values in columns.items() if 1 < len(set(values)) < len(values)}:  # no names
        paths.append(demographics(directory / "demographics.png", columns, corpus.known["speaker"].nunique()))
    if vectors is None or len(vectors) < FEWEST_SPEAKERS:
        logger.info("%d speakers are known: too few for a map of their voices", 0 if vectors is None else len(vectors))
        return paths
    projected = figures.project(standardise(vectors.vectors, vectors))
    for name, of in metadata.items():
        values = [of[speaker] or "unknown" for speaker in vectors.ids]
        if 2 <= len(set(values)) <= MOST_GROUPS:
            path = directory / f"voices_{figures.file_name(name)}.png"
            paths.append(figures.embedding_map(path, projected, values, name, "Voices (mean MFCCs)"))
    return paths


def lengths(path, seconds):
    """Histogram of clip lengths (seconds) with the median, the longest half percent left out; returns the path, as every function here."""
    seconds = np.asarray(seconds, dtype=np.float64)
    shown = seconds[seconds <= np.percentile(seconds, 99.5)]
    with new_figure(WIDTH, 3.6) as (figure, axes):
        axes.hist(shown, bins=int(np.clip(np.sqrt(len(shown)), 5, 60)), color=COLOURS[0], edgecolor="white", linewidth=0.3)
        low, median, high = np.percentile(seconds, [5, 50, 95])
        axes.axvline(median, color="black", linestyle="--", linewidth=1.5, label=f"median {median:.2f} s")
        axes.axvspan(low, high, color=COLOURS[1], alpha=0.25, linewidth=0, zorder=0, label=f"nine in ten: {low:.2f}–{high:.2f} s")
        axes.set(xlabel="seconds", ylabel="utterances", title=f"Length of {len(seconds)} clips, {seconds.sum() / 3600:.2f} hours")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(shown) < len(seconds):
            axes.plot([], [], " ", label=f"not shown: {len(seconds) - len(shown)} longer, up to {seconds.max():.2f} s")
        figure.legend(loc="outside lower center", borderaxespad=0, ncols=2)
        return save_figure(figure, path)


def classes(path, labelled):
    """Utterances of every class, a bar each, the parts in each split one after the other; `labelled`: list of (class, split)."""
    counts, totals, order = Counter(labelled), Counter(c for c, _ in labelled), {"train": 0, "valid": 1, "test": 2}
    splits = sorted({s for _, s in counts}, key=lambda s: (order.get(s, 3), s))
    names = sorted(totals, key=lambda c: (c != NO_EMOTION, totals[c], c))
    columns = 4 if max(map(len, splits)) <= 10 else 2
    with new_figure(WIDTH, 1.4 + 0.34 * max(len(names), 3) + 0.2 * -(-len(splits) // columns)) as (figure, axes):
        left = np.zeros(len(names))
        for split, colour in zip(splits, itertools.cycle(COLOURS), strict=False):
            width = np.array([counts[c, split] for c in names])
            bars = axes.barh(names, width, left=left, height=0.72, color=colour, edgecolor="white", linewidth=0.5, label=short(split, 24))
            left += width
        axes.bar_label(bars, [str(totals[c]) for c in names], padding=4, fontsize=9)
        axes.set_yticks(range(len(names)), ["no class" if c == NO_EMOTION else short(c, 20) for c in names])
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set(xlabel="utterances", title=f"Classes of {len(labelled)} utterances")
        figure.legend(loc="outside lower center", borderaxespad=0, ncols=columns)
        return save_figure(figure, path)


def demographics(path, columns, speakers):
    """Speakers by what is known of them (`columns`: name → values, "": unknown), a bar for each value, or range of many numbers."""
    bars = {name: _bars(values) for name, values in columns.items()}
    heights = [0.75 + 0.26 * len(of) for of in bars.values()]
    with new_figure(WIDTH, 0.7 + sum(heights), len(columns), height_ratios=heights, squeeze=False) as (figure, panels):
        for axes, (name, of) in zip(panels.flat, bars.items(), strict=True):
            labels, counts = zip(*of, strict=True)
            colours = [GREY if label.startswith("(") else COLOURS[0] for label in labels]
            drawn = axes.barh(range(len(labels)), counts, height=0.72, color=colours)
            axes.bar_label(drawn, [f"{n} ({100 * n / speakers:.0f}%)" for n in counts], padding=4, fontsize=9)
            axes.set_yticks(range(len(labels)), [short(label, 28) for label in labels])
            axes.tick_params(axis="y", length=0)
            axes.set_xlim(0, 1.25 * max(counts))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set_title(short(name, 30), fontsize=10)
        figure.suptitle(f"{speakers} speakers", fontsize=11, fontweight="bold", x=0.02, ha="left")
        return save_figure(figure, path)


def _bars(values):
    """(label, speakers) from below: what is unknown, what is summed up, then values by their number, or ranges of numbers in order."""
    counts = Counter(values)
    unknown = [("(unknown)", counts.pop(""))] if "" in counts else []
    numbers = pd.to_numeric(pd.Series(list(counts)), errors="coerce")
    if len(counts) > MOST_BARS and np.isfinite(numbers).all():
        edges = MaxNLocator(8).tick_values(numbers.min(), numbers.max())
        found, _ = np.histogram(numbers, edges, weights=list(counts.values()))
        return [*unknown, *((f"{low:g}–{high:g}", int(n)) for low, high, n in zip(edges, edges[1:], found, strict=False))]
    known = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = len(known) if len(known) <= MOST_BARS else MOST_BARS - 1
    others = [(f"({len(known) - shown} others)", sum(n for _, n in known[shown:]))] if known[shown:] else []
    return [*unknown, *others, *reversed(known[:shown])]
