"""Records of what was seen: everything that learns or evaluates writes them itself, and `audit` follows them.

A record is a text file `*.seen` beside what was made: line 1 is JSON (the role, the `sources` it was made from, the manifest), line 2
names the columns path, n_samples, speaker, session, and then comes a line per utterance, with paths relative to the `root` of line 1.
Beside checkpoints and labels, the content's fingerprint is in the name: going on with other data leaves two records.
"""

import hashlib
import json
import os
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import atomic, make_folder
from ..core.programs import shipped
from ..corpus.audio import RECEPTIVE_FIELD
from ..corpus.manifest import UNKNOWN_SPEAKER, read_column, read_corpus

SUFFIX = ".seen"
TRAIN, PRETRAINING, SELECTION, WATCHED = "train", "pretraining", "selection", "watched"
CLUSTERING, FEATURES, LABELS = "clustering", "features", "labels"
EVALUATION, CALIBRATION, ADAPTATION = "evaluation", "calibration", "adaptation"
ROLES = (TRAIN, PRETRAINING, SELECTION, WATCHED, CLUSTERING, FEATURES, LABELS, EVALUATION, CALIBRATION, ADAPTATION)
"""What utterances were for (see `trail.MEANING`); a record of `labels` lists none and only says where labels come from."""
_COLUMNS = "path\tn_samples\tspeaker\tsession"
_KINDS = ("checkpoint", "labels", "centroids", "predictions", "vectors", "temperature")


@dataclass(frozen=True)
class Utterances:
    """A list of utterances."""

    root: str  # absolute, links resolved
    paths: list  # relative to it
    n_samples: list  # at 16 kHz
    speakers: list
    sessions: list  # "": unknown
    digest: str  # of all this

    def __len__(self):
        return len(self.paths)

    @cached_property
    def files(self):
        """Full path → index."""
        return {os.path.normpath(os.path.join(self.root, path)): i for i, path in reversed(list(enumerate(self.paths)))}

    @cached_property
    def by_length(self):
        """Samples → indices of the utterances that are so long."""
        found = defaultdict(list)
        for i, n in enumerate(self.n_samples):
            found[n].append(i)
        return found

    def file(self, index):
        """Full path of an utterance's audio."""
        return os.path.normpath(os.path.join(self.root, self.paths[index]))


@dataclass
class Record:
    """A record that was read."""

    path: Path
    role: str  # of `ROLES`
    sources: list  # of {"kind": of `_KINDS`, "path": absolute}
    utterances: Utterances
    facts: dict = field(default_factory=dict)  # everything else of line 1 (`labels` that were read, `manifest`, …)


def source(kind, path, **facts):
    """A source of something that is made: a file or folder (of a kind in `_KINDS`), by its absolute path."""
    return {"kind": kind, "path": os.path.abspath(path), **facts}


def beside(path):
    """The record of a file: its name and `.seen`."""
    return Path(f"{path}{SUFFIX}")


def write(path, role, split=None, indices=None, sources=(), **facts):
    """Write a record, unless exactly this one is there; returns its path. `path`: of the record, or a folder, where a name with the
    fingerprint in it is chosen. `split`: a `manifest.Split`, or None: no utterances; `indices`: which, in order; `facts`: JSON values."""
    facts = {"role": role, **facts, "sources": list(sources)}
    if split is None:
        return _write(path, facts, [], role)
    root = os.path.realpath(split.root)
    facts |= {"manifest": os.path.abspath(split.tsv), "corpus": read_corpus(split.directory).get("corpus"), "root": root}
    indices = range(len(split)) if indices is None else indices
    speakers, sessions = _speakers(split), (split.meta or {}).get("session") or [""] * len(split)
    rows = ((split.paths[i], str(split.n_samples[i]), speakers[i], sessions[i]) for i in indices)
    lines = ("\t".join(re.sub(r"[\t\r\n]+", " ", cell) for cell in row) for row in rows)
    return _write(path, {**facts, "utterances": len(indices)}, lines, split.name)


def _speakers(split):
    """Who speaks, by `.spk`, whatever the split was read for: a model without speaker inputs has been trained on them, too."""
    path = split.directory / f"{split.name}.spk"
    lines = read_column(path) if path.is_file() else []
    return lines if len(lines) == len(split) else split.speakers or [UNKNOWN_SPEAKER] * len(split)


def _write(path, facts, rows, name):
    """Write the first line, the columns' names and the rows, unless just this is there."""
    first = json.dumps({"utterances": 0, **facts}, sort_keys=True)
    path, content = Path(path), "".join(f"{line}\n" for line in (first, _COLUMNS, *rows)).encode("utf-8", "surrogateescape")
    if path.suffix != SUFFIX:
        path = make_folder(path) / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}{SUFFIX}"
    if not path.is_file() or path.read_bytes() != content:
        with atomic(path, "wb") as f:
            f.write(content)
    return path


