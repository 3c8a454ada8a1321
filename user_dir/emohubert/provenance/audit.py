"""Audit of a run: from the records of what was seen (`records`), did anything of an evaluation reach the model before?

For every evaluation below a folder, the records are followed backwards: the checkpoint, what it was trained on and chosen by, the
checkpoint it started from, the labels it was pretrained on, what their centroids were fitted on, the checkpoint that made those
features, and so on. What is met on the way is compared with the evaluated utterances: speakers, sessions, and audio, also under
another name. The way ends at files without records: outside of the run they are named as unknown, within it they are a problem.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..core.cli import progress
from ..core.errors import InputError
from ..core.files import natural, read_json
from ..corpus.audio import content_of
from ..corpus.check import LEAKS
from ..corpus.check import role as role_of_split
from ..corpus.manifest import UNKNOWN_SPEAKER, read_table
from . import records
from .records import ADAPTATION, CALIBRATION, CLUSTERING, LABELS, PRETRAINING, SELECTION, TRAIN, WATCHED

ROLES = (TRAIN, CALIBRATION, PRETRAINING, CLUSTERING, ADAPTATION, SELECTION, WATCHED)
"""Where evaluated data can have been met."""
UNKNOWN = "unknown"
BUNDLES = {"transductive": (PRETRAINING, CLUSTERING), "adapted": (ADAPTATION,)}
"""Settings that are allowed by their name: the roles in which unlabelled audio of the evaluation may have been met."""
_MEANING = {
    TRAIN: "trained on with labels",
    CALIBRATION: "calibrated with, labels included",
    PRETRAINING: "pretrained on",
    CLUSTERING: "in the fit of centroids or acoustic pieces",
    ADAPTATION: "in the embedding of a new speaker",
    SELECTION: "in the choice of the checkpoint",
}
_OF_CHECKPOINT = (TRAIN, PRETRAINING, SELECTION, WATCHED)
_THINGS = {"speaker": "speakers", "session": "sessions", "audio": "recordings"}
_NAMED = 3  # examples in a message


@dataclass(frozen=True)
class Met:
    """A record on the way back from an evaluation.

    Attributes:
        role: of `ROLES`.
        record: the Record.
        via: names of what lies between, from the evaluation on.
    """

    role: str
    record: records.Record
    via: tuple


@dataclass
class Leak:
    """What an evaluation shares with something that its model has seen.

    Attributes:
        evaluation: folder, relative to the run.
        split: name of the evaluated split.
        kind: of `LEAKS`.
        role: of `ROLES`.
        shared: speakers, sessions, or paths (`path = path` for audio under two names).
        of: how many speakers, sessions or utterances the evaluation has.
        via, record: the way there, and the record's path.
        allowed: whether the user allowed it.
    """

    evaluation: str
    split: str
    kind: str
    role: str
    shared: list
    of: int
    via: str
    record: str
    allowed: bool

    def __str__(self):
        more = ", …" if len(self.shared) > _NAMED else ""
        return (
            f"{self.evaluation}: leak of {self.kind}: {len(self.shared)} of {self.of} {_THINGS[self.kind]} of {self.split} were "
            f"{_MEANING[self.role]} ({', '.join(self.shared[:_NAMED])}{more}), see {self.record} (via {self.via}); {self._remedy()}"
        )

    def _remedy(self):
        if (self.kind, self.role) == ("audio", SELECTION):
            return "choose checkpoints by another split: this cannot be allowed"
        bundle = next((name for name, roles in BUNDLES.items() if self.role in roles), f"{self.kind}:{self.role}")
        return f"keep them apart, or allow it with --allow {bundle}"


@dataclass
class Evaluation:
    """One evaluation and what its model had met.

    Attributes:
        name: folder, relative to the run.
        record: of the evaluated utterances; None if there is none.
        met: list of Met.
        shared: (position in `met`, kind) → what is shared.
        unknown: paths without records outside of the run, and what they were for.
        problems: one line each: records that are missing or do not fit.
        leaks: list of Leak.
    """

    name: str
    record: records.Record | None = None
    met: list = field(default_factory=list)
    shared: dict = field(default_factory=dict)
    unknown: list = field(default_factory=list)
    problems: list = field(default_factory=list)
    leaks: list = field(default_factory=list)

    @property
    def split(self):
        """Name of the evaluated split; "" if unknown."""
        return Path(self.record.facts.get("manifest", "")).stem if self.record else ""

    @property
    def is_test(self):
        """False for a training or validation split, by its name: scores there are no test, and nothing can leak into them."""
        return role_of_split(self.split) not in ("train", "valid")


@dataclass
class Report:
    """What an audit found.

    Attributes:
        folder: the run.
        evaluations: list of Evaluation.
        allowed: what the user allowed.
        notes: sentences.
    """

    folder: Path
    evaluations: list
    allowed: list
    notes: list = field(default_factory=list)

    @property
    def leaks(self):
        """All leaks, allowed or not."""
        return [leak for e in self.evaluations for leak in e.leaks]

    @property
    def problems(self):
        """One line for every missing record that is not allowed, and every leak that is not."""
        missing = [] if UNKNOWN in self.allowed else [problem for e in self.evaluations for problem in e.problems]
        return [*dict.fromkeys(missing), *(str(leak) for leak in self.leaks if not leak.allowed)]

    @property
    def unknown(self):
        """What ends a way back: one line each."""
        allowed = [problem for e in self.evaluations for problem in e.problems] if UNKNOWN in self.allowed else []
        return list(dict.fromkeys([*(line for e in self.evaluations for line in e.unknown), *allowed]))

    def as_json(self):
        """Everything, for audit.json."""
        return {
            "ok": not self.problems,
            "allowed": self.allowed,
            "problems": self.problems,
            "leaks": [vars(leak) for leak in self.leaks],
            "unknown": self.unknown,
            "notes": self.notes,
            "evaluations": [self._evaluation_as_json(e) for e in self.evaluations],
        }

    def _evaluation_as_json(self, e):
        return {
            "name": e.name,
            "split": e.split,
            "test": e.is_test,
            "utterances": len(e.record.utterances) if e.record else None,
            "met": [
                {
                    "role": met.role,
                    "record": relative(met.record.path, self.folder),
                    "via": list(met.via),
                    "utterances": len(met.record.utterances),
                    "labels": met.record.facts.get("labels") or [],
                    "shared": {kind: len(e.shared.get((i, kind), [])) for kind in LEAKS},
                }
                for i, met in enumerate(e.met)
            ],
        }


def check_allowed(item):
    """Raise ValueError unless `item` is a setting of `BUNDLES`, `unknown`, or a kind of leak, alone or with a role or a split."""
    kind, colon, where = item.partition(":")
    if item in BUNDLES or item == UNKNOWN:
        return
    if item == f"audio:{SELECTION}":
        raise ValueError("a checkpoint that was chosen by the evaluated recordings is never allowed")
    if kind not in LEAKS or (colon and where not in ROLES and not role_of_split(where)):
        raise ValueError(
            f"“{item}” is not one of {', '.join((*BUNDLES, UNKNOWN, *LEAKS))}, the last three alone, with a role ({', '.join(ROLES)}), "
            "or with an evaluated split, such as speaker:test_seen"
        )


def audit(folder, allow=(), decode=True, workers=4):
    """Audit every evaluation below a folder.

    Args:
        folder: of the run.
        allow: see `check_allowed`.
        decode: compare the audio's content too, where a name differs and the length does not; otherwise names only.
        workers: threads that read audio.

    Returns:
        Report.

    Raises:
        InputError: no such folder, no evaluation in it, or a damaged record.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a run")
    way = _Way(folder)
    evaluations = [way.back_from(path) for path in _folders_of_evaluations(folder)]
    if not evaluations:
        raise InputError(f"{folder}: holds no evaluation (metrics.json); evaluate with tools/evaluate.py or tools/run_folds.py first")
    report = Report(folder, evaluations, sorted(set(allow)))
    if way.moved:
        recorded, now = next(iter(way.moved.items()))
        report.notes.append(f"{len(way.moved)} recorded paths are taken to be below {folder} now, such as {recorded}: {now}")
    tests = [e for e in evaluations if e.record and e.is_test]
    pairs = {(e.record.utterances.digest, m.record.utterances.digest): (e.record, m.record) for e in tests for m in e.met}
    contents = _Contents(report.notes)
    if decode:
        contents.read(pairs.values(), workers)
    found = {key: _shared(*pair, contents) for key, pair in pairs.items()}
    for e in tests:
        for i, met in enumerate(e.met):
            shared = found[e.record.utterances.digest, met.record.utterances.digest]
            for kind in LEAKS if _comparable(e.record, met.record) else ("audio",):
                e.shared[i, kind] = shared[kind]
                if shared[kind] and met.role != WATCHED:
                    e.leaks.append(_leak(report, e, met, kind, shared[kind]))
    return report


