"""Checks of manifest directories: is everything readable, aligned and known, and does evaluation leak into training?

A leak is a speaker, a session, or audio, also under another name, that a training split shares with a validation or test split. The
folds of one corpus folder are not compared with each other; different folders, such as of pretraining and of fine-tuning, are.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.parallel import in_threads
from .audio import RECEPTIVE_FIELD, SAMPLE_RATE, content_of, probe
from .frame_labels import read_frame_labels
from .manifest import NO_EMOTION, UNKNOWN_SPEAKER, manifest_directories, read_corpus, read_dictionary, read_split, share_people, splits_of

LEAKS = {"speaker": "speakers", "session": "sessions", "audio": "recordings"}
"""Kinds of leaks, and what is shared."""
_NAMED = 3  # examples in a message


def role(split):
    """What a split is for, by its name: "train", "valid", "test", or "" for any other (such as `all`)."""
    starts = {"train": "train", "valid": "valid", "dev": "valid", "test": "test"}
    return next((name for start, name in starts.items() if split.startswith(start)), "")


@dataclass
class Member:
    """One manifest directory that is checked: the folder the user gave, or a fold in it."""

    given: int  # position among the user's folders
    fold: str  # "" for the folder itself
    directory: Path
    corpus: dict
    splits: dict = field(default_factory=dict)

    def comparable(self, other):
        """Whether training on one and testing on the other belong to one experiment."""
        return self is other or (self.given != other.given and (self.fold == other.fold or "" in (self.fold, other.fold)))


@dataclass
class Leak:
    """What an evaluation shares with what its model learns from."""

    kind: str  # of `LEAKS`
    shared: list  # speakers, sessions, or paths (`path = path` for audio under two names)
    allowed: bool
    between: dict  # what shares it, {name: value}, such as two audio lists
    message: str  # one line

    def as_json(self):
        """All but the message, for a file."""
        return {"kind": self.kind, **self.between, "shared": self.shared, "allowed": self.allowed}


def examples(shared):
    """The first few, for a message."""
    return ", ".join(shared[:_NAMED]) + (", …" if len(shared) > _NAMED else "")


@dataclass
class CheckReport:
    """Errors and leaks that are not allowed make a check fail, notes do not."""

    members: list
    errors: list = field(default_factory=list)
    leaks: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    @property
    def problems(self):
        """One line for each error and each leak that is not allowed."""
        return [*self.errors, *(leak.message for leak in self.leaks if not leak.allowed)]

    def as_json(self):
        """Everything, for a file."""
        return {
            "ok": not self.problems,
            "errors": self.errors,
            "leaks": [leak.as_json() for leak in self.leaks],
            "notes": self.notes,
            "splits": {str(m.directory): {name: summary(s) for name, s in m.splits.items()} for m in self.members},
        }


def summary(split):
    """Counts of a split: utterances, hours, speakers, sessions (if known), classes."""
    counts = {
        "utterances": len(split),
        "hours": round(float(split.n_samples.sum()) / SAMPLE_RATE / 3600, 4),
        "speakers": len(set(split.speakers)) if split.speakers else None,
        "classes": dict(sorted(Counter(split.emotions or []).items())),
    }
    if split.meta and "session" in split.meta:
        counts["sessions"] = len(set(split.meta["session"]))
    return counts


def check(directories, label_dirs=(), allow=(), decode=True, workers=4):
    """Check manifest directories, or corpus folders with fold*/ in them; returns a CheckReport. `label_dirs`: folders with, or above, frame
    labels of the first. `allow`: leaks that are no failure, a kind or `kind:split`. Without `decode`: by headers and paths only."""
    members = [
        Member(given, "" if found == directory else found.name, found, read_corpus(found))
        for given, directory in enumerate({Path(d).resolve(): Path(d) for d in directories}.values())
        for found in manifest_directories(directory)
    ]
    report, problems = CheckReport(members), []
    for member in members:
        for name in splits_of(member.directory):
            try:
                member.splits[name] = read_split(member.directory, name, problems=problems)
            except InputError as error:
                problems.append(error)
    report.errors += map(str, problems)
    contents = _check_audio(report, decode, workers)
    for member in members:
        for split in member.splits.values():
            report.errors += [*_list_errors(split), *_scale_errors(split, member.corpus.get("label_scales") or {})]
        report.errors += _dictionary_errors(member, "emo", "class", "emotions", NO_EMOTION)
        report.errors += _dictionary_errors(member, "spk", "speaker", "speakers", UNKNOWN_SPEAKER)
    report.errors += _label_errors([m for m in members if m.given == 0], label_dirs)
    _find_leaks(report, contents, set(allow))
    return report


def _check_audio(report, decode, workers):
    """Read every file once; returns path → content key ("" where nothing can be compared)."""
    uses = defaultdict(list)  # path → [(split, index)]
    for member in report.members:
        for split in member.splits.values():
            if not split.root.is_dir():
                report.errors.append(f"{split.tsv}:1: {split.root}: no such folder; correct the first line, or make the manifest again")
                continue
            for i in range(len(split)):
                uses[split.audio(i)].append((split, i))

    def look(path):
        try:
            return content_of(path) if decode else (str(path.resolve()), probe(path))
        except InputError as error:
            return error

    contents, copies = {}, defaultdict(list)
    for path, result in zip(uses, in_threads(look, uses, "checking audio", "files", workers), strict=True):
        if isinstance(result, InputError):
            split, index = uses[path][0]
            report.errors.append(f"{split.where(index)}: {result}")
            continue
        contents[path], length = result
        copies[contents[path]].append(path)
        if wrong := [(split, index) for split, index in uses[path] if split.n_samples[index] != length]:
            split, index = wrong[0]
            elsewhere = f" (and {len(wrong) - 1} more lines)" if len(wrong) > 1 else ""
            what = f"{path} has {length} samples at 16 kHz, the manifest says {split.n_samples[index]}{elsewhere}"
            report.errors.append(f"{split.where(index)}: {what}; restore the file, or make the manifest again")
    if silent := copies.pop("", []):
        report.notes.append(f"{len(silent)} files are digital silence, such as {silent[0]}: they are not compared")
    if several := [paths for paths in copies.values() if len(paths) > 1]:
        report.notes.append(f"{len(several)} recordings are there under several names, such as {several[0][0]} and {several[0][1]}")
    return contents


def _list_errors(split):
    """No utterance twice in a split, ids unique, no audio without a frame."""
    for what, names in (("path", split.paths), ("id", split.ids)):
        first = {}
        if again := [i for i, name in enumerate(names) if first.setdefault(name, i) != i]:
            where = f"{split.where(again[0])}: the {what} {names[again[0]]} is in line {first[names[again[0]]] + 2} already"
            yield f"{where} ({len(again)} such lines); remove them from the list and its sidecars"
            break
    if len(short := np.flatnonzero(split.n_samples < RECEPTIVE_FIELD)):
        what = f"{split.n_samples[short[0]]} samples are not enough for a frame ({RECEPTIVE_FIELD})"
        yield f"{split.where(short[0])}: {what}; {len(short)} such lines; remove them"


def _dictionary_errors(member, kind, what, attribute, ignored):
    """Classes of all splits and of their votes, or speakers of training splits, are in the dictionary."""
    relevant = [s for s in member.splits.values() if kind == "emo" or role(s.name) == "train"]
    used = [s for s in relevant if set(getattr(s, attribute) or ()) - {ignored} or (kind == "emo" and s.votes)]
    path = member.directory / f"dict.{kind}.txt"
    if not used and not path.exists():
        return
    try:
        known = {*read_dictionary(path), ignored}
    except InputError as error:
        yield str(error)
        return
    for split in used:
        if kind == "emo" and (others := sorted(set(split.votes or ()) - known)):
            what = f"the class “{others[0]}” is not in {path}"
            yield f"{split.directory / split.name}.votes:1: {what}; remove its column, or make the manifest again"
        if unknown := [(i, value) for i, value in enumerate(getattr(split, attribute) or ()) if value not in known]:
            where, lines = split.where(unknown[0][0], kind), f"{len(unknown)} such lines"
            yield f"{where}: the {what} “{unknown[0][1]}” is not in {path} ({lines}); correct the line, or make the manifest again"


def _scale_errors(split, scales):
    """Values of the dimensions lie on the scales that corpus.json states."""
    for name, values in (split.dimensions or {}).items():
        low, high = (scales.get(name, {}).get(end) for end in ("min", "max"))
        outside = [] if low is None or high is None else np.flatnonzero((values < low) | (values > high))
        if len(outside):
            what = f"{name} is {values[outside[0]]:g}, but its scale in corpus.json is {low} to {high}"
            yield f"{split.where(outside[0], 'dim')}: {what} ({len(outside)} such lines); correct the line or the scale"


def _label_errors(members, label_dirs):
    """Every label file below the folders fits the split of these members that it is for."""
    for given in map(Path, label_dirs):
        folders = sorted({p.parent for pattern in ("*.km", "dict.km.txt") for p in given.rglob(pattern)})
        if not folders:
            yield f"{given}: {'holds no label file (SPLIT.km)' if given.is_dir() else 'no such label folder'}; use tools/make_labels.py"
        for folder in folders:
            yield from _label_folder_errors(members, folder)


def _label_folder_errors(members, folder):
    member = next((m for m in members if m.fold and m.fold in folder.parts), None)
    member = member or next((m for m in members if any(role(s) for s in m.splits)), members[0])
    if member.fold and member.fold not in folder.parts:
        yield f"{folder}: no telling which fold these labels are for; give one fold instead of {member.directory.parent}"
        return
    try:
        symbols = read_dictionary(folder / "dict.km.txt")
    except InputError as error:
        yield str(error)
        return
    for name, split in member.splits.items():
        if role(name) == "train" and not (folder / f"{name}.km").is_file():
            yield f"{folder / name}.km: no such label file, but {split.tsv} lists audio; make the labels"
    for path in sorted(folder.glob("*.km")):
        try:
            if path.stem not in member.splits:
                raise InputError(f"{path}: {member.directory} has no readable split {path.stem}; give the manifest of these labels")
            read_frame_labels(path, symbols, member.splits[path.stem].n_samples)
        except InputError as error:
            yield str(error)


def _find_leaks(report, contents, allow):
    for a, b in ((a, b) for a in report.members for b in report.members if a.comparable(b)):
        for first, second in product(a.splits.values(), b.splits.values()):
            if role(first.name) == "train" and role(second.name) in ("valid", "test"):
                if share_people(a.corpus.get("corpus"), b.corpus.get("corpus")):
                    _compare_people(report, allow, first, second)
                _compare_audio(report, contents, allow, first, second)
    for member in report.members:  # choosing on the test audio is a leak as well
        for first, second in combinations(member.splits.values(), 2):
            if {role(first.name), role(second.name)} == {"valid", "test"}:
                _compare_audio(report, contents, allow, first, second)


def _compare_people(report, allow, first, second):
    for kind, suffix in (("speaker", "spk"), ("session", "meta.tsv")):
        mine, theirs = ((s.speakers if kind == "speaker" else (s.meta or {}).get("session")) or [] for s in (first, second))
        if shared := sorted((set(mine) & set(theirs)) - {UNKNOWN_SPEAKER, ""}):
            _add_leak(report, allow, kind, first, second, shared, second.where(theirs.index(shared[0]), suffix))


def _compare_audio(report, contents, allow, first, second):
    mine, theirs = ({contents.get(s.audio(i)): i for i in reversed(range(len(s)))} for s in (first, second))
    if keys := [k for k in theirs if k and k in mine]:
        pairs = [(first.audio(mine[k]), second.audio(theirs[k])) for k in keys]
        shared = [str(a) if a == b else f"{a} = {b}" for a, b in pairs]
        _add_leak(report, allow, "audio", first, second, shared, second.where(theirs[keys[0]]))


def _add_leak(report, allow, kind, first, second, shared, where):
    remedy = "remove them from one of the two" if kind == "audio" else f"use splits that share no {kind}"
    what = f"{len(shared)} {LEAKS[kind]} of {first.tsv} are in {second.tsv} too ({examples(shared)})"
    message = f"{where}: leak of {kind}: {what}; {remedy}, or allow it with --allow {kind}:{second.name}"
    allowed = kind in allow or f"{kind}:{second.name}" in allow
    report.leaks.append(Leak(kind, shared, allowed, {"first": str(first.tsv), "second": str(second.tsv)}, message))
