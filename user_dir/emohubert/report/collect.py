"""What a run left behind: every evaluation, training, corpus and check below one folder, found by the names of their files."""

import logging
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..core.errors import InputError
from ..core.files import natural, read_json, sha256
from ..corpus.manifest import read_dictionary
from ..training.curves import read_training_log

logger = logging.getLogger(__name__)

RESULTS = ("results.json", "comparison.json", "robustness.json", "summary.json")
"""Collections of numbers that are shown as they are, with mean ± std where they hold both."""


@dataclass
class Evaluation:
    """A folder with `metrics.json`.

    Attributes:
        name: the folder, relative to the run.
        folder: its path.
        scores, before: content of `metrics.json` and `metrics_before.json`.
        calibration: content of `calibration.json`.
        setting: where the test speakers were met before, as far as it is known.
    """

    name: str
    folder: Path
    scores: dict
    before: dict | None = None
    calibration: dict | None = None
    setting: str = ""

    @property
    def is_training_split(self):
        """Whether the scored split is one that was trained on, by its name."""
        split = self.scores.get("split")
        return Path(split).stem.startswith("train") if isinstance(split, str) else self.folder.name == "train"

    @property
    def is_classification(self):
        """Whether classes were predicted; otherwise dimensions."""
        return "UA" in self.scores

    def interval(self, name, dimension=None):
        """[low, high] of a score's confidence interval; NaN where there is none."""
        intervals = self.scores.get("ci", {})
        if dimension is not None:
            intervals = (intervals.get("dims") or {}).get(dimension) or {}
        found = intervals.get(name)
        return found if isinstance(found, list) and len(found) == 2 and all(map(is_number, found)) else [math.nan, math.nan]


@dataclass
class Training:
    """A folder with a training's configuration, its log, or both."""

    name: str
    folder: Path
    config: dict = field(default_factory=dict)
    curves: dict = field(default_factory=dict)
    working_folder: Path | None = None
    source: str = ""

    def get(self, path, default=None):
        """A value of the configuration by its dotted path."""
        node = self.config
        for key in path.split("."):
            if not isinstance(node, dict) or key not in node:
                return default
            node = node[key]
        return default if node is None else node

    def last_update(self):
        """The last update in the curves; None without curves."""
        return max((int(updates[-1]) for splits in self.curves.values() for updates, _ in splits.values()), default=None)

    def data_folder(self):
        """`task.data`, where it can be found; otherwise None."""
        data = self.get("task.data")
        if not isinstance(data, str):
            return None
        candidates = [Path(data), (self.working_folder or Path()) / data]
        return next((c for c in candidates if c.is_dir()), None)


@dataclass
class Run:
    """What was found below a run's folder.

    Attributes:
        folder: of the run.
        evaluations, trainings: in the order of their paths.
        corpora, checks, audits, results: path → content of corpus.json, check_manifest*.json, audit.json and `RESULTS`.
        unread: path → why it could not be read.
        inputs: path → hash, of everything that was read.
    """

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
        return Path(os.path.relpath(path, self.folder)).as_posix()


