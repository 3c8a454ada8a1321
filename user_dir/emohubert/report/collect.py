"""What is found below the folder of a run, by file names: evaluations, trainings, corpora, checks, audits and results."""

import logging
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..core.errors import InputError
from ..core.files import natural, read_json, sha256
from ..training.curves import read_training_log

logger = logging.getLogger(__name__)

# Shapes of JSON, as `fits` understands them. NaN stands for null.
NUMBER = (int, float)
_GROUPS = {"*": {"UA?": NUMBER, "dims?": {"*": {"ccc?": NUMBER}}}}
_METRICS = {"n": int, "per_speaker": _GROUPS, "by": {"*": _GROUPS}, "difference?": _GROUPS, "ci?": {"dims?": {"*": dict}}, "ece?": NUMBER}
_VOTES = dict.fromkeys(("n", "kl", "js", "tv"), NUMBER)
_NUMBERS = dict.fromkeys(("UA", "WA", "macro_f1", "aurc?"), NUMBER)
_CLASSES = {**_METRICS, **_NUMBERS, "classes": [str], "confusion": [[int]], "votes?": _VOTES}
_DIMENSIONS = {**_METRICS, "dims": {"*": dict.fromkeys(("ccc", "pearson", "rmse"), NUMBER)}}
_CALIBRATION = {"paired": {"*": dict}}
_CHECK = {"errors": list, "leaks": [{"shared?": list}]}
_AUDIT = {"problems": list, "leaks": [dict]}
SYSTEMS = {"systems": [{"name": str, "setting?": [str], "scores": {"*": [NUMBER]}}]}
_FILES = {  # name of a file → attribute of RunFolder that holds it, and its shape
    r"corpus\.json": ("corpora", dict),
    r"check_manifest.*\.json": ("checks", _CHECK),
    r"audit\.json": ("audits", _AUDIT),
    r"(results|robustness|personalisation|summary)\.json": ("results", (dict, list)),
}


@dataclass
class EvaluationFolder:
    """A folder with `metrics.json`: `scores`, those `before` calibration, and what `calibration.json` says about it."""

    name: str
    folder: Path
    scores: dict
    before: dict | None = None
    calibration: dict | None = None

    @property
    def setting(self):
        """How the model met the test speakers before, as evaluation recorded it."""
        return str(self.scores.get("setting", "not recorded"))

    @property
    def is_training_split(self):
        """Whether the scored split is one that was trained on, by its name."""
        return Path(str(self.scores.get("split", self.folder))).stem.startswith("train")

    @property
    def is_classification(self):
        """Whether classes were predicted; otherwise dimensions."""
        return "dims" not in self.scores

    def headline(self):
        """The scores that systems are compared by: name → (value, ends of its confidence interval, or [])."""
        intervals = self.scores.get("ci", {})
        if self.is_classification:
            found = {name.replace("_f1", " F1"): (self.scores[name], intervals.get(name, [])) for name in ("UA", "WA", "macro_f1")}
        else:
            of = intervals.get("dims", {})
            found = {f"CCC {name}": (values["ccc"], of.get(name, {}).get("ccc", [])) for name, values in self.scores["dims"].items()}
        return {name: (value, ci if fits(ci, [NUMBER]) and not any(map(math.isnan, ci)) else []) for name, (value, ci) in found.items()}


@dataclass
class TrainingFolder:
    """A folder with a training's configuration, its curves, or both."""

    name: str
    config: dict = field(default_factory=dict)
    curves: dict = field(default_factory=dict)

    def get(self, path):
        """A value of the configuration by its dotted path, or None."""
        node = self.config
        for key in path.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        return node

    def last_update(self):
        """The last update in the curves; None without curves."""
        return max((int(updates[-1]) for splits in self.curves.values() for updates, _ in splits.values()), default=None)


