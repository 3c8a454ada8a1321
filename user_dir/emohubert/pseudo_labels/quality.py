"""What frame labels say: how evenly clusters are used, how long they last, and how much of emotion and speaker they hold."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..core.errors import InputError
from ..core.files import atomic
from ..core.plotting import DPI, STYLE
from ..corpus.audio import SAMPLE_RATE
from ..corpus.frame_labels import read_frame_labels
from ..corpus.manifest import NO_EMOTION, read_dictionary

RUN_PERCENTILES = (10, 50, 90)
_SHUFFLES = 10


def label_sets(folder, split):
    """Folders below `folder` (itself included) that hold labels of a split, by name, in natural order.

    Raises:
        InputError: there are none.
    """
    folder = Path(folder)
    found = {p.parent.relative_to(folder).as_posix(): p.parent for p in folder.rglob(f"{split}.km") if not p.parent.name.startswith(".")}
    if not found:
        raise InputError(f"{folder}: holds no {split}.km, nor does any folder in it; make labels with tools/make_labels.py")
    return {name: found[name] for name in sorted(found, key=_natural)}


def read_labels(folder, split):
    """FrameLabels of a split with the number of symbols of their dictionary: (labels, symbols)."""
    symbols = read_dictionary(folder / "dict.km.txt")
    return read_frame_labels(folder / f"{split.name}.km", symbols, split.n_samples), len(symbols)


def quality(labels, offsets, clusters, targets, hop, seed=1):
    """Measures of one set of labels.

    Args:
        labels: cluster of every frame, utterance after utterance.
        offsets: where each utterance starts, and the end.
        clusters: how many there are.
        targets: name → value of each utterance, or None where it has none.
        hop: samples between two labels.
        seed: of the shuffles that give the level of chance.

    Returns:
        dict: `sizes` and `runs`, and for each target `purity`, `majority` (purity of a single cluster), `nmi` (mutual
        information over the mean of both entropies), `mutual_information` and `entropy` in bits, and `nmi_chance`: the
        mean NMI when the values are shuffled among the utterances. It grows with the clusters and shrinks with the audio.
    """
    labels, offsets = np.asarray(labels), np.asarray(offsets)
    sizes = np.bincount(labels, minlength=clusters)
    share = sizes / max(sizes.sum(), 1)
    entropy = _entropy(sizes)
    result = {
        "clusters": clusters,
        "frames": len(labels),
        "sizes": {
            "used": int((sizes > 0).sum()),
            "smallest": int(sizes.min()),
            "median": float(np.median(sizes)),
            "largest": int(sizes.max()),
            "largest_share": float(share.max()),
            "entropy": entropy,
            "evenness": entropy / np.log2(clusters) if clusters > 1 else 1.0,
            "perplexity": float(2**entropy),
        },
        "runs": _runs(labels, offsets, 1000 * hop / SAMPLE_RATE),
        "targets": {},
    }
    of_frame = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    for name, values in targets.items():
        classes = sorted({v for v in values if v is not None})
        if len(classes) > 1:
            table = {value: i for i, value in enumerate(classes)}
            codes = np.array([-1 if v is None else table[v] for v in values])
            rng = np.random.default_rng(seed)
            shuffled = [_contingency(labels, clusters, rng.permutation(codes)[of_frame], len(classes)) for _ in range(_SHUFFLES)]
            measures = association(_contingency(labels, clusters, codes[of_frame], len(classes)))
            chance = float(np.mean([association(counts)["nmi"] for counts in shuffled]))
            result["targets"][name] = {"classes": len(classes), **measures, "nmi_chance": chance}
    return result


def _contingency(labels, clusters, codes, classes):
    """Frames by cluster and class; frames without a class (−1) are left out."""
    known = codes >= 0
    cells = labels[known].astype(np.int64) * classes + codes[known]
    return np.bincount(cells, minlength=clusters * classes).reshape(clusters, classes)


def association(counts):
    """Purity and mutual information of a table of counts, clusters × classes.

    Purity is the share of frames whose class is the commonest of their cluster; the normalised mutual information is
    I / mean(H(cluster), H(class)), as in scikit-learn.
    """
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum()
    if not total:
        return {"purity": None, "majority": None, "mutual_information": None, "entropy": None, "nmi": None}
    clusters, classes = _entropy(counts.sum(1)), _entropy(counts.sum(0))
    information = max(clusters + classes - _entropy(counts.ravel()), 0.0)
    mean = (clusters + classes) / 2
    return {
        "purity": float(counts.max(1).sum() / total),
        "majority": float(counts.sum(0).max() / total),
        "mutual_information": information,
        "entropy": classes,
        "nmi": information / mean if mean else 1.0,
    }


def targets_of(split):
    """What labels are compared with: the emotion and the speaker of each utterance, where the manifest knows them."""
    targets = {}
    if split.emotions:
        targets["emotion"] = [None if e == NO_EMOTION else e for e in split.emotions]
    if split.speakers:
        targets["speaker"] = split.speakers
    return targets


def table(results):
    """The measures of several sets as lines of text."""
    targets = list(dict.fromkeys(t for r in results.values() for t in r["targets"]))
    head = ["labels", "K", "used", "perplexity", "largest", "run ms"]
    for target in targets:
        head += [f"{target} purity", f"({target} majority)", f"{target} NMI", "(chance)", f"{target} bits"]
    rows = [head]
    for name, r in results.items():
        row = [name, str(r["clusters"]), str(r["sizes"]["used"]), f"{r['sizes']['perplexity']:.1f}"]
        row += [f"{100 * r['sizes']['largest_share']:.1f}%", f"{r['runs']['mean_ms']:.0f}"]
        for target in targets:
            t = r["targets"].get(target)
            if t:
                row += [f"{t['purity']:.3f}", f"({t['majority']:.3f})", f"{t['nmi']:.4f}", f"({t['nmi_chance']:.4f})"]
                row += [f"{t['mutual_information']:.3f}"]
            else:
                row += ["–"] * 5
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))] for row in rows)
    return ["  ".join(row).rstrip() for row in cells]


def heat_map(path, results):
    """Draw how much every set says of emotion and speaker: a panel per target, a row per feature, a column per set size.

    The shade and the upper number are the normalised mutual information in percent, the lower number the purity.
    Sets that are not `FEATURE/kmK` get a row of their own.
    """
    places = {name: _place(name, r["clusters"]) for name, r in results.items()}
    rows = sorted({row for row, _ in places.values()}, key=_natural)
    columns = sorted({column for _, column in places.values()}, key=_natural)
    targets = list(dict.fromkeys(t for r in results.values() for t in r["targets"]))
    if not targets:
        raise InputError(f"{path}: the manifest has neither several emotions nor several speakers; there is nothing to compare labels with")
    with matplotlib.rc_context(STYLE):
        height = 1.15 + 0.5 * len(rows)
        figure = Figure(figsize=(max(3.4, 1.7 + 0.78 * len(columns)), height * len(targets)), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, target in zip(np.atleast_1d(figure.subplots(len(targets), 1)), targets, strict=True):
            shade, purity = (np.full((len(rows), len(columns)), np.nan) for _ in range(2))
            for name, (row, column) in places.items():
                if target in results[name]["targets"]:
                    found = results[name]["targets"][target]
                    shade[rows.index(row), columns.index(column)] = 100 * found["nmi"]
                    purity[rows.index(row), columns.index(column)] = 100 * found["purity"]
            top = max(float(np.nanmax(shade)), 1e-9)
            image = axes.imshow(shade, cmap="viridis", vmin=0, vmax=top, aspect="auto")
            for i, j in np.argwhere(~np.isnan(shade)):
                axes.text(
                    j, i, f"{shade[i, j]:.1f}\n{purity[i, j]:.0f}%", ha="center", va="center", fontsize=8, linespacing=1.15,
                    color="black" if shade[i, j] > 0.6 * top else "white",
                )  # fmt: skip
            axes.set_xticks(range(len(columns)), columns)
            axes.set_yticks(range(len(rows)), rows)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(f"{target.capitalize()}: NMI × 100, purity")
            bar = figure.colorbar(image, ax=axes, fraction=0.06, pad=0.03)
            bar.outline.set_visible(False)
        axes.set_xlabel("clusters")
        with atomic(path, "wb") as f:
            figure.savefig(f, format="png", metadata={"Software": None})
    return path


def _place(name, clusters):
    """Row and column of a set in the heat map."""
    feature, _, folder = name.rpartition("/")
    kind = folder.removeprefix(f"km{clusters}") if folder.startswith("km") else folder
    if "-pieces" in folder:
        units, _, _ = folder.partition("-pieces")
        return f"{feature or '.'} {units}", f"pieces {clusters}"
    return (feature or "." if not kind else name), f"{clusters}"


def _runs(labels, offsets, milliseconds):
    """Lengths of stretches of one label within utterances."""
    if not len(labels):
        return {"number": 0, "mean_ms": 0.0, "single_share": 0.0, **{f"p{p}_ms": 0.0 for p in RUN_PERCENTILES}}
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    starts = np.union1d(starts, offsets[:-1][np.diff(offsets) > 0])
    lengths = np.diff(np.append(starts, len(labels)))
    percentiles = {f"p{p}_ms": float(np.percentile(lengths, p)) * milliseconds for p in RUN_PERCENTILES}
    return {
        "number": len(lengths),
        "mean_ms": float(lengths.mean()) * milliseconds,
        "single_share": float((lengths == 1).mean()),
        **percentiles,
    }


def _entropy(counts):
    """Entropy of counts, in bits."""
    counts = np.asarray(counts, dtype=np.float64)
    counts = counts[counts > 0]
    share = counts / counts.sum() if len(counts) else counts
    return max(float(-(share * np.log2(share)).sum()), 0.0)


def _natural(name):
    """Sort key: numbers in a name count as numbers."""
    parts, digits = [], ""
    for c in f"{name} ":
        if c.isdigit():
            digits += c
        else:
            if digits:
                parts.append((0, int(digits), ""))
                digits = ""
            parts.append((1, 0, c))
    return parts
