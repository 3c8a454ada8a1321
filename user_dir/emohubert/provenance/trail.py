"""The trail of an evaluation: which records of what was seen lie behind it (see `audit`)."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..corpus.check import LEAKS
from ..corpus.check import role as role_of_split
from ..corpus.manifest import UNKNOWN_SPEAKER, read_table
from . import records
from .records import ADAPTATION, CALIBRATION, CLUSTERING, LABELS, PRETRAINING, SELECTION, TRAIN, WATCHED

MEANING = {
    TRAIN: "trained on with labels",
    CALIBRATION: "calibrated with, labels included",
    PRETRAINING: "pretrained on",
    CLUSTERING: "in the fit of centroids or acoustic pieces",
    ADAPTATION: "in the embedding, the normalisation or the calibration of a new speaker",
    SELECTION: "in the choice of the checkpoint or of a temperature",
    WATCHED: "validated on",
}
"""Roles in which evaluated data can have been met, and what they mean."""
UNKNOWN = "unknown"


@dataclass
class Met:
    """A record on the way back from an evaluation."""

    role: str  # what it was for, of `MEANING`
    record: records.Record
    via: tuple  # what lies between, from the evaluation on
    shared: dict = field(default_factory=dict)  # kind → what the evaluated utterances share with it


@dataclass
class AuditedEvaluation:
    """One evaluation and what its model had met."""

    name: str  # folder, relative to the run
    record: records.Record | None = None  # of the evaluated utterances
    met: list = field(default_factory=list)  # of Met
    unknown: list = field(default_factory=list)  # lines: files outside of the run without a record
    problems: list = field(default_factory=list)  # lines: records that are missing or do not fit
    leaks: list = field(default_factory=list)  # of Leak

    @property
    def split(self):
        """Name of the evaluated split; "" if unknown."""
        return Path(self.record.facts.get("manifest", "")).stem if self.record else ""

    @property
    def is_test(self):
        """False for a training or validation split, by its name: scores there are no test, and nothing can leak into them."""
        return role_of_split(self.split) not in ("train", "valid")

    def as_json(self, folder):
        """Everything but leaks and problems."""
        met = [
            {
                "role": m.role,
                "record": relative(m.record.path, folder),
                "via": list(m.via),
                "utterances": len(m.record.utterances),
                "labels": m.record.facts.get("labels") or [],
                "shared": {kind: len(m.shared.get(kind, [])) for kind in LEAKS},
            }
            for m in self.met
        ]
        utterances = len(self.record.utterances) if self.record else None
        return {"name": self.name, "split": self.split, "test": self.is_test, "utterances": utterances, "met": met}


def relative(path, folder):
    """A path below a folder, relative to it; any other as it is."""
    relative = os.path.relpath(path, folder)
    return str(path) if relative.startswith("..") else Path(relative).as_posix()


class Trail:
    """Follows records backwards, from the evaluations below the folder of a run."""

    def __init__(self, folder):
        self.folder, self._records = folder, {}

    def of(self, folder):
        """The AuditedEvaluation of a folder with metrics.json."""
        e, self._visited = AuditedEvaluation(relative(folder, self.folder)), set()
        e.record = self._evaluation(e, folder, ())
        e.met.sort(key=lambda met: list(MEANING).index(met.role))
        return e

    def _evaluation(self, e, folder, via):
        """Follow what an evaluation was made from, calibrated ones to their predictions; returns the record of what was predicted."""
        names = ["predictions"] if folder in self._visited else ["calibration", "predictions"]
        self._visited.add(folder)
        record = next((r for name in names if (r := self._record(folder / f"{name}{records.SUFFIX}"))), None)
        if record is None:
            self._end(e, folder, "evaluation")
            return None
        if record.role == CALIBRATION:
            self._meet(e, CALIBRATION, record, (*via, relative(record.path, self.folder)))
            predicted = [self._evaluation(e, self._found(s["path"]), via) for s in record.sources]
            if predicted and predicted[0]:  # speakers are calibrated by their own unlabelled audio
                self._meet(e, ADAPTATION, predicted[0], (*via, relative(record.path, self.folder)))
            return predicted[0] if predicted else None
        path, wanted = folder / "predictions.tsv", record.utterances.speakers
        listed = read_table(path).get("speaker", []) if path.is_file() else wanted
        if len(listed) != len(wanted) or any(a != b for a, b in zip(listed, wanted, strict=True) if b != UNKNOWN_SPEAKER):
            e.problems.append(f"{path}: not the utterances that {record.path.name} lists; evaluate again with --overwrite")
        self._sources(e, record, via)
        return record

    def _sources(self, e, record, via):
        for path in record.facts.get("unknown", []):
            self._end(e, Path(path), "shard of features")
        for source in record.sources:
            kind, path = source["kind"], self._found(source["path"])
            if kind == "predictions" or (kind, path) in self._visited:
                continue
            self._visited.add((kind, path))
            if not (behind := self._behind(kind, path)):
                self._end(e, path, {"checkpoint": kind, "labels": "folder of frame labels"}.get(kind, f"file of {kind}"))
            for role, seen in behind:
                self._meet(e, role, seen, (*via, relative(path, self.folder)))

    def _behind(self, kind, path):
        """The records of what a source was made from, with their roles."""
        if kind == "labels":
            below = sorted({p.parent for p in path.glob(f"*/**/*{records.SUFFIX}")})  # of a folder of label sets
            own, *others = ([(r.role, r) for r in self._in(f) if r.role in (CLUSTERING, LABELS)] for f in (path, *below))
            return own or [pair for pairs in others for pair in pairs]
        if kind != "checkpoint":
            record = self._record(records.beside(path))
            return [(record.role, record)] if record else []
        found = [r for r in self._in(path.parent) if r.role in (TRAIN, PRETRAINING, SELECTION, WATCHED)]
        if path.is_dir() or not any(r.role in (TRAIN, PRETRAINING) for r in found):
            return []
        last = path.name == "checkpoint_last.pt"
        watched = [last and r.role == SELECTION and not r.facts.get("validation_decides_when_to_stop") for r in found]
        return [(WATCHED if w else r.role, r) for w, r in zip(watched, found, strict=True)]

    def _meet(self, e, role, record, via):
        if role != LABELS and not any(met.role == role and met.record is record for met in e.met):
            e.met.append(Met(role, record, via))
        if role != CALIBRATION:
            self._sources(e, record, via)

    def _end(self, e, path, what):
        """The way ends here: within the run that is a problem."""
        if path.resolve().is_relative_to(self.folder.resolve()):
            missing = f"{path}: {what} without a record (*{records.SUFFIX}) of what it was made from"
            e.problems.append(f"{missing}; make it again, or allow it with --allow {UNKNOWN}")
        else:
            e.unknown.append(f"{path}: {what} without a record: made elsewhere, what it has seen is unknown")

    def _found(self, recorded):
        """Where a recorded path is now: in a run that was moved as a whole, the same place below its folder."""
        path = Path(recorded)
        places = [path, *(self.folder.joinpath(*path.parts[first:]) for first in range(1, len(path.parts) - 1))]
        return next((p for p in places if p.exists() or self._in(p.parent)), path)

    def _in(self, folder):
        """All records in a folder."""
        return [self._record(path) for path in sorted(folder.glob(f"*{records.SUFFIX}"))]

    def _record(self, path):
        """A record, or None without one; read once."""
        if path not in self._records:
            self._records[path] = records.read(path) if path.is_file() else None
        return self._records[path]
