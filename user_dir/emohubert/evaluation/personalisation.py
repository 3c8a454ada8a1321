"""Is personalising worth it for a corpus? (Tran, Yin & Soleymani 2023, figure 1, with a support vector machine for the network.)

For every speaker, half of whose utterances are the test, machines are trained on the features of n speakers, in three settings:
`unheard`: n others; `heard`: n - 1 others and the speaker's other half; `normalised`: n others, every speaker's features brought to zero
mean and unit variance by that speaker's unlabelled audio. What `heard` gains over `unheard` is what knowing a speaker can bring, with labels;
what `normalised` gains is there to be had without. And for every speaker, whether those are recognised worse whose features or labels
differ from the others': the shift is the Kullback-Leibler divergence, mean over dimensions, of normal distributions (features,
dimensions) or class frequencies with one more of each.
"""

from collections import defaultdict

import numpy as np
from joblib import Parallel, delayed
from scipy.stats import pearsonr
from sklearn.metrics import recall_score
from sklearn.preprocessing import StandardScaler

from ..core.cli import progress
from ..core.plotting import WIDTH, new_figure, save_figure
from . import baseline, figures
from .metrics import ccc

SETTINGS = ("unheard", "normalised", "heard")


def study(x, targets, speakers, counts=None, seed=1, workers=1):
    """Scores of every setting over the number of training speakers, and shifts of speakers against scores, of features `x` (n, width), of
    `targets` (n,), names of classes or numbers, and `speakers` (n,), ids. `counts`: of training speakers (default: five, from 2 up).

    Returns {"score": "UA" or "CCC", "counts": […], "scores": {setting: {speaker: [a value per count]}}, "shifts": {"feature": {speaker:
    value}, "label": …}, "correlations": {"feature": [r, p] or None, …} of shifts with the speakers' `unheard` scores for the largest count}.
    """
    targets, speakers = np.asarray(targets), np.asarray(speakers)
    ids = sorted(set(speakers))
    numeric = targets.dtype.kind == "f"
    counts = counts or sorted({int(n) for n in np.geomspace(2, len(ids) - 1, 5).round()})
    jobs, z = [(s, n) for s in ids for n in counts], baseline.normalised(x, speakers)
    found = (delayed(_scores)(x, z, targets, speakers, s, n, [seed, ids.index(s)]) for s, n in jobs)
    found = progress(Parallel(n_jobs=workers, return_as="generator")(found), "support vector machines", total=len(jobs), unit="× 3")
    scores = {setting: defaultdict(list) for setting in SETTINGS}
    for (s, _), values in zip(jobs, found, strict=True):
        for setting, value in zip(SETTINGS, values, strict=True):
            scores[setting][s].append(value)
    scaled = StandardScaler().fit_transform(x)
    label = targets[:, None] if numeric else (targets[:, None] == np.unique(targets)).astype(float)
    shifts = {
        "feature": {s: _gaussian_divergence(scaled[speakers == s], scaled[speakers != s]) for s in ids},
        "label": {s: (_gaussian_divergence if numeric else _class_divergence)(label[speakers == s], label[speakers != s]) for s in ids},
    }
    last = [scores["unheard"][s][-1] for s in ids]
    correlations = {kind: _correlation([of[s] for s in ids], last) for kind, of in shifts.items()}
    scores = {setting: dict(of) for setting, of in scores.items()}
    return {"score": "CCC" if numeric else "UA", "counts": counts, "scores": scores, "shifts": shifts, "correlations": correlations}


def _scores(x, normalised, targets, speakers, speaker, n, seed):
    """One speaker's scores in the three settings, for n training speakers."""
    rng = np.random.default_rng(seed)
    own = rng.permutation(np.flatnonzero(speakers == speaker))
    test, half = own[: len(own) // 2], own[len(own) // 2 :]
    others = rng.permutation(sorted(set(speakers) - {speaker}))
    unheard = np.flatnonzero(np.isin(speakers, others[:n]))
    heard = np.concatenate([np.flatnonzero(np.isin(speakers, others[: n - 1])), half])
    settings = ((x, unheard), (normalised, unheard), (x, heard))
    found = [baseline.machine(z[train], targets[train]).predict(z[test]) for z, train in settings]
    if targets.dtype.kind == "f":
        return [ccc(targets[test], predicted) for predicted in found]
    return [recall_score(targets[test], predicted, labels=np.unique(targets[test]), average="macro") for predicted in found]


def _correlation(a, b):
    """[r, p], or None where one of them is the same for all."""
    return None if np.ptp(a) < 1e-9 or np.ptp(b) < 1e-9 else list(map(float, pearsonr(a, b)))


def _gaussian_divergence(own, others):
    """KL(own ‖ others) of normal distributions, mean over dimensions: arrays (n, width)."""
    a, b = own.var(0) + 1e-6, others.var(0) + 1e-6
    return float(np.mean(0.5 * (np.log(b / a) + (a + (own.mean(0) - others.mean(0)) ** 2) / b - 1)))


def _class_divergence(own, others):
    """KL(own ‖ others) of class frequencies, with one more of each: arrays (n, classes) of zeros and ones."""
    p, q = ((c.sum(0) + 1) / (len(c) + c.shape[1]) for c in (own, others))
    return float(np.sum(p * np.log(p / q)))


def lines(found):
    """What was found, for people."""
    score, counts = found["score"], found["counts"]
    means = {setting: np.mean(list(of.values()), axis=0) for setting, of in found["scores"].items()}
    text = [f"{score}, mean over {len(found['scores']['unheard'])} speakers"]
    text.append(f"{'training speakers':<20}" + "".join(f"{n:>8}" for n in counts))
    text += [f"{setting:<20}" + "".join(f"{value:8.3f}" for value in means[setting]) for setting in SETTINGS]
    for setting in SETTINGS[1:]:
        gains = np.array([of[-1] - found["scores"]["unheard"][s][-1] for s, of in found["scores"][setting].items()])
        better = f"better for {(gains > 0).sum()} of {len(gains)} speakers"
        text.append(f"{setting} - unheard, {counts[-1]} speakers: {gains.mean():+.3f}, {better}")
    for kind, pair in found["correlations"].items():
        value = "none, all are alike" if pair is None else "{:+.2f} (p = {:.2g})".format(*pair)
        text.append(f"correlation of a speaker's {kind} shift with {score}: {value}")
    return text


def draw(folder, found):
    """`speakers.png`, scores over the number of training speakers, and `shifts.png`, each speaker's shift against the score."""
    with new_figure(WIDTH, 3.4) as (figure, axes):
        for i, (setting, of) in enumerate(found["scores"].items()):
            axes.plot(found["counts"], np.mean(list(of.values()), axis=0), label=setting, **figures.style_of(i))
        axes.set(xlabel="training speakers", ylabel=found["score"], xscale="log", xticks=found["counts"])
        axes.set_xticklabels(found["counts"])
        axes.minorticks_off()
        axes.legend()
        save_figure(figure, folder / "speakers.png")
    with new_figure(WIDTH, 3.0, 1, 2, sharey=True) as (figure, both):
        for axes, (kind, of) in zip(both, found["shifts"].items(), strict=True):
            axes.scatter(list(of.values()), [found["scores"]["unheard"][s][-1] for s in of], s=18, color=figures.COLOURS[0])
            axes.set_xlabel(f"{kind} shift (KL)")
            if (pair := found["correlations"][kind]) is not None:
                axes.set_title(f"r = {pair[0]:+.2f}")
        both[0].set_ylabel(f"{found['score']}, unheard")
        save_figure(figure, folder / "shifts.png")
