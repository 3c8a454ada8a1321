"""Tables of results: one row per system, each with the setting that its numbers come from."""

from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import make_folder, read_json, write_json, write_lines
from ..corpus.manifest import read_table
from ..training.curves import read_training_log
from .metrics import mean_std

OVER_SPEAKERS = " over speakers"
"""Ending of a score's name: its mean over speakers, where the name without the ending is of all utterances."""
POOLED = ", folds pooled"
"""Ending of a system's name: the predictions of all folds as one set."""


def read_results(rows, macro_f1=False, over_speakers=False):
    """`as_systems` of (name, folder with a metrics.json): UA and WA (and macro F1) in percent, CCC per dimension (and over speakers)."""

    def scored(name, folder):
        path = Path(folder) / "metrics.json"
        found = read_json(path)
        shown = {"UA %": "UA", "WA %": "WA"} | ({"macro F1 %": "macro_f1"} if macro_f1 else {})
        scores = {score: 100 * found[key] for score, key in shown.items()} if "UA" in found else {}
        shown = {"": "ccc"} | ({OVER_SPEAKERS: "speaker_ccc_mean"} if over_speakers else {})
        for dimension, values in found.get("dims", {}).items():
            scores |= {f"CCC {dimension}{which}": float("nan") if values[key] is None else values[key] for which, key in shown.items()}
        if not scores:
            raise InputError(f"{path}: neither classification nor regression scores in it; make it with tools/evaluate.py")
        return name, found.get("setting", "not recorded"), found["n"], scores

    return as_systems(scored(*row) for row in rows)


def as_systems(runs):
    """Systems from runs, (name, setting, utterances, {score: value}): equal names with the same scores are one system's folds or
    seeds. Returns a list of {"name", "setting", "runs", "utterances", "scores": {score: [a value per run]}}, in order."""
    systems = {}
    for name, setting, utterances, scores in runs:
        new = {"name": name, "setting": [], "runs": 0, "utterances": 0, "scores": {score: [] for score in scores}}
        system = systems.setdefault((name, *scores), new)
        system["setting"] += [setting] * (setting not in system["setting"])
        system["runs"] += 1
        system["utterances"] += utterances
        for score, value in scores.items():
            system["scores"][score].append(value)
    return list(systems.values())


def by_scores(systems):
    """Systems in groups with the same scores: list of (names of the scores, systems)."""
    groups = {}
    for system in systems:
        groups.setdefault(tuple(system["scores"]), []).append(system)
    return list(groups.items())


def of_folds(rows):
    """Rows (name, folder with a metrics.json), from rows where a folder may also be the output of tools/run_folds.py. That stands for its
    runs, and, with several folds, for what is pooled over them. InputError for any other folder."""
    found = []
    for name, folder in rows:
        folder = Path(folder)
        if (folder / "metrics.json").is_file():
            found.append((name, folder))
            continue
        if not (runs := read_json(folder / "results.json").get("runs")):
            raise InputError(f"{folder}: no metrics.json and no runs in results.json; give the output of tools/evaluate.py or run_folds.py")
        found += [(name, folder / run["folder"]) for run in runs]
        seeds = dict.fromkeys(run["seed"] for run in runs)
        found += [(f"{name}{POOLED}", p) for seed in seeds if (p := folder / "pooled" / f"seed{seed}").is_dir()]
    return found


def add_losses(systems, pretrained):
    """`as_systems` with the best validation loss of `pretrained`, (name, folder of a training), in bits; InputError: none was logged."""
    for name, folder in pretrained:
        curves = read_training_log(Path(folder) / "hydra_train.log").get("loss", {})
        if not (losses := [values for split, (_, values) in curves.items() if split != "train"]):
            raise InputError(f"{folder}/hydra_train.log: no validation loss in it; give the folder of a pretraining with validation")
        for system in (s for s in systems if s["name"] == name):
            system["scores"].setdefault("validation loss", []).append(float(min(losses[0])))
    return systems