def read(path):
    """Read a record; InputError if it is missing, damaged, or none."""
    try:
        content = Path(path).read_bytes().decode("utf-8", "surrogateescape")
        first, _, body = content.partition("\n")
        facts = json.loads(first)
        role, sources, n = facts.pop("role"), facts.pop("sources"), facts.pop("utterances")
        rows = [line.split("\t") for line in body.split("\n")[1:-1]]
        root = str(facts.get("root", ""))
        paths, lengths, speakers, sessions = (list(c) for c in zip(*rows, strict=True)) if rows else ([], [], [], [])
        lengths = [int(length) for length in lengths]
        if role not in ROLES or len(paths) != n or not body.startswith(f"{_COLUMNS}\n") or not content.endswith("\n"):
            raise ValueError(f"{len(paths)} of {n} utterances")
        if not all(s["kind"] in _KINDS and isinstance(s["path"], str) for s in sources):
            raise ValueError("a source of an unknown kind")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: not a record of what was seen, or a damaged one ({reason}); make the file beside it again") from error
    digest = hashlib.sha256(f"{root}\n{body}".encode("utf-8", "surrogateescape")).hexdigest()
    speakers, sessions = [sys.intern(s) for s in speakers], [sys.intern(s) for s in sessions]
    return Record(Path(path), role, sources, Utterances(root, paths, lengths, speakers, sessions, digest), facts)


def write_training(cfg, task):
    """Record every split that a training has loaded, in `checkpoint.save_dir` (`cfg`: fairseq's, `task`: with its datasets)."""
    begun = [cfg.model.get("init_from"), cfg.checkpoint.get("finetune_from_model"), cfg.checkpoint.get("continue_once")]
    begun += [cfg.checkpoint.restore_file] * (cfg.checkpoint.restore_file != "checkpoint_last.pt")  # the training's own
    sources = [source("checkpoint", path) for path in dict.fromkeys(str(shipped(path)) for path in begun if path)]
    sources += [source("labels", folder) for folder in task.label_folders]
    scheduler = (cfg.get("lr_scheduler") or {}).get("_name")
    facts = {
        "labels": task.label_names,
        "task": cfg.task.get("_name"),
        "metric": cfg.checkpoint.best_checkpoint_metric,
        "validation_decides_when_to_stop": cfg.checkpoint.patience > 0 or scheduler == "reduce_lr_on_plateau",
    }
    roles = {cfg.dataset.valid_subset.split(",")[0]: SELECTION, cfg.dataset.train_subset: TRAIN if task.label_names else PRETRAINING}
    for name, dataset in task.datasets.items():
        for split, seen in dataset.split.of_directories(dataset.seen):
            write(cfg.checkpoint.save_dir, roles.get(name, WATCHED), split, seen, sources, **facts)


def write_evaluation(folder, checkpoint, split, ids, vectors=None):
    """Record utterances `ids` of a split, predicted by a checkpoint, as `predictions.seen`; `vectors`: file of new speakers, or None."""
    sources = [source("checkpoint", checkpoint), *([source("vectors", vectors)] if vectors else [])]
    return write(Path(folder) / f"predictions{SUFFIX}", EVALUATION, split, _indices(split, ids), sources)


def _indices(split, ids):
    known = set(ids)
    return [i for i, name in enumerate(split.ids) if name in known]


def write_calibration(folder, predictions, split, ids, used):
    """Record the training utterances `ids` that a file of predictions was calibrated with, as `calibration.seen`. `used`: other files of
    evaluations that were used: embeddings."""
    sources = [source("predictions", folder) for folder in dict.fromkeys(Path(path).parent for path in (predictions, *used))]
    return write(make_folder(folder) / f"calibration{SUFFIX}", CALIBRATION, split, _indices(split, ids), sources)


def write_scaled(predictions, validation, temperature):
    """Record what the files `predictions` and `validation` saw, the first scaled by a file `temperature` that was chosen by the second: as
    predictions.seen in its folder, and beside it. Nothing is written unless both have records."""
    given = [Path(path).with_name(f"predictions{SUFFIX}") for path in (predictions, validation)]
    if not all(path.is_file() for path in given):
        return
    for path, new in zip(given, (Path(temperature).with_name(given[0].name), beside(temperature)), strict=True):
        first, rest = path.read_bytes().split(b"\n", 1)
        facts = json.loads(first)
        facts |= {"role": SELECTION} if new.name != given[0].name else {"sources": [*facts["sources"], source("temperature", temperature)]}
        with atomic(new, "wb") as f:
            f.write(json.dumps(facts, sort_keys=True).encode() + b"\n" + rest)


def write_adaptation(vectors, checkpoint, split):
    """Record the audio of new speakers that their embeddings were made from with a checkpoint, beside the file of `vectors`."""
    return write(beside(vectors), ADAPTATION, split, np.flatnonzero(split.n_samples >= RECEPTIVE_FIELD), [source("checkpoint", checkpoint)])


def write_shard_fit(path, shards, chosen):
    """Record a fit on feature shards, whose own records say which recordings they hold; `chosen` are indices of recordings in all."""
    found = [read(beside(shard.path)) if beside(shard.path).is_file() else None for shard in shards]
    unknown = [str(s.path) for s, record in zip(shards, found, strict=True) if record is None or len(record.utterances) != len(s)]
    if unknown:
        return _write(beside(path), {"role": CLUSTERING, "sources": [], "unknown": unknown}, [], "")
    lists = [record.utterances for record in found]
    rows = [row for u in lists for row in zip(u.paths, u.n_samples, u.speakers, u.sessions, strict=True)]
    sources = list({json.dumps(s, sort_keys=True): s for record in found for s in record.sources}.values())
    facts = {key: found[0].facts.get(key) for key in ("manifest", "corpus", "root")}
    facts |= {"role": CLUSTERING, "sources": sources, "utterances": len(chosen)}
    return _write(beside(path), facts, ("\t".join(map(str, rows[i])) for i in chosen), "")
