"""Tables of results: one row per evaluation, each with the setting that its numbers come from."""

from pathlib import Path

from . import metrics
from .errors import InputError
from .files import make_folder, read_json, write_json, write_lines


def read_results(rows):
    """Collect evaluations into rows.

    Args:
        rows: list of (name, folder with a metrics.json); equal names are one system's folds or seeds.

    Returns:
        list of {"name", "setting", "runs", "utterances", "speakers", "scores": {score: [a value per run]}}, in order. Scores are UA and WA in
        percent, and CCC per dimension.

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


def write_results(path, systems, title):
    """Write `path.md` and `path.json`; returns the table's lines.

    Args:
        path: without an ending.
        systems: from `read_results`.
        title: heading; say the protocol in it.
    """
    path = Path(path)
    make_folder(path.parent)
    lines = [f"# {title}", ""]
    for kind in dict.fromkeys(tuple(s["scores"]) for s in systems):
        header = ["system", "setting", "runs", "utterances", *kind]
        cells = [_cells(s) for s in systems if tuple(s["scores"]) == kind]
        widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
        lines += [_line(header, widths), _line(["-" * w for w in widths], widths), *(_line(row, widths) for row in cells), ""]
    write_json(path.with_suffix(".json"), {"title": title, "systems": systems})
    write_lines(path.with_suffix(".md"), lines[:-1])
    return lines[2:-1]


def _cells(system):
    scores = [_spread(values, score) for score, values in system["scores"].items()]
    return [system["name"], "; ".join(system["setting"]), str(system["runs"]), str(system["utterances"]), *scores]


def _spread(values, score):
    digits = 1 if score.endswith("%") else 3
    mean, std, _ = metrics.mean_std(values)
    return f"{mean:.{digits}f}" if len(values) == 1 else f"{mean:.{digits}f} ± {std:.{digits}f}"


def _line(cells, widths):
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
