"""Audit of a run: from the records of what was seen (`records`), did anything of an evaluation reach the model before?

For every evaluation below a folder, the records are followed backwards (`trail`). What is met on the way is compared with the evaluated
utterances: speakers, sessions, and audio, also under another name.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import InputError
from ..core.files import natural, read_json
from ..core.parallel import in_threads
from ..corpus.audio import content_of
from ..corpus.check import LEAKS, Leak, examples
from ..corpus.check import role as role_of_split
from ..corpus.manifest import UNKNOWN_SPEAKER, share_people
from .records import ADAPTATION, CLUSTERING, PRETRAINING, SELECTION, WATCHED
from .trail import MEANING, UNKNOWN, Trail, relative

BUNDLES = {"transductive": (PRETRAINING, CLUSTERING), "adapted": (ADAPTATION,)}
"""Settings that are allowed by their name: the roles in which unlabelled audio of the evaluation may have been met."""


@dataclass
class AuditReport:
    """Result of an audit of a run's folder."""

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
        missing = [] if UNKNOWN in self.allowed else dict.fromkeys(problem for e in self.evaluations for problem in e.problems)
        return [*missing, *(leak.message for leak in self.leaks if not leak.allowed)]

    @property
    def unknown(self):
        """What ends a way back: one line each."""
        allowed = UNKNOWN in self.allowed
        return list(dict.fromkeys(line for e in self.evaluations for line in [*e.unknown, *(e.problems if allowed else [])]))

    def as_json(self):
        """Everything, for audit.json."""
        return {
            "ok": not self.problems,
            "allowed": self.allowed,
            "problems": self.problems,
            "leaks": [leak.as_json() for leak in self.leaks],
            "unknown": self.unknown,
            "notes": self.notes,
            "evaluations": [e.as_json(self.folder) for e in self.evaluations],
        }


def check_allowed(item):
    """Raise ValueError unless `item` is a setting of `BUNDLES`, `unknown`, or a kind of leak, alone or with a role or a split."""
    kind, colon, where = item.partition(":")
    if item == f"audio:{SELECTION}":
        raise ValueError("a checkpoint that was chosen by the evaluated recordings is never allowed")
    if item not in (*BUNDLES, UNKNOWN) and (kind not in LEAKS or (colon and where not in MEANING and not role_of_split(where))):
        known = ", ".join((*BUNDLES, UNKNOWN, *LEAKS))
        more = f"a role ({', '.join(MEANING)}), or an evaluated split, as in speaker:test_seen"
        raise ValueError(f"“{item}” is not one of {known}, the last three alone or with {more}")


