"""How much a trained model loses on degraded recordings: noise, reverberation, a narrow band.

Every utterance is degraded in the same way whatever the batch, the number of processes and the model: by its place in the split
and the seed alone. The same noise and the same room come back at every level, so that neighbouring conditions differ in level only.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..core.errors import InputError
from ..core.files import Stamp, make_folder, write_json, write_lines
from ..corpus import synthetic
from ..data import degradations
from . import scoring
from .predictions import read_predictions, write_predictions
from .results import markdown_table

SCORES = {"UA": "UA", "WA": "WA", "macro_f1": "macro F1"}
"""Scores of classes and how they are called; for dimensions it is the CCC of each."""
DEFAULTS = {"snr": (30, 20, 10, 0), "t60": (0.3, 0.6, 1.2), "cutoff": (4000, 2000, 1000)}
"""Conditions from mild to severe, see `conditions`."""


@dataclass(frozen=True)
class Condition:
    """One way to degrade recordings; a `transform` of SpeechDataset."""

    name: str  # in words, such as "white noise 20 dB"
    change: Callable  # of (samples, numpy Generator)
    keeps_length = True

    def __call__(self, samples, rng):
        """The degraded waveform."""
        return self.change(samples, rng)


def conditions(values=DEFAULTS, noises=("white", "babble")):
    """The conditions of an evaluation, without the clean recordings. `values` are the levels of each kind, named as in DEFAULTS: `snr`
    signal-to-noise ratios in dB, `t60` reverberation times in seconds, `cutoff` frequencies in Hz; `noises` are of `degradations.NOISES`.
    InputError: a value is impossible, or nothing is left to do."""
    if wrong := [v for v in values["snr"] if not math.isfinite(v)]:
        raise InputError(f"--snr {wrong[0]}: not a finite number")
    found = [Condition(f"{kind} noise {v:g} dB", partial(_noise, kind, v)) for kind in noises for v in values["snr"]]
    found += [Condition(f"reverberation {v:g} s", partial(_reverb, v)) for v in values["t60"]]
    found += [Condition(f"low-pass {v:g} Hz", lambda x, rng, v=v: degradations.low_pass(x, v)) for v in values["cutoff"]]
    if not found:
        raise InputError("no condition is left; give values to at least one of --snr --t60 --cutoff")
    for condition in found:  # impossible values fail at once, not after an hour
        condition(np.ones(degradations.SAMPLE_RATE // 10, dtype=np.float32), np.random.default_rng(0))
    return list({c.name: c for c in found}.values())


def _noise(kind, snr, samples, rng):
    return degradations.add_noise(samples, degradations.make_noise(kind, len(samples), rng), snr)


def _reverb(t60, samples, rng):
    return degradations.reverberate(samples, degradations.impulse_response(t60, 0.0, rng))  # as much direct as reverberant energy


def evaluate(directory, task, model, split, chosen, settings, seed=1, repeats=2000, overwrite=False, **options):
    """Predict a split under every condition, and write and return what came out.

    Writes `conditions/NAME.tsv`, the predictions under each condition, which a later run with the same settings takes over; then
    `robustness.md`, `robustness.png` and, last, `robustness.json`. `chosen` are of `conditions`, `settings` what predictions depend on
    besides condition and seed, as for a Stamp, `seed` that of noise and rooms, and of the bootstrap, `options` those of `predict_split`.

    Returns {"title", "split", "setting", "speaker_embedding", "n", "speakers", "seed", "repeats", "conditions": list of {"name", "scores":
    name → {"value", "ci", "change", "change_ci", "p"}}}, the clean recordings first; `change` is against them, see `scoring.paired_tests`.
    """
    from .inference import predict_split, speaker_setting

    directory = make_folder(directory)
    folder = make_folder(directory / "conditions")
    (directory / "robustness.json").unlink(missing_ok=True)
    task.cfg.seed = seed  # the dataset's: nothing but degradation is drawn outside of training
    found, rows, every = [], [], []
    for condition in [Condition("clean", None), *chosen]:
        stem = re.sub(r"[^a-z0-9.]+", "_", condition.name.lower()).strip("_")
        path, transform = folder / f"{stem}.tsv", condition if condition.change else None
        depends = [condition.name, seed, degradations.VERSION, synthetic.VERSION] if transform else []
        stamp = Stamp(folder / f".{stem}.json", {"depends": [settings, *depends]}, [path])
        if overwrite or not stamp.is_current():
            stamp.clear()
            write_predictions(path, predict_split(task, model, split, transform=transform, **options)[0])
            stamp.write()
        found.append(read_predictions(path))  # as they are in the file, made now or before
        every.append(scoring.evaluate(found[-1], repeats=repeats, seed=seed))
        if not every[-1]["per_speaker"]:
            raise InputError(f"{split.tsv}: no utterance of a known speaker has a reference; give a split with labels and speakers")
        tests = scoring.paired_tests(found[-1], found[0], repeats, seed) if transform else {}
        rows.append({"name": condition.name, "scores": _scores(every[-1], tests)})
    counts = {"n": every[0]["n"], "speakers": len(every[0]["per_speaker"]), "seed": seed, "repeats": repeats}
    report = {"title": "Robustness", "split": str(split.tsv), **speaker_setting(task, split), **counts, "conditions": rows}
    write_lines(directory / "robustness.md", markdown(report))
    draw(directory / "robustness.png", report)
    write_json(directory / "robustness.json", report)
    return report


def _scores(scores, tests):
    """Values with their intervals, and changes with theirs; without tests (the clean recordings) nothing has changed."""
    if "UA" in scores:
        found = [(shown, scores[key], scores["ci"][key], key) for key, shown in SCORES.items()]
    else:
        found = [(f"CCC {d}", values["ccc"], scores["ci"]["dims"][d]["ccc"], f"ccc_{d}") for d, values in scores["dims"].items()]
    unchanged, result = {"difference": 0.0, "ci": [0.0, 0.0], "p": None}, {}
    for name, value, ci, key in found:
        test = tests.get(key, unchanged)
        result[name] = {"value": value, "ci": ci, "change": test["difference"], "change_ci": test["ci"], "p": test["p"]}
    return result


def markdown(report):
    """The table for people: lines of text."""
    header, rows = ["condition", *(h for name in report["conditions"][0]["scores"] for h in (name, "change"))], []
    for row in report["conditions"]:
        cells = [row["name"]]
        for s in row["scores"].values():
            cells.append(_with_interval(f"{s['value']:.3f}", s["ci"]))
            cells.append("" if s["p"] is None else _with_interval(f"{s['change']:+.3f}", s["change_ci"]))
        rows.append(cells)
    return markdown_table(header, rows)


def _with_interval(text, ci):
    return text if any(map(math.isnan, ci)) else f"{text} [{ci[0]:.3f}, {ci[1]:.3f}]"


def draw(path, report):
    """Draw the changes of UA and macro F1, or of every CCC, with their intervals, a line for each condition."""
    from ..core.plotting import WIDTH, new_figure, save_figure
    from .figures import style_of

    rows = report["conditions"][1:]
    with new_figure(WIDTH, 1.4 + 0.3 * len(rows)) as (figure, axes):
        for i, name in enumerate(name for name in rows[0]["scores"] if name != SCORES["WA"]):
            scores = [row["scores"][name] for row in rows]
            change, (low, high) = np.array([s["change"] for s in scores]), np.array([s["change_ci"] for s in scores]).T
            axes.errorbar(
                change, np.arange(len(rows)) + 0.15 * i, xerr=[change - low, high - change], linestyle="", **style_of(i, label=name)
            )
        axes.axvline(0, color="black", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.invert_yaxis()
        axes.set(xlabel="change against clean recordings", title=f"Robustness, {report['n']} utterances")
        figure.legend(loc="outside lower center", borderaxespad=0, ncols=3)
        save_figure(figure, path)