@dataclass
class RunFolder:
    """What was found below a run's folder, in natural order of the paths; names are paths relative to it. `corpora`, `checks`, `audits` and
    `results` are name → content of the files in `_FILES`, `unread` name → why it was not read, `inputs` name → SHA-256 of what was."""

    folder: Path
    evaluations: list = field(default_factory=list)
    trainings: list = field(default_factory=list)
    corpora: dict = field(default_factory=dict)
    checks: dict = field(default_factory=dict)
    audits: dict = field(default_factory=dict)
    results: dict = field(default_factory=dict)
    unread: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)

    def name_of(self, path):
        """A path relative to the run's folder, with forward slashes."""
        return path.relative_to(self.folder).as_posix()

    def table_beside(self, name):
        """Text of the table that a program wrote for people beside the results `name`; None without."""
        table = (self.folder / name).with_suffix(".md")
        return table.read_text(encoding="utf-8", errors="replace") if table.is_file() else None

    def read(self, path, reader, shape=object):
        """What `reader` makes of a file, if it has the shape; None, and an entry in `unread`, otherwise."""
        name = self.name_of(path)
        try:
            value = _checked(path, reader(path), shape)
            self.inputs[name] = sha256(path)
        except (ValueError, OSError, yaml.YAMLError, RecursionError) as error:
            self.unread[name] = " ".join(str(error).split())
            logger.warning("%s is not in the report: %s", path, self.unread[name])
            return None
        return value


def fits(value, shape):
    """Whether JSON has a shape: a type, or types; [shape of each item]; {key: shape}, where `key?` may be missing and `*` is any key."""
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(v, shape[0]) for v in value)
    if not isinstance(shape, dict):
        return isinstance(value, shape)
    if not isinstance(value, dict):
        return False
    if "*" in shape:
        return all(fits(v, shape["*"]) for v in value.values())
    return all(fits(value[k.rstrip("?")], s) if k.rstrip("?") in value else k.endswith("?") for k, s in shape.items())


def _checked(path, value, shape):
    if not fits(value, shape):
        raise InputError(f"{path}: not the content that a file of this name has; write it again")
    return value


def discover(folder):
    """The RunFolder of a folder, hidden folders and links left out; InputError where there is nothing to report."""
    run = RunFolder(Path(folder))
    if not run.folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a run")
    for here, folders, names in os.walk(folder):
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=natural)
        _add_evaluation(run, Path(here), names)
        _add_training(run, Path(here), names)
        for name in sorted(names):
            for store, shape in (found for pattern, found in _FILES.items() if re.fullmatch(pattern, name)):
                path = Path(here, name)
                if (content := run.read(path, _read_scores if store == "results" else read_json, shape)) is not None:
                    getattr(run, store)[run.name_of(path)] = content
    if not (run.evaluations or run.trainings or run.results):
        raise InputError(f"{folder}: holds no metrics.json, no results.json and no training log; give the folder of a run")
    return run


def _add_evaluation(run, folder, names):
    if "metrics.json" not in names or (scores := run.read(folder / "metrics.json", _read_metrics)) is None:
        return
    before = run.read(folder / "metrics_before.json", _read_metrics) if "metrics_before.json" in names else None
    calibration = run.read(folder / "calibration.json", _read_scores, _CALIBRATION) if "calibration.json" in names else None
    run.evaluations.append(EvaluationFolder(run.name_of(folder), folder, scores, before, calibration))


def _read_scores(path):
    """JSON with NaN for null."""
    return _nan_for_null(read_json(path))


def _nan_for_null(value):
    if isinstance(value, dict):
        return {key: _nan_for_null(v) for key, v in value.items()}
    return [_nan_for_null(v) for v in value] if isinstance(value, list) else math.nan if value is None else value


def _read_metrics(path):
    scores = _read_scores(path)
    is_classification = "dims" not in _checked(path, scores, dict)
    _checked(path, scores, _CLASSES if is_classification else _DIMENSIONS)
    if is_classification:
        k, rows = len(scores["classes"]), scores["confusion"]
        if [len(row) for row in rows] != [k] * k or sum(map(sum, rows)) != scores["n"]:
            raise InputError(f"{path}: the confusion matrix does not fit the classes and the {scores['n']} utterances; write it again")
    return scores


def _add_training(run, folder, names):
    config, log = folder / ".hydra" / "config.yaml", folder / "hydra_train.log"
    found = run.read(config, lambda path: yaml.safe_load(path.read_text(encoding="utf-8")), dict) if config.is_file() else None
    curves = run.read(log, read_training_log) if log.name in names else None
    if found or curves:
        run.trainings.append(TrainingFolder(run.name_of(folder), found or {}, curves or {}))
