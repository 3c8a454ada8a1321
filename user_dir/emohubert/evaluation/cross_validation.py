"""Cross-validation: trainings of one configuration on every fold with every seed, evaluated, and collected into one table.

A run's folder is what `train` of recipes/lib.sh makes, too: `settings.txt`, `finished`, `output.log` and the checkpoints; beside
them is a folder with the evaluation, named as the split.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..core.errors import InputError
from ..core.files import Stamp, make_folder, read_json, write_json, write_lines
from ..core.parallel import cores
from ..corpus.manifest import manifest_directories, read_corpus
from ..training import processes
from . import metrics, scoring
from .predictions import ClassPredictions, DimensionPredictions, from_probabilities, read_predictions, write_predictions
from .results import read_results, write_results

logger = logging.getLogger("emohubert")

OVERRIDE = re.compile(r"(\+{1,2}|~)?[A-Za-z_][\w.@/]*=.*|~[A-Za-z_][\w.@/]*", re.DOTALL)
"""What is a `key=value` of Hydra on a command line, and no path or option."""
_OURS = {"task.data": "MANIFEST_DIR and --folds", "common.seed": "--seeds", "checkpoint.save_dir": "OUT_DIR"}
_SHOWN = 20  # lines of a failed training's log that are shown


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        index: place among all runs.
        fold, seed: what it is of.
        config: name of the configuration.
        manifest: the fold's manifest directory.
        folder: of the run.
        split: that is evaluated.
        overrides: `key=value`, complete but for the folder of checkpoints.
        validated: whether there is a validation split.
    """

    index: int
    fold: str
    seed: int
    config: str
    manifest: Path
    folder: Path
    split: str
    overrides: tuple
    validated: bool

    @property
    def name(self):
        """Such as fold1/seed2."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def results(self):
        """Folder of the evaluation."""
        return self.folder / self.split

    @property
    def settings(self):
        """Lines of `settings.txt`, as recipes/lib.sh writes them."""
        return [self.config, *self.overrides]

    @property
    def checkpoint(self):
        """The best checkpoint on validation data; without such data, the last."""
        return self.folder / ("checkpoint_best.pt" if self.validated else "checkpoint_last.pt")

    def check_settings(self):
        """Raise InputError if the folder holds a training with other settings."""
        path = self.folder / "settings.txt"
        if path.is_file() and path.read_text(encoding="utf-8").rstrip("\n") != "\n".join(self.settings):
            raise InputError(
                f"{self.folder}: holds a training with other settings (see settings.txt in it); remove it, or choose another folder, "
                "or train again with --overwrite"
            )

    @property
    def is_finished(self):
        """Whether it is trained and evaluated."""
        return (self.folder / "finished").is_file() and (self.results / "metrics.json").is_file()


def plan(config, manifest_dir, out_dir, seeds, folds=None, split="test", overrides=()):
    """All runs of a cross-validation, fold by fold.

    Args:
        config: name of a configuration.
        manifest_dir: holds a folder `foldK` for each fold.
        out_dir: runs go to `foldK/seedS` below it.
        seeds: list of int.
        folds: list of str, such as ["1", "2"]; by default all that there are.
        split: to be evaluated.
        overrides: `key=value` for every run; `{fold}` and `{seed}` in a value are replaced.

    Raises:
        InputError: a fold or a split is missing, something is listed twice, or an override sets what the plan sets.
    """
    manifest_dir, out_dir = Path(manifest_dir).resolve(), Path(out_dir).resolve()
    if not folds:
        names = [d.name for d in manifest_directories(manifest_dir) if d != manifest_dir]
        folds = [name.removeprefix("fold") for name in names]
        if not folds:
            raise InputError(f"{manifest_dir}: holds no fold*/; make the manifest with folds (--protocol folds)")
    for name, values in (("--folds", folds), ("--seeds", seeds)):
        twice = [v for v in values if list(values).count(v) > 1]
        if twice:
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
        without = () if validated else ("dataset.disable_validation=true",)
        for seed in seeds:
            own = [o.replace("{fold}", fold).replace("{seed}", str(seed)) for o in overrides]
            settings = (f"task.data={manifest}", f"common.seed={seed}", *without, *own)
            folder = out_dir / f"fold{fold}" / f"seed{seed}"
            runs.append(Run(len(runs), fold, seed, config, manifest, folder, split, settings, validated))
    return runs


def execute(runs, root, jobs=1, device="auto", overwrite=False, config_dir=None, nproc=None):
    """Train and evaluate runs that are not whole yet; after a failure, none is started any more.

    Args:
        runs: of `plan`.
        root: folder of the project, with config/, tools/ and user_dir/.
        jobs: processes at the same time, among which the cores are divided, and the GPUs where there are several.
        device: of the evaluation.
        overwrite: remove what is there and train again.
        config_dir: folder of the configuration, by default root/config.
        nproc: processes of each training (see `processes.torchrun`); None: fairseq takes all GPUs that there are.

    Raises:
        SystemExit: with `processes.STOPPED`, where a training was told to stop.
        InputError: a folder holds a training with other settings, or a program failed; the end of its log is printed.
    """
    if not overwrite:
        for run in runs:
            run.check_settings()
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or cores()) // jobs)
    gpus = torch.cuda.device_count() if jobs > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ else 0
    options = (Path(root).resolve(), threads, device, overwrite, config_dir, nproc, gpus)
    failed = threading.Event()

    def unless_failed(run):
        if failed.is_set():
            return
        try:
            _train_and_evaluate(run, *options)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(unless_failed, run) for run in runs]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            failed.set()  # also where the user interrupts


def _train_and_evaluate(run, root, threads, device, overwrite, config_dir, nproc, gpus):
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore", **os.environ}
    environment |= {"OMP_NUM_THREADS": str(threads), "EMOHUBERT_USER_DIR": str(root / "user_dir"), "MPLBACKEND": "Agg"}
    if gpus > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(run.index % gpus)
    if overwrite:
        _remove(run)
    _train(run, root / "config" if config_dir is None else Path(config_dir).resolve(), environment, nproc)
    _evaluate(run, root, threads, device, environment)


def _remove(run):
    if run.folder.is_dir() and any(run.folder.iterdir()) and not (run.folder / "settings.txt").is_file():
        raise InputError(f"{run.folder}: holds something else than a training (no settings.txt); choose another output folder")
    shutil.rmtree(run.folder, ignore_errors=True)


def _train(run, config_dir, environment, nproc):
    make_folder(run.folder)
    if (run.folder / "finished").is_file():
        logger.info("%s: trained already", run.name)
        return
    write_lines(run.folder / "settings.txt", run.settings)
    logger.info("%s: training %s (log: %s)", run.name, run.config, run.folder / "hydra_train.log")
    program = Path(sys.executable).with_name("fairseq-hydra-train")
    options = ["--config-dir", config_dir, "--config-name", run.config, f"checkpoint.save_dir={run.folder}"]
    command = [*processes.torchrun(nproc), program, *options, *run.overrides]
    try:
        _launched(command, run.folder / "output.log", environment, f"{run.folder}: training")
    except InputError:
        if not (run.folder / "stopped").is_file():
            raise
        logger.warning("%s: told to stop; the same command goes on from its checkpoint", run.name)
        raise SystemExit(processes.STOPPED) from None
    (run.folder / "finished").touch()


def _evaluate(run, root, threads, device, environment):
    if not run.checkpoint.is_file():
        raise InputError(f"{run.checkpoint}: training has not written it; see {run.folder}/hydra_train.log")
    settings = scoring.inputs(run.checkpoint, run.manifest, run.split)
    stamp = Stamp(run.folder / f".{run.split}.json", settings, [run.results / "predictions.tsv", run.results / "metrics.json"])
    if stamp.is_current():
        return
    logger.info("%s: evaluating %s on %s", run.name, run.checkpoint.name, run.split)
    arguments = [run.checkpoint, run.manifest, run.split, run.results, "--device", device, "--workers", threads]
    log = run.folder / "evaluate.log"
    _launched([sys.executable, root / "tools" / "evaluate.py", *arguments], log, environment, f"{run.folder}: evaluation")
    stamp.write()


def _launched(command, log, environment, what):
    """Run a program with its output in a log; if it fails, show the end of that, and raise InputError."""
    if status := launch([str(c) for c in command], log, environment):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN:]
        print("\n".join(line[:400] for line in lines), file=sys.stderr, flush=True)
        raise InputError(f"{what} failed (status {status}); the end of {log} is above, and the same command goes on where it stopped")


def launch(command, log, environment):
    """Run a command with its output appended to a file; returns its exit status.

    Raises:
        InputError: there is no such program.
    """
    with open(log, "ab") as f:
        try:
            return subprocess.run(command, stdout=f, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment).returncode
        except FileNotFoundError as error:
            raise InputError(f"{command[0]}: no such program; set up the environment (tools/setup_env.sh)") from error


# --- collecting -------------------------------------------------------------------------------------------------------


def collect(runs, out_dir, repeats=2000):
    """Write `results.md`, `results.json` and, for every seed, the predictions pooled over folds: `pooled/seedS/`.

    Rows: each fold (over its seeds); all runs; folds, each the mean of its seeds; seeds, each the mean of its folds; the scores
    of the pooled predictions of each seed, and over seeds.

    Args:
        runs: of `plan`, all of them.
        out_dir: where the files go.
        repeats: of the bootstrap over speakers, for the intervals of pooled scores.

    Returns:
        The lines of the table.

    Raises:
        InputError: runs are missing or unfinished: all are named.
    """
    for run in runs:
        run.check_settings()
    missing = [run for run in runs if not run.is_finished]
    if missing:
        named = ", ".join(f"{run.name} (--index {run.index})" for run in missing)
        raise InputError(f"{out_dir}: {len(missing)} of {len(runs)} runs are missing or unfinished: {named}; run them first")
    out_dir = make_folder(out_dir)
    folds, seeds = list(dict.fromkeys(run.fold for run in runs)), list(dict.fromkeys(run.seed for run in runs))
    rows = [(f"fold {run.fold}", run.results) for run in runs]
    if len(runs) > 1:
        rows += [("all runs", run.results) for run in runs]
    systems = read_results(rows, macro_f1=True)
    if len(folds) > 1 and len(seeds) > 1:
        every = next(s for s in systems if s["name"] == "all runs")
        systems.append(_means(every, "folds, each the mean of its seeds", [[i for i, r in enumerate(runs) if r.fold == f] for f in folds]))
        systems.append(_means(every, "seeds, each the mean of its folds", [[i for i, r in enumerate(runs) if r.seed == s] for s in seeds]))
    notes, scores = _notes(runs, folds, seeds)
    if len(folds) > 1:
        overlap, pooled = _pool(runs, seeds, out_dir, repeats)
        if overlap:
            notes.append(overlap)
            logger.warning("%s", overlap)
        rows = [(f"pooled over folds, seed {seed}", folder) for seed, folder in pooled.items()]
        if len(pooled) > 1:
            rows += [("pooled over folds, all seeds", folder) for folder in pooled.values()]
        systems += read_results(rows, macro_f1=True)
    corpus = read_corpus(runs[0].manifest).get("corpus", runs[0].manifest.parent.name)
    title = f"{runs[0].config} on {corpus}: {len(folds)} folds, {len(seeds)} seeds"
    details = [
        {
            "fold": run.fold,
            "seed": run.seed,
            "folder": f"{run.name}/{run.split}",
            **{k: found.get(k) for k in ("checkpoint", "epoch", "update", "selected", "setting", "speaker_embedding", "n")},
        }
        for run, found in zip(runs, scores, strict=True)
    ]
    return [*notes, "", *write_results(out_dir / "results", systems, title, notes, runs=details)]


def _means(system, name, groups):
    """A row whose values are means over groups of another row's runs."""
    scores = {score: [metrics.mean_std([values[i] for i in group])[0] for group in groups] for score, values in system["scores"].items()}
    return {**system, "name": name, "runs": len(groups), "scores": scores}