def audit(folder, allow=(), decode=True, workers=4):
    """Audit every evaluation below a run's folder; returns an AuditReport. InputError if there is none, or a record is damaged. `allow`:
    see `check_allowed`. `decode`: compare the audio's content too, where a name differs and the length does not."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a run")
    trail = Trail(folder)
    report = AuditReport(folder, [trail.of(path) for path in _folders_of_evaluations(folder)], sorted(set(allow)))
    if not report.evaluations:
        raise InputError(f"{folder}: holds no evaluation (metrics.json); evaluate with tools/evaluate.py or tools/run_folds.py first")
    tests = [e for e in report.evaluations if e.record and e.is_test]
    digests = lambda e, met: (e.record.utterances.digest, met.record.utterances.digest)  # noqa: E731
    pairs = {digests(e, met): (e.record.utterances, met.record.utterances) for e in tests for met in e.met}
    contents = _contents(pairs.values(), workers, report.notes) if decode else {}
    found = {key: _shared(*pair, contents) for key, pair in pairs.items()}
    for e in tests:
        for met in e.met:
            corpora = (r.facts.get("corpus") for r in (e.record, met.record))
            kinds = LEAKS if share_people(*corpora) else ("audio",)
            met.shared = {kind: found[digests(e, met)][kind] for kind in kinds}
            e.leaks += [_leak(report, e, met, kind, shared) for kind, shared in met.shared.items() if shared and met.role != WATCHED]
    return report


def _leak(report, e, met, kind, shared):
    of = len(e.record.utterances) if kind == "audio" else len(_values(e.record.utterances, kind))
    record, via = relative(met.record.path, report.folder), " ← ".join(met.via)
    bundle = next((name for name, roles in BUNDLES.items() if met.role in roles), f"{kind}:{met.role}")
    never = (kind, met.role) == ("audio", SELECTION)
    allowed = not never and bool({kind, f"{kind}:{met.role}", f"{kind}:{e.split}", bundle} & set(report.allowed))
    remedy = f"keep them apart, or allow it with --allow {bundle}"
    remedy = "choose checkpoints by another split: this cannot be allowed" if never else remedy
    message = f"{e.name}: leak of {kind}: {len(shared)} of {of} {LEAKS[kind]} of {e.split} were {MEANING[met.role]} ({examples(shared)})"
    message += f", see {record} (via {via}); {remedy}"
    between = {"evaluation": e.name, "split": e.split, "role": met.role, "of": of, "via": via, "record": record}
    return Leak(kind, shared, allowed, between, message)


def _folders_of_evaluations(folder):
    for here, folders, names in os.walk(folder):
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=natural)
        if "metrics.json" in names and "pooled" not in read_json(Path(here) / "metrics.json"):  # those are of other evaluations
            yield Path(here)


def _values(utterances, kind):
    """The known speakers or sessions."""
    return set(utterances.speakers if kind == "speaker" else utterances.sessions) - {UNKNOWN_SPEAKER, ""}


def _shared(one, other, contents):
    """{kind: what two lists of utterances share}; audio by its full path or content, or if that is unknown by length and name."""
    pairs = [(i, other.files[path]) for path, i in one.files.items() if path in other.files]
    for mine, theirs in _same_length(one, other):
        read, unread, by_content = {}, {}, {}
        for j in reversed(theirs):
            key, name = contents.get(other.file(j)), os.path.normpath(other.paths[j])
            if key:
                by_content[key] = read[name] = j
            elif key is None:
                unread[name] = j
        for i in mine:
            key, name = contents.get(one.file(i)), os.path.normpath(one.paths[i])
            if key != "":
                j = by_content.get(key, unread.get(name)) if key else (unread | read).get(name)
                pairs += [] if j is None else [(i, j)]
    files = ((one.file(i), other.file(j)) for i, j in sorted(pairs))
    people = {kind: sorted(_values(one, kind) & _values(other, kind)) for kind in ("speaker", "session")}
    return {**people, "audio": [a if a == b else f"{a} = {b}" for a, b in files]}


def _same_length(one, other):
    """For each length that both lists have: indices in `one` of files that are not in `other` by name, indices in `other`."""
    for length in one.by_length.keys() & other.by_length.keys():
        if unmatched := [i for i in one.by_length[length] if one.file(i) not in other.files]:
            yield unmatched, other.by_length[length]


def _content(path):
    try:
        return content_of(path)[0]
    except InputError:
        return None


def _contents(pairs, workers, notes):
    """File → hash of its content ("": silence, None: cannot be read), as far as `_shared` will ask for it of pairs of records."""
    alike = [(a, b, *indices) for a, b in pairs for indices in _same_length(a, b)]
    wanted = list(dict.fromkeys(file for a, b, mine, theirs in alike for file in (*map(a.file, mine), *map(b.file, theirs))))
    found = dict(zip(wanted, in_threads(_content, wanted, "comparing audio", "files", workers), strict=True))
    for key, what in ((None, "cannot be read: they are compared by name and length"), ("", "are silence: they are not compared")):
        if paths := [path for path in found if found[path] == key]:
            notes.append(f"{len(paths)} audio files, such as {paths[0]}, {what}")
    return found