def _leak(report, e, met, kind, shared):
    of = len(e.record.utterances) if kind == "audio" else len(_values(e.record.utterances, kind))
    names = {kind, f"{kind}:{met.role}", f"{kind}:{e.split}", *(b for b, roles in BUNDLES.items() if met.role in roles)}
    allowed = bool(names & set(report.allowed)) and (kind, met.role) != ("audio", SELECTION)
    return Leak(e.name, e.split, kind, met.role, shared, of, " ← ".join(met.via), relative(met.record.path, report.folder), allowed)


def _folders_of_evaluations(folder):
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=natural)
        if "metrics.json" in names and "pooled" not in read_json(Path(here) / "metrics.json"):  # those are of other evaluations
            found.append(Path(here))
    return found


def relative(path, folder):
    """A path below a folder, relative to it; any other as it is."""
    relative = os.path.relpath(path, folder)
    return str(path) if relative.startswith("..") else Path(relative).as_posix()


# --- the way back -----------------------------------------------------------------------------------------------------


class _Way:
    """Follows records backwards, within a run's folder and out of it.

    Attributes:
        moved: recorded path → where it is now, for files of a run that was moved.
    """

    def __init__(self, folder):
        self.folder, self.moved = folder, {}
        self._inside = Path(os.path.realpath(folder))
        self._records, self._listed, self._tables = {}, {}, {}

    def back_from(self, folder):
        """The Evaluation of a folder with metrics.json."""
        e, self._visited = Evaluation(relative(folder, self.folder)), set()
        e.record = self._evaluation(e, folder, ())
        e.met.sort(key=lambda met: ROLES.index(met.role))
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
            predicted = [self._evaluation(e, folder, via) for folder in (self._found(s["path"]) for s in record.sources)]
            return predicted[0] if predicted else None
        self._check(e, folder, record)
        self._sources(e, record, via)
        return record

    def _check(self, e, folder, record):
        """Predictions and their record must be of the same utterances."""
        path, wanted = folder / "predictions.tsv", record.utterances.speakers
        told = read_table(path).get("speaker", []) if path.is_file() else wanted
        if len(told) != len(wanted) or any(a != b for a, b in zip(told, wanted, strict=True) if b != UNKNOWN_SPEAKER):
            e.problems.append(f"{path}: not the utterances that {record.path.name} lists; evaluate again with --overwrite")

    def _sources(self, e, record, via):
        for path in record.facts.get("unknown", []):
            self._end(e, Path(path), "shard of features")
        followers = {"checkpoint": self._checkpoint, "labels": self._labels, "centroids": self._file, "vectors": self._file}
        for source in record.sources:
            path = self._found(source["path"])
            if source["kind"] in followers and (source["kind"], path) not in self._visited:
                self._visited.add((source["kind"], path))
                followers[source["kind"]](e, path, (*via, relative(path, self.folder)), source["kind"])

    def _checkpoint(self, e, path, via, kind):
        found = [r for r in self._in(path.parent) if r.role in _OF_CHECKPOINT]
        if path.is_dir() or not any(r.role in (TRAIN, PRETRAINING) for r in found):
            self._end(e, path, kind)
            return
        for record in found:
            watched = path.name == "checkpoint_last.pt" and not record.facts.get("validation_decides_when_to_stop")
            self._meet(e, WATCHED if watched and record.role == SELECTION else record.role, record, via)

    def _labels(self, e, path, via, kind):
        found = [r for r in self._in(path) if r.role in (CLUSTERING, LABELS)]
        if not found:  # a folder of label sets
            below = {p.parent for p in path.glob(f"*/**/*{records.SUFFIX}")}
            found = [r for folder in sorted(below) for r in self._in(folder) if r.role in (CLUSTERING, LABELS)]
        if not found:
            self._end(e, path, "folder of frame labels")
        for record in found:
            self._meet(e, record.role, record, via)

    def _file(self, e, path, via, kind):
        record = self._record(records.beside(path))
        if record is None:
            self._end(e, path, f"file of {kind}")
        else:
            self._meet(e, record.role, record, via)

    def _meet(self, e, role, record, via):
        if role != LABELS and not any(met.role == role and met.record is record for met in e.met):
            e.met.append(Met(role, record, via))
        if role != CALIBRATION:
            self._sources(e, record, via)

    def _end(self, e, path, what):
        """The way ends here: within the run that is a problem."""
        if Path(os.path.realpath(path)).is_relative_to(self._inside):
            e.problems.append(
                f"{path}: {what} without a record (*{records.SUFFIX}) of what it was made from; make it again, or allow it with --allow {UNKNOWN}"
            )
        else:
            e.unknown.append(f"{path}: {what} without a record: made elsewhere, what it has seen is unknown")

    def _found(self, recorded):
        """Where a recorded path is now; a run that was moved as a whole is searched for the end of the path."""
        path = Path(recorded)
        if self._is_known(path):
            return path
        for first in range(1, len(path.parts) - 1):
            candidate = self._inside.joinpath(*path.parts[first:])
            if self._is_known(candidate):
                self.moved[recorded] = str(candidate)
                return self.folder.joinpath(*path.parts[first:])
        return path

    def _is_known(self, path):
        return path.exists() or bool(self._in(path.parent))

    def _in(self, folder):
        """All records in a folder."""
        if folder not in self._listed:
            paths = sorted(folder.glob(f"*{records.SUFFIX}")) if folder.is_dir() else []
            self._listed[folder] = [self._record(path) for path in paths]
        return self._listed[folder]

    def _record(self, path):
        """A record, or None without one; read once, and equal lists of utterances kept once."""
        if path not in self._records:
            record = records.read(path) if path.is_file() else None
            if record is not None:
                record.utterances = self._tables.setdefault(record.utterances.digest, record.utterances)
            self._records[path] = record
        return self._records[path]