def _notes(runs, folds, seeds):
    """(sentences for the head of a table: what was run and how, content of each run's metrics.json)."""
    scores = [read_json(run.results / "metrics.json") for run in runs]
    corpus = read_corpus(runs[0].manifest)
    protocol = (corpus.get("options") or {}).get("protocol")
    last = list(dict.fromkeys(run.fold for run in runs if not run.validated))
    best = [f for f in folds if f not in last]
    chosen = []
    if best:
        chosen.append(f"the best epoch on the validation split (fold {', '.join(best)})")
    if last:
        chosen.append(f"the last epoch, as there is no validation split (fold {', '.join(last)})")
    own = [o for o in runs[0].overrides if not o.startswith(("task.data=", "common.seed=", "dataset.disable_validation="))]
    epochs = [found.get("epoch") for found in scores]
    notes = [
        f"Configuration: {runs[0].config}" + (f", with {' '.join(own)} (here for {runs[0].name})" if own else ""),
        f"Protocol: folds {', '.join(folds)} of {corpus.get('corpus', runs[0].manifest.parent.name)}"
        + (f" (manifest protocol {protocol})" if protocol else "")
        + f", seeds {', '.join(map(str, seeds))}; trained on `train`, scored on `{runs[0].split}`, which nothing was chosen on",
        f"Checkpoint: {'; '.join(chosen)}; epochs {', '.join(map(str, epochs))} in the order of the runs",
        "Setting of the scored speakers: "
        + "; ".join(dict.fromkeys(f"{f.get('setting', 'not recorded')}, {f.get('speaker_embedding', 'not recorded')}" for f in scores)),
        "±: population standard deviation over the runs of a row (seeds of a fold; all folds and seeds; means over folds or over seeds)",
    ]
    return notes, scores