def discover(folder):
    """Find everything a report is made from below `folder`.

    Returns:
        A Run.

    Raises:
        InputError: no such folder, or nothing in it that a report could be made from.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a run")
    run = Run(folder)
    for path, names in _walk(folder):
        _discover_evaluation(run, path, names)
        _discover_training(run, path, names)
        for name in names:
            if name == "corpus.json":
                _read_into(run, run.corpora, path / name, _is_corpus)
            elif re.fullmatch(r"check_manifest.*\.json", name):
                _read_into(run, run.checks, path / name, _is_check)
            elif name == "audit.json":
                _read_into(run, run.audits, path / name, _is_audit)
            elif name in RESULTS:
                _read_into(run, run.results, path / name, lambda value: isinstance(value, (dict, list)))
    if not (run.evaluations or run.trainings or run.results):
        raise InputError(f"{folder}: holds no metrics.json, no {RESULTS[0]} and no training (.hydra/config.yaml); give the folder of a run")
    _add_corpora_of_trainings(run)
    for evaluation in run.evaluations:
        evaluation.setting = _setting(run, evaluation)
    return run


def _walk(folder):
    """(folder, sorted file names) of every folder below, hidden ones left out, links not followed, in natural order."""
    for here, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=natural)
        yield Path(here), sorted(names)


def _read_into(run, store, path, has_shape):
    value = _read(run, path, lambda p: _shaped(p, read_json(p), has_shape))
    if value is not None:
        store[run.name_of(path)] = value


def _shaped(path, value, has_shape):
    """`value`, if it has the shape; an InputError otherwise."""
    try:
        if has_shape(value):
            return value
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise InputError(f"{path}: not what a file of this name should hold; make it again with the tool that writes it")


def _read(run, path, reader):
    """What `reader` makes of a file; None, and an entry in `unread`, where it cannot be read."""
    name = run.name_of(path)
    try:
        value = reader(path)
        run.inputs[name] = sha256(path)
    except (ValueError, OSError, yaml.YAMLError, RecursionError) as error:
        run.unread[name] = " ".join(str(error).split())
        logger.warning("%s is not in the report: %s", path, run.unread[name])
        return None
    return value


def _discover_evaluation(run, path, names):
    if "metrics.json" not in names:
        return
    scores = _read(run, path / "metrics.json", _read_metrics)
    if scores is None:
        return
    before = _read(run, path / "metrics_before.json", _read_metrics) if "metrics_before.json" in names else None
    calibration = _read(run, path / "calibration.json", _read_calibration) if "calibration.json" in names else None
    run.evaluations.append(Evaluation(run.name_of(path), path, scores, before, calibration))


def _read_metrics(path):
    """A metrics.json, null read as NaN, sure to have the shape that the contract promises."""
    return _shaped(path, _nan_for_null(read_json(path)), _is_metrics)


def _read_calibration(path):
    """What `tools/calibrate.py` says about its choices, as far as a report shows it."""
    return _shaped(path, read_json(path), lambda value: all(isinstance(test, dict) for test in value["paired"].values()))


def _is_metrics(scores):
    groups = [scores["per_speaker"], *scores["by"].values()]
    groups += [scores.get("difference", {}), {"ci": scores.get("ci", {}), "dims": scores.get("ci", {}).get("dims", {})}]
    if not isinstance(scores["n"], int) or not all(isinstance(values, dict) for group in groups for values in group.values()):
        return False
    if "UA" in scores:
        k, rows = len(scores["classes"]), scores["confusion"]
        square = len(rows) == k and all(len(row) == k and all(isinstance(v, int) for v in row) for row in rows)
        named = all(isinstance(c, str) for c in scores["classes"]) and all(is_number(scores[s]) for s in ("UA", "WA", "macro_f1"))
        return square and named and sum(map(sum, rows)) == scores["n"]
    return all(is_number(values[s]) for values in scores["dims"].values() for s in ("ccc", "pearson", "rmse"))


def _is_check(value):
    leaks = isinstance(value["errors"], list) and all(isinstance(leak, dict) for leak in value["leaks"])
    return leaks and all(isinstance(split, dict) for splits in value.get("splits", {}).values() for split in splits.values())


def _is_audit(value):
    lists = all(isinstance(value[key], list) for key in ("problems", "leaks", "unknown", "evaluations"))
    return lists and all(isinstance(leak["shared"], list) for leak in value["leaks"])


def _is_corpus(value):
    tables = all(isinstance(splits, dict) for splits in value.get("counts", {}).values()) and isinstance(value.get("classes", {}), dict)
    return tables and all(isinstance(paths, list) for paths in value.get("left_out", {}).values())


def is_robustness(content):
    """Whether this is what tools/robustness.py writes: conditions with the same scores, the clean recordings first."""
    conditions = content.get("conditions") if isinstance(content, dict) else None
    if not isinstance(conditions, list) or not conditions or not all(isinstance(c, dict) for c in conditions):
        return False
    scores = [c.get("scores") for c in conditions]
    named = all(isinstance(c.get("name"), str) for c in conditions) and all(isinstance(s, dict) for s in scores)
    return named and all(
        s.keys() == scores[0].keys() and all(isinstance(v, dict) and {"value", "change", "change_ci"} <= v.keys() for v in s.values())
        for s in scores
    )


def is_number(value):
    """True for an int or float that is no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _nan_for_null(value):
    if value is None:
        return math.nan
    if isinstance(value, dict):
        return {key: _nan_for_null(v) for key, v in value.items()}
    return [_nan_for_null(v) for v in value] if isinstance(value, list) else value