# --- what is shared ---------------------------------------------------------------------------------------------------


def _comparable(one, other):
    """Whether speakers and sessions of two records can be the same ones: not those of two corpora."""
    corpora = {r.facts.get("corpus") for r in (one, other)}
    return None in corpora or len(corpora) == 1


def _values(utterances, kind):
    """The known speakers or sessions."""
    return set(utterances.speakers if kind == "speaker" else utterances.sessions) - {UNKNOWN_SPEAKER, ""}


def _shared(evaluated, seen, contents):
    """{kind: what two records share}."""
    one, other = evaluated.utterances, seen.utterances
    shared = {kind: sorted(_values(one, kind) & _values(other, kind)) for kind in ("speaker", "session")}
    pairs = [(i, other.files[path]) for path, i in one.files.items() if path in other.files]
    for mine, theirs in _same_length(one, other):
        keys = {key: j for j in reversed(theirs) for key in contents.offered(other, j)}
        pairs += [(i, j) for i in mine if (j := next((keys[k] for k in contents.asked(one, i) if k in keys), None)) is not None]
    shared["audio"] = [one.file(i) if one.file(i) == other.file(j) else f"{one.file(i)} = {other.file(j)}" for i, j in sorted(pairs)]
    return shared


def _same_length(one, other):
    """For each length that both lists have: indices in `one` of files that are not in `other` by name, indices in `other`."""
    for length in one.by_length.keys() & other.by_length.keys():
        unmatched = [i for i in one.by_length[length] if one.file(i) not in other.files]
        if unmatched:
            yield unmatched, other.by_length[length]