def _pool(runs, seeds, out_dir, repeats):
    """Pool the predictions of every seed over folds. Returns (why not, or None; {seed: folder})."""
    folders = {}
    for seed in seeds:
        own = [run for run in runs if run.seed == seed]
        parts = [read_predictions(run.results / "predictions.tsv") for run in own]
        ids = [name for part in parts for name in part.ids]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            return f"Nothing is pooled: “{twice}” is in the {own[0].split} split of more than one fold", {}
        predictions = pooled(parts)
        found = [read_json(run.results / "metrics.json") for run in own]
        setting = "; ".join(dict.fromkeys(f.get("setting", "not recorded") for f in found))
        folder = make_folder(out_dir / "pooled" / f"seed{seed}")
        scores = scoring.evaluate(predictions, repeats=repeats, seed=seed)
        write_predictions(folder / "predictions.tsv", predictions)
        origin = {"pooled": [run.name for run in own], "setting": setting, "speaker_embedding": found[0].get("speaker_embedding")}
        write_json(folder / "metrics.json", {**origin, **scores})
        folders[seed] = folder
    return None, folders


def pooled(parts):
    """Predictions of several folds as one set.

    A class that a fold's training data lacks has probability 0 there.

    Raises:
        InputError: they are not of one kind.
    """
    if len({type(part) for part in parts}) > 1:
        raise InputError("some folds predict classes and others dimensions; evaluate runs of one configuration")
    ids, speakers = ([name for part in parts for name in getattr(part, a)] for a in ("ids", "speakers"))
    if isinstance(parts[0], ClassPredictions):
        classes = list(dict.fromkeys(name for part in parts for name in part.classes))
        probabilities = np.zeros((len(ids), len(classes)))
        first = 0
        for part in parts:
            probabilities[first : first + len(part), [classes.index(name) for name in part.classes]] = part.probabilities
            first += len(part)
        return from_probabilities(ids, speakers, [e for part in parts for e in part.emotions], classes, probabilities)
    if len({tuple(part.dims) for part in parts}) > 1:
        raise InputError("the folds predict different dimensions; evaluate runs of one configuration")
    arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("references", "predicted"))
    return DimensionPredictions(ids, speakers, parts[0].dims, *arrays)