def paired(rows, reference):
    """Lines of a table: how each system differs from the `reference` for the speakers that both were tested on. `rows`: as from `of_folds`. A
    speaker's score is UA in percent, or CCC over dimensions, as a mean over runs; the interval is Student's for the mean difference."""
    from scipy.stats import t

    known = {}
    for name, folder in rows:
        for speaker, scores in read_json(Path(folder) / "metrics.json")["per_speaker"].items():
            ccc = [values["ccc"] for values in scores.get("dims", {}).values()]
            score = 100 * scores["UA"] if "UA" in scores else np.mean([np.nan if v is None else v for v in ccc])
            known.setdefault(name, {}).setdefault(speaker, []).append(score)
    if reference not in known:
        raise InputError(f"--paired {reference}: no system of that name; there are {', '.join(known)}")
    means, cells = {name: {s: np.mean(v) for s, v in of.items()} for name, of in known.items()}, []
    for name in (n for n in means if n != reference and not n.endswith(POOLED)):
        pairs = [(score, means[reference][s]) for s, score in means[name].items() if s in means[reference]]
        difference = np.array([a - b for a, b in pairs if np.isfinite(a - b)])
        if (n := len(difference)) > 1:
            reach = t.ppf(0.975, n - 1) * difference.std(ddof=1) / n**0.5
            low, high, mean = (f"{difference.mean() + x:+.3g}" for x in (-reach, reach, 0))
            cells.append([name, str(n), mean, f"{low} to {high}", f"{(difference > 0).sum()} of {n}"])
    return markdown_table(["system", "speakers", f"difference from {reference}", "95 % interval", "better for"], cells) if cells else []


def read_published(path):
    """Published numbers to stand beside ours: system → {column: text}, {} for no path. From a TSV with the columns `system`, scores named
    as in our tables, and `source`; InputError for another file."""
    if path is None:
        return {}
    table = read_table(path)
    for column in ("system", "source"):
        if column not in table:
            raise InputError(f"{path}:1: no column “{column}”; the header is system, scores named as in our tables, source")
    return {name: {column: values[i] for column, values in table.items()} for i, name in enumerate(table["system"])}


def write_results(path, systems, title, notes=(), published=None, more=(), **details):
    """Write `path.md` and `path.json`; returns the table's lines. `systems`: of `as_systems`; `title`: should say the protocol; `notes`:
    sentences; `published`: of `read_published`, for the paper's numbers; `more`: another table; `details`: what else the JSON file holds."""
    path, published, lines = Path(path), published or {}, []
    make_folder(path.parent)
    for kind, of_kind in by_scores(systems):
        beside = [score for score in kind if any(published.get(s["name"], {}).get(score) for s in of_kind)]
        header = ["system", "setting", "runs", "utterances", *kind, *(f"{score}, paper" for score in beside)]
        cells = []
        for s in of_kind:
            scores = [spread(values, score) for score, values in s["scores"].items()]
            scores += [published.get(s["name"], {}).get(score, "") for score in beside]
            cells.append([s["name"], "; ".join(s["setting"]), str(s["runs"]), str(s["utterances"]), *scores])
        lines += ["", *markdown_table(header, cells)]
    lines += ["", *more] * bool(more)
    used = [published[s["name"]] for s in systems if s["name"] in published]
    notes = [*notes, *(f"paper: {source}" for source in dict.fromkeys(row["source"] for row in used))]
    content = {"title": title, "notes": notes, "systems": systems, **({"published": used} if used else {}), **details}
    write_json(path.with_suffix(".json"), content)
    write_lines(path.with_suffix(".md"), [f"# {title}", *[""] * bool(notes), *(f"- {note}" for note in notes), *lines])
    return lines[1:]


def markdown_table(header, rows):
    """Lines of a table for people, columns aligned; all cells are texts."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rows = (header, ["-" * w for w in widths], *rows)
    return ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]


def spread(values, score):
    """A system's score as text: mean ± standard deviation of several runs; percentages with one decimal."""
    mean, std, n = mean_std(values)
    digits = 1 if score.endswith("%") else 3
    return "–" if not n else f"{mean:.{digits}f}" if len(values) == 1 else f"{mean:.{digits}f} ± {std:.{digits}f}"
