"""Cross-validation: trainings of one configuration on every fold with every seed, evaluated, and collected into one table.

A run's folder is that of a training (see `launch`); beside the checkpoints is a folder with the evaluation, named as the split.
"""

import logging
import os
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import make_folder, read_json, write_json
from ..core.parallel import cores
from ..corpus.manifest import manifest_directories, read_corpus
from ..training.launch import Training
from . import scoring
from .predictions import ClassPredictions, DimensionPredictions, from_probabilities, read_predictions, write_predictions
from .results import read_results, write_results

logger = logging.getLogger("emohubert")

_OURS = {"task.data": "MANIFEST_DIR and --folds", "common.seed": "--seeds", "checkpoint.save_dir": "OUT_DIR"}


@dataclass(frozen=True)
class Run(Training):
    """One training and its evaluation of `split`: its place among all, and whether there is a split to validate on."""

    index: int = 0
    fold: str = ""
    seed: int = 1
    manifest: Path = Path()
    split: str = "test"
    validated: bool = True

    @property
    def name(self):
        """Such as fold1/seed2."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def results(self):
        """Folder of the evaluation."""
        return self.folder / self.split

    @property
    def checkpoint(self):
        """The best checkpoint on validation data; without such data, the last."""
        return self.folder / ("checkpoint_best.pt" if self.validated else "checkpoint_last.pt")


def plan(config, manifest_dir, out_dir, seeds, folds=None, split="test", overrides=(), **options):
    """All runs of a cross-validation, fold by fold, in `foldK/seedS` below `out_dir`; `config` and `options` are of Training. `folds`: list of
    str, such as ["1", "2"]; by default all that there are in `manifest_dir`. `overrides`: `key=value` for every run; `{fold}` and `{seed}`
    in a value are replaced. InputError: a fold or a split is missing, something is listed twice, or an override sets what the plan sets."""
    manifest_dir, out_dir = Path(manifest_dir).resolve(), Path(out_dir).resolve()
    folds = folds or [d.name.removeprefix("fold") for d in manifest_directories(manifest_dir) if d != manifest_dir]
    if not folds:
        raise InputError(f"{manifest_dir}: holds no fold*/; make the manifest with folds (--protocol folds)")
    for name, values in (("--folds", folds), ("--seeds", seeds)):
        if twice := [v for v in values if list(values).count(v) > 1]:
            raise InputError(f"{name}: {twice[0]} is listed twice; list it once")
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in _OURS:
            raise InputError(f"{override}: {key} is set by {_OURS[key]}; leave it out")
    runs = []
    for fold in folds:
        manifest = manifest_dir / f"fold{fold}"
        for name in ("train", split):
            if not (manifest / f"{name}.tsv").is_file():
                raise InputError(f"{manifest}/{name}.tsv: no such file; correct --folds or --split, or make the manifest again")
        validated = (manifest / "valid.tsv").is_file()
        for seed in seeds:
            settings = [f"task.data={manifest}", f"common.seed={seed}", *["dataset.disable_validation=true"] * (not validated)]
            settings += [o.replace("{fold}", fold).replace("{seed}", str(seed)) for o in overrides]
            place = {"index": len(runs), "fold": fold, "seed": seed, "manifest": manifest, "split": split, "validated": validated}
            runs.append(Run(config, out_dir / f"fold{fold}" / f"seed{seed}", tuple(settings), **options, **place))
    return runs


def execute(runs, evaluate, jobs=1, device="auto", overwrite=False, nproc=None):
    """Train and evaluate the runs of a `plan` that are not complete yet; after a failure, none is started any more.

    `evaluate` is called with the arguments of tools/evaluate.py, as text, and skips what is current; `device` is of the evaluation. Of
    `jobs` trainings at the same time each has `nproc` processes (None: fairseq takes all GPUs), and its share of the cores and GPUs.
    InputError: a folder holds a training with other settings, or a training failed; the end of its log is printed.
    """
    if not overwrite:
        for run in runs:
            run.check_settings()
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, int(os.environ.get("OMP_NUM_THREADS") or cores()) // jobs))}
    failed, one_at_a_time = threading.Event(), threading.Lock()  # evaluations take all cores, and draw

    def train_and_evaluate(run):
        if failed.is_set():
            return
        try:
            if overwrite:
                _remove(run)
            run.run(nproc, environment | _own_gpu(run, jobs), bar=jobs == 1)
            if not run.checkpoint.is_file():
                raise InputError(f"{run.checkpoint}: training has not written it; see {run.folder}/hydra_train.log")
            with one_at_a_time:
                cache = [o.partition("=")[2] for o in run.overrides if o.startswith("task.feature_cache=")]
                options = ["--device", device, *(["--feature-cache", cache[-1]] if cache else [])]
                evaluate([str(a) for a in (run.checkpoint, run.manifest, run.split, run.results, *options)])
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(train_and_evaluate, runs))
        finally:
            failed.set()  # also where the user interrupts


def _own_gpu(run, jobs):
    """The variable that gives a run one of several GPUs, where several runs train at the same time."""
    if jobs == 1 or "CUDA_VISIBLE_DEVICES" in os.environ:
        return {}
    import torch

    gpus = torch.cuda.device_count()
    return {"CUDA_VISIBLE_DEVICES": str(run.index % gpus)} if gpus > 1 else {}


def _remove(run):
    if run.folder.is_dir() and any(run.folder.iterdir()) and not (run.folder / "settings.txt").is_file():
        raise InputError(f"{run.folder}: holds something other than a training (no settings.txt); choose another output folder")
    shutil.rmtree(run.folder, ignore_errors=True)


def collect(runs, out_dir, repeats=2000):
    """Write `results.md`, `results.json` and the predictions of every seed pooled over folds, `pooled/seedS/`; returns the table's lines.
    Rows: each fold (over its seeds); all runs; pooled predictions (over seeds). InputError names all runs that are missing or unfinished."""
    for run in runs:
        run.check_settings()
    missing = [f"{r.name} (--index {r.index})" for r in runs if not (r.is_finished and (r.results / "metrics.json").is_file())]
    if missing:
        raise InputError(f"{out_dir}: {len(missing)} of {len(runs)} runs are missing or unfinished: {', '.join(missing)}; run them first")
    out_dir = make_folder(out_dir)
    folds, seeds = list(dict.fromkeys(run.fold for run in runs)), list(dict.fromkeys(run.seed for run in runs))
    corpus, found = read_corpus(runs[0].manifest), [read_json(run.results / "metrics.json") for run in runs]
    rows = [(f"fold {run.fold}", run.results) for run in runs] + [("all runs", run.results) for run in runs] * (len(runs) > 1)
    rows += [(f"all runs, {other}", run.results / other) for other in found[0].get("others", []) for run in runs]
    systems = read_results(rows, macro_f1=True)
    notes = _notes(runs, folds, seeds, corpus, found)
    if len(folds) > 1:
        overlap, rows = _pool(runs, seeds, out_dir, repeats)
        if overlap:
            notes.append(overlap)
            logger.warning("%s", overlap)
        systems += read_results(rows, macro_f1=True)
    title = f"{runs[0].config} on {corpus.get('corpus', runs[0].manifest.parent.name)}: {len(folds)} folds, {len(seeds)} seeds"
    kept = ("checkpoint", "epoch", "update", "selected", "setting", "speaker_embedding", "n")
    details = [
        {"fold": run.fold, "seed": run.seed, "folder": f"{run.name}/{run.split}", **{key: scores.get(key) for key in kept}}
        for run, scores in zip(runs, found, strict=True)
    ]
    return [*notes, "", *write_results(out_dir / "results", systems, title, notes, runs=details)]


def _notes(runs, folds, seeds, corpus, found):
    """Sentences for the head of a table: what was run and how."""
    first, name = runs[0], corpus.get("corpus", runs[0].manifest.parent.name)
    protocol = (corpus.get("options") or {}).get("protocol")
    last = list(dict.fromkeys(run.fold for run in runs if not run.validated))
    best = [fold for fold in folds if fold not in last]
    chosen = [f"the best epoch on the validation split (fold {', '.join(best)})"] * bool(best)
    chosen += [f"the last epoch, as there is no validation split (fold {', '.join(last)})"] * bool(last)
    common = ("task.data=", "task.feature_cache=", "common.seed=", "dataset.disable_validation=")
    own = [o for o in first.overrides if not o.startswith(common)]
    settings = dict.fromkeys(f"{f.get('setting', 'not recorded')}, {f.get('speaker_embedding', 'not recorded')}" for f in found)
    return [
        f"Configuration: {first.config}" + (f", with {' '.join(own)} (here for {first.name})" if own else ""),
        f"Protocol: folds {', '.join(folds)} of {name}{f' (manifest protocol {protocol})' if protocol else ''}"
        f", seeds {', '.join(map(str, seeds))}; trained on `train`, scored on `{first.split}`, which nothing was chosen on",
        f"Checkpoint: {'; '.join(chosen)}; epochs {', '.join(str(f.get('epoch')) for f in found)} in the order of the runs",
        f"Setting of the scored speakers: {'; '.join(settings)}",
        "±: population standard deviation over the runs of a row (seeds of a fold; all folds and seeds; all seeds)",
    ]


def _pool(runs, seeds, out_dir, repeats):
    """Pool the predictions of every seed over folds. Returns (why not, or None; rows of a table: [(name, folder)])."""
    rows = []
    for seed in seeds:
        own = [run for run in runs if run.seed == seed]
        predictions = pooled([read_predictions(run.results / "predictions.tsv") for run in own])
        if twice := [name for name, n in Counter(predictions.ids).items() if n > 1]:
            return f"Nothing is pooled: “{twice[0]}” is in the {own[0].split} split of more than one fold", []
        found = [read_json(run.results / "metrics.json") for run in own]
        setting = "; ".join(dict.fromkeys(f.get("setting", "not recorded") for f in found))
        origin = {"pooled": [run.name for run in own], "setting": setting, "speaker_embedding": found[0].get("speaker_embedding")}
        folder = make_folder(out_dir / "pooled" / f"seed{seed}")
        write_predictions(folder / "predictions.tsv", predictions)
        write_json(folder / "metrics.json", {**origin, **scoring.evaluate(predictions, repeats=repeats, seed=seed)})
        rows.append(("pooled over folds", folder))
    return None, rows


def pooled(parts):
    """Predictions of several folds as one set; a class that a fold's training data lacks has probability 0 there."""
    import pandas as pd

    if len({(type(part), *getattr(part, "dims", ())) for part in parts}) > 1:
        raise InputError("the folds predict different dimensions, or some of them classes; evaluate runs of one configuration")
    ids, speakers = ([name for part in parts for name in getattr(part, a)] for a in ("ids", "speakers"))
    if isinstance(parts[0], ClassPredictions):
        table = pd.concat([pd.DataFrame(part.probabilities, columns=part.classes) for part in parts]).fillna(0.0)
        return from_probabilities(ids, speakers, [e for part in parts for e in part.emotions], list(table), table.to_numpy(), parts[0].name)
    arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("references", "predicted"))
    return DimensionPredictions(ids, speakers, parts[0].dims, *arrays)
