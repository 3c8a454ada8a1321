"""Tables of results: one row per evaluation, each with the setting that its numbers come from."""

from pathlib import Path

from ..core.errors import InputError
from ..core.files import make_folder, read_json, write_json, write_lines
from ..corpus.manifest import read_table
from . import metrics


def read_results(rows, macro_f1=False):
    """Collect evaluations into rows.

    Args:
        rows: list of (name, folder with a metrics.json); equal names are one system's folds or seeds.
        macro_f1: of classes, also that score.

    Returns:
        list of {"name", "setting", "runs", "utterances", "scores": {score: [a value per run]}}, in order. Scores are UA and WA
        in percent, and CCC per dimension.

    Raises:
        InputError: a metrics.json is missing or is not one.
    """
    systems = {}
    for name, folder in rows:
        path = Path(folder) / "metrics.json"
        found = read_json(path)
        scores = {}
        if "UA" in found:
            scores = {"UA %": 100 * found["UA"], "WA %": 100 * found["WA"]}
            scores |= {"macro F1 %": 100 * found["macro_f1"]} if macro_f1 else {}
        for dimension, values in found.get("dims", {}).items():
            scores[f"CCC {dimension}"] = float("nan") if values["ccc"] is None else values["ccc"]
        if not scores:
            raise InputError(f"{path}: neither classification nor regression scores in it; make it with tools/evaluate.py")
        key = (name, tuple(scores))
        system = systems.setdefault(key, {"name": name, "setting": [], "runs": 0, "utterances": 0, "scores": {s: [] for s in scores}})
        system["setting"] = list(dict.fromkeys([*system["setting"], found.get("setting", "not recorded")]))
        system["runs"] += 1
        system["utterances"] += found["n"]
        for score, value in scores.items():
            system["scores"][score].append(value)
    return list(systems.values())


def of_folds(rows):
    """Rows in which a folder of tools/run_folds.py stands for its runs, and, with several folds, for what is pooled over them.

    Args:
        rows: list of (name, folder with a metrics.json, or written by tools/run_folds.py).

    Returns:
        list of (name, folder with a metrics.json).

    Raises:
        InputError: a folder is neither.
    """
    found = []
    for name, folder in rows:
        folder = Path(folder)
        if (folder / "metrics.json").is_file():
            found.append((name, folder))
            continue
        runs = read_json(folder / "results.json").get("runs")
        if not runs:
            raise InputError(f"{folder}: no metrics.json and no runs in results.json; give the output of tools/evaluate.py or run_folds.py")
        found += [(name, folder / run["folder"]) for run in runs]
        seeds = dict.fromkeys(run["seed"] for run in runs)
        found += [(f"{name}, folds pooled", p) for seed in seeds if (p := folder / "pooled" / f"seed{seed}").is_dir()]
    return found


def read_published(path):
    """Published numbers to stand beside ours: a TSV with the columns `system`, scores named as in our tables, and `source`.

    Returns:
        system → {column: text}; {} for None.

    Raises:
        InputError: not such a table.
    """
    if path is None:
        return {}
    table = read_table(path)
    for column in ("system", "source"):
        if column not in table:
            raise InputError(f"{path}:1: no column “{column}”; the header is system, scores named as in our tables, source")
    return {name: {column: values[i] for column, values in table.items()} for i, name in enumerate(table["system"])}


def write_results(path, systems, title, notes=(), published=None, **details):
    """Write `path.md` and `path.json`; returns the table's lines.

    Args:
        path: without an ending.
        systems: from `read_results`.
        title: heading; say the protocol in it.
        notes: sentences below the heading.
        published: from `read_published`: columns with the paper's numbers, for the systems it has.
        details: what else the JSON file is to hold.
    """
    path, published, lines = Path(path), published or {}, []
    make_folder(path.parent)
    for kind in dict.fromkeys(tuple(s["scores"]) for s in systems):
        of_kind = [s for s in systems if tuple(s["scores"]) == kind]
        beside = [score for score in kind if any(published.get(s["name"], {}).get(score) for s in of_kind)]
        header = ["system", "setting", "runs", "utterances", *kind, *(f"{score}, paper" for score in beside)]
        cells = [_cells(s) + [published.get(s["name"], {}).get(score, "") for score in beside] for s in of_kind]
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        for row in (header, ["-" * w for w in widths], *cells):
            lines.append("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        lines.append("")
    used = [published[s["name"]] for s in systems if s["name"] in published]
    notes = [*notes, *(f"paper: {source}" for source in dict.fromkeys(row["source"] for row in used))]
    content = {"title": title, "notes": notes, "systems": systems, **({"published": used} if used else {}), **details}
    write_json(path.with_suffix(".json"), content)
    head = [f"# {title}", "", *(f"- {note}" for note in notes), *[""] * bool(notes)]
    write_lines(path.with_suffix(".md"), [*head, *lines[:-1]])
    return lines[:-1]


def _cells(system):
    scores = []
    for score, values in system["scores"].items():
        digits = 1 if score.endswith("%") else 3
        mean, std, _ = metrics.mean_std(values)
        scores.append(f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if len(values) > 1 else ""))
    return [system["name"], "; ".join(system["setting"]), str(system["runs"]), str(system["utterances"]), *scores]