def _discover_training(run, path, names):
    training = Training(run.name_of(path), path)
    config, hydra = path / ".hydra" / "config.yaml", path / ".hydra" / "hydra.yaml"
    checkpoint = next((n for n in ("checkpoint_best.pt", "checkpoint_last.pt") if n in names), None)
    if config.is_file():
        training.config, training.source = _read(run, config, _read_yaml) or {}, ".hydra/config.yaml"
        settings = (_read(run, hydra, _read_yaml) if hydra.is_file() else None) or {}
        training.working_folder = _folder_or_none(Training("", path, settings).get("hydra.runtime.cwd"))
    elif checkpoint:
        training.config, training.source = _checkpoint_config(run, path / checkpoint), checkpoint
    elif "hydra_train.log" not in names:
        return
    for name in names:
        if name.endswith(".log"):
            curves = _read(run, path / name, read_training_log)
            if curves and len(curves) > len(training.curves):
                training.curves = curves
    if training.config or training.curves:
        run.trainings.append(training)


def _folder_or_none(text):
    return Path(text) if isinstance(text, str) else None


def _read_yaml(path):
    value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a configuration; expected the YAML that Hydra writes")
    return value


def _checkpoint_config(run, path):
    """The configuration that a checkpoint holds; {} when it cannot be loaded safely."""
    from omegaconf import OmegaConf

    from ..pretrained.safe_files import load_state

    name, details = run.name_of(path), path.stat()
    try:
        cfg = load_state(path).get("cfg")
        run.inputs[name] = f"{details.st_size} {details.st_mtime_ns}"
        return OmegaConf.to_container(OmegaConf.create(cfg, flags={"allow_objects": True}), resolve=False, enum_to_str=True) if cfg else {}
    except InputError as error:
        run.unread[name] = str(error)
        return {}


def _add_corpora_of_trainings(run):
    """The corpus.json of the manifests that were trained on, where they lie outside of the run."""
    if run.corpora:
        return
    for training in run.trainings:
        data = training.data_folder()
        for folder in (data, data.parent) if data else ():
            path = folder / "corpus.json"
            if path.is_file() and run.name_of(path) not in run.corpora:
                _read_into(run, run.corpora, path, _is_corpus)
                break


def _setting(run, evaluation):
    """What the run says about the speakers (key `setting`), otherwise what their ids show; "" where neither is known."""
    declared = [evaluation.scores]
    for folder in (evaluation.folder, *evaluation.folder.parents):
        declared += [run.results.get(run.name_of(folder / name)) for name in RESULTS]
        if folder == run.folder:
            break
    for content in declared:
        if isinstance(content, dict) and isinstance(content.get("setting"), str):
            return content["setting"]
    speakers, pretrained_on = set(evaluation.scores["per_speaker"]), set()
    for training in run.trainings:
        dictionary = (training.data_folder() or Path("nowhere")) / "dict.spk.txt"
        if "pretraining" in str(training.get("task._name")) and dictionary.is_file():
            pretrained_on.update(_read(run, dictionary, read_dictionary) or [])
    if not speakers or not pretrained_on:
        return ""
    known = len(speakers & pretrained_on)
    if known in (0, len(speakers)):
        return "speakers seen in pretraining" if known else "speakers unseen in pretraining"
    return f"{known} of {len(speakers)} speakers seen in pretraining"
