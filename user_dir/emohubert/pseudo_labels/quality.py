"""What frame labels say: how evenly clusters are used, how long they last, and how much of emotion and speaker they hold."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from ..core.errors import InputError
from ..core.files import natural
from ..core.plotting import COLOURS, GREY, MARKERS, new_figure, save_figure, short
from ..corpus.audio import SAMPLE_RATE
from ..corpus.frame_labels import read_frame_labels
from ..corpus.manifest import NO_EMOTION, read_dictionary

_SHUFFLES = 10


def of_tree(folder, split):
    """{name: `quality`} of the label sets of a Split below a folder (itself included), in natural order; InputError if there are none."""
    folder, emotions = Path(folder), [None if e == NO_EMOTION else e for e in split.emotions or ()]
    targets = {name: values for name, values in (("emotion", emotions), ("speaker", split.speakers)) if values}
    found = {p.parent.relative_to(folder).as_posix(): p for p in folder.rglob(f"{split.name}.km") if not p.parent.name.startswith(".")}
    if not found:
        raise InputError(f"{folder}: holds no {split.name}.km, nor does any folder in it; make labels with tools/make_labels.py")
    results = {}
    for name in sorted(found, key=natural):
        symbols = read_dictionary(found[name].with_name("dict.km.txt"))
        labels = read_frame_labels(found[name], symbols, split.n_samples)
        results[name] = quality(labels.labels, labels.offsets, len(symbols), targets, labels.hop)
    return results


def quality(labels, offsets, clusters, targets, hop, seed=1):
    """Measures of one set of `labels`, the cluster of every frame, utterance after utterance, of which each starts at one of `offsets`, the
    last of them the end. `targets`: {name: value of each utterance, or None where it has none}; `hop`: samples between two labels.

    Returns a dict: `sizes` (perplexity: `clusters` if all are equal) and `runs` (stretches of one label within an utterance), and for
    each target the measures of `association` with `nmi_chance`: the mean NMI when the values are shuffled, with `seed`, among the
    utterances. It grows with the clusters and shrinks with the audio.
    """
    labels, offsets = np.asarray(labels), np.asarray(offsets)
    sizes = np.bincount(labels, minlength=clusters)
    starts = np.union1d(np.flatnonzero(np.diff(labels, prepend=-1)), offsets[:-1][np.diff(offsets) > 0])
    found = {}
    for name, values in targets.items():
        classes = {value: i for i, value in enumerate(sorted({v for v in values if v is not None}))}
        if len(classes) > 1:
            codes, rng = np.array([classes.get(v, -1) for v in values]), np.random.default_rng(seed)
            first, *shuffled = (
                association(_contingency(labels, clusters, np.repeat(c, np.diff(offsets)), len(classes)))
                for c in (codes, *(rng.permutation(codes) for _ in range(_SHUFFLES)))
            )
            chance = float(np.mean([measures["nmi"] for measures in shuffled]))
            found[name] = {"classes": len(classes), **first, "nmi_chance": chance}
    used, share = int((sizes > 0).sum()), float(sizes.max() / max(sizes.sum(), 1))
    return {
        "clusters": clusters,
        "frames": len(labels),
        "sizes": {"used": used, "largest_share": share, "perplexity": float(np.exp(entropy(sizes))) if len(labels) else 0.0},
        "runs": {"number": len(starts), "mean_ms": 1000 * len(labels) * hop / SAMPLE_RATE / max(len(starts), 1)},
        "targets": found,
    }


def _contingency(labels, clusters, codes, classes):
    """Frames by cluster and class; frames without a class (−1) are left out."""
    known = codes >= 0
    cells = labels[known].astype(np.int64) * classes + codes[known]
    return np.bincount(cells, minlength=clusters * classes).reshape(clusters, classes)


def association(counts):
    """Purity and mutual information of a table of counts, clusters × classes. Purity is the share of frames whose class is the commonest of
    their cluster (`majority`: if there were one cluster); the normalised mutual information is I / mean(H(cluster), H(class));
    `mutual_information` and `entropy` (of the classes) are in bits."""
    counts = np.asarray(counts)
    if not (total := counts.sum()):
        return dict.fromkeys(("purity", "majority", "mutual_information", "entropy", "nmi"))
    clusters, classes = entropy(counts.sum(1), base=2), entropy(counts.sum(0), base=2)
    information = max(float(mutual_info_score(None, None, contingency=counts)), 0.0) / np.log(2)
    return {
        "purity": float(counts.max(1).sum() / total),
        "majority": float(counts.sum(0).max() / total),
        "mutual_information": information,
        "entropy": float(classes),
        "nmi": float(2 * information / (clusters + classes)) if clusters + classes else 1.0,
    }


def table(results):
    """The measures of several sets as text."""
    rows = []
    for name, r in results.items():
        sizes = r["sizes"]
        row = {"labels": name, "K": r["clusters"], "used": sizes["used"], "perplexity": f"{sizes['perplexity']:.1f}"}
        row |= {"largest": f"{100 * sizes['largest_share']:.1f}%", "run ms": f"{r['runs']['mean_ms']:.0f}"}
        for target, t in r["targets"].items():
            row |= {f"{target} purity": f"{t['purity']:.3f}", f"({target} majority)": f"({t['majority']:.3f})"}
            row |= {f"{target} NMI": f"{t['nmi']:.4f}", f"({target} chance)": f"({t['nmi_chance']:.4f})"}
            row[f"{target} bits"] = f"{t['mutual_information']:.3f}"
        rows.append(row)
    return pd.DataFrame(rows).fillna("–").to_string(index=False)


def draw(results, path):
    """A PNG: NMI with emotion and with speaker of every set, one line each from top to bottom, and of shuffled values (chance)."""
    targets = list(dict.fromkeys(name for r in results.values() for name in r["targets"]))
    panels, rows = max(len(targets), 1), np.arange(len(results))
    size = 2.5 + 3 * panels, 1.2 + 0.3 * len(results)
    with new_figure(*size, 1, panels, sharey=True, squeeze=False) as (figure, axes):
        for ax, target, colour, marker in zip(axes[0], targets, COLOURS, MARKERS, strict=False):
            for name, style in (("nmi", {"color": colour, "marker": marker}), ("nmi_chance", {"color": GREY, "marker": "|"})):
                found = [r["targets"].get(target, {}).get(name) for r in results.values()]
                ax.plot([np.nan if v is None else v for v in found], rows, linestyle="", **style)
            ax.set(title=target, xlabel="normalised mutual information", xlim=(0, None))
            ax.grid(axis="x", alpha=0.3)
            ax.legend(["of the labels", "by chance"])
        axes[0, 0].set_yticks(rows, [short(name, 24) for name in results])
        axes[0, 0].invert_yaxis()
        save_figure(figure, path)