class _Contents:
    """What files hold, as far as it is needed: audio under two names has one length, so only such files are decoded.

    Args:
        notes: list that takes sentences about files that cannot be compared.
    """

    def __init__(self, notes):
        self._notes, self._keys = notes, {}

    def read(self, pairs, workers):
        """Decode what `_shared` will ask for of pairs of records."""
        wanted = {}
        for one, other in ((a.utterances, b.utterances) for a, b in pairs):
            for mine, theirs in _same_length(one, other):
                wanted |= dict.fromkeys([*map(one.file, mine), *map(other.file, theirs)])
        missing, silent = [], []
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            keys = pool.map(_content, wanted)
            for path, key in zip(wanted, progress(keys, "comparing audio", total=len(wanted), unit="files"), strict=True):
                self._keys[path] = key
                (missing if key is None else silent if key == "" else []).append(path)
        for paths, what in (
            (missing, "cannot be read: they are compared by name and length"),
            (silent, "are silence: they are not compared"),
        ):
            if paths:
                self._notes.append(f"{len(paths)} audio files, such as {paths[0]}, {what}")

    def offered(self, utterances, index):
        """What an utterance may be recognised by: its content, and its name by those whose content is unknown, or if its own is."""
        key, name = self._key_and_name(utterances, index)
        return [] if key == "" else [key, ("by the unread", name)] if key else [("by the unread", name), ("by the read", name)]

    def asked(self, utterances, index):
        """What an utterance is looked for by among those that were offered."""
        key, name = self._key_and_name(utterances, index)
        return [] if key == "" else [key, ("by the read", name)] if key else [("by the unread", name)]

    def _key_and_name(self, utterances, index):
        return self._keys.get(utterances.file(index)), os.path.normpath(utterances.paths[index])


def _content(path):
    """Hash of a file's content; "" for silence, None if it cannot be read."""
    try:
        return content_of(path)[0]
    except InputError:
        return None
