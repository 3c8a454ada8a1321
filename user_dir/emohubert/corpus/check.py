"""Checks of manifest directories: is everything readable, aligned and known, and does evaluation leak into training?

A leak is something that a training split shares with a validation or test split: a speaker, a recording session, or the
audio itself, also under another name. The folds of one corpus folder are protocols of their own and are not compared with
each other; different folders, such as one for pretraining and one for fine-tuning, are.
"""

import hashlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import soundfile

from ..core.cli import progress
from ..core.errors import InputError
from .audio import RECEPTIVE_FIELD, SAMPLE_RATE, opened, probe, resampled_length
from .frame_labels import read_frame_labels
from .manifest import NO_EMOTION, UNKNOWN_SPEAKER, manifest_directories, read_corpus, read_dictionary, read_split, splits_of

LEAKS = ("speaker", "session", "audio")
_BLOCK = 1 << 18  # samples decoded at a time
_NAMED = 3  # examples in a message


def role(split):
    """What a split is for, by its name: "train", "valid", "test", or "" for any other (such as `all`)."""
    for name, starts in (("train", ("train",)), ("valid", ("valid", "dev")), ("test", ("test",))):
        if split.startswith(starts):
            return name
    return ""


@dataclass
class Member:
    """One manifest directory that is checked: the folder the user gave, or a fold in it."""

    given: int
    fold: str
    directory: Path
    corpus: dict
    splits: dict = field(default_factory=dict)

    def comparable(self, other):
        """Whether training on one and testing on the other belong to one experiment."""
        return self is other or (self.given != other.given and (self.fold == other.fold or "" in (self.fold, other.fold)))


@dataclass
class Leak:
    """What two splits share.

    Attributes:
        kind: of `LEAKS`.
        first, second: the splits' `.tsv` files.
        shared: speakers, sessions, or pairs of `path = path`.
        allowed: whether the user allowed it.
        where: `file:line` of the first shared one in the second split.
    """

    kind: str
    first: Path
    second: Path
    shared: list
    allowed: bool
    where: str

    def __str__(self):
        what = {"speaker": "speakers", "session": "sessions", "audio": "recordings"}[self.kind]
        more = ", …" if len(self.shared) > _NAMED else ""
        remedy = "remove them from one of the two" if self.kind == "audio" else f"use splits that share no {self.kind}"
        return (
            f"{self.where}: leak of {self.kind}: {len(self.shared)} {what} of {self.first} are in {self.second} too "
            f"({', '.join(self.shared[:_NAMED])}{more}); {remedy}, or allow it with --allow {self.kind}:{self.second.stem}"
        )


@dataclass
class Report:
    """What a check found: errors and leaks that are not allowed make it fail, notes do not."""

    members: list
    errors: list = field(default_factory=list)
    leaks: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    @property
    def problems(self):
        """One line for each error and each leak that is not allowed."""
        return [*self.errors, *(str(leak) for leak in self.leaks if not leak.allowed)]

    def as_json(self):
        """Everything, for a file."""
        return {
            "ok": not self.problems,
            "errors": self.errors,
            "leaks": [
                {"kind": k.kind, "first": str(k.first), "second": str(k.second), "shared": k.shared, "allowed": k.allowed}
                for k in self.leaks
            ],
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
    """Check manifest directories.

    Args:
        directories: manifest directories, or corpus folders with fold*/ in them.
        label_dirs: folders with frame labels of the first of them (`{split}.km`, `dict.km.txt`), or any folder above;
            for a corpus with folds, below a folder named like the fold.
        allow: leaks that are reported but no failure: a kind, or `kind:split` for those into one evaluation split.
        decode: decode every file; otherwise only headers are read, and audio is compared by its path.
        workers: threads.

    Returns:
        Report.

    Raises:
        InputError: a folder holds no manifests at all.
    """
    members = []
    for given, directory in enumerate({Path(d).resolve(): Path(d) for d in directories}.values()):
        for found in manifest_directories(directory):
            fold = "" if found == directory else found.name
            members.append(Member(given, fold, found, read_corpus(found)))
    report = Report(members)
    for member in members:
        for name in splits_of(member.directory):
            problems = []
            try:
                member.splits[name] = read_split(member.directory, name, problems=problems)
            except InputError as error:
                problems.append(error)
            report.errors.extend(str(p) for p in problems)
    contents = _check_audio(report, decode, workers)
    for member in members:
        _check_lists(report, member)
        _check_dictionaries(report, member)
        _check_scales(report, member)
    _check_labels(report, label_dirs)
    _find_leaks(report, contents, set(allow))
    return report


def content_of(path):
    """Hash of a file's decoded samples at 16 bits, and its length at 16 kHz; a FLAC copy of a WAV file has the same hash.

    Returns:
        (hex digest, or "" if the file is digital silence, and the number of samples at 16 kHz)

    Raises:
        InputError: the file is missing, not audio, truncated, damaged, or holds NaN.
    """
    path = Path(path)
    probe(path)
    digest, frames, silent = hashlib.sha256(), 0, True
    try:
        with opened(path) as f:
            for block in f.blocks(_BLOCK, dtype="float32", always_2d=True):
                if not np.isfinite(block).all():
                    raise InputError(f"{path}: holds samples that are not numbers (NaN or infinite); restore it")
                digest.update(np.clip(np.rint(block * 32768), -32768, 32767).astype("<i2").tobytes())
                frames += len(block)
                silent = silent and not block.any()
            if frames != f.frames:
                raise InputError(f"{path}: truncated, {frames} of {f.frames} samples can be read; restore it")
            return "" if silent else digest.hexdigest(), resampled_length(frames, f.samplerate)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: damaged after sample {frames} ({error.error_string}); restore it") from error


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
            if decode:
                return content_of(path)
            return str(path.resolve()), probe(path).n_samples
        except InputError as error:
            return error

    contents, silent, twice = {}, [], defaultdict(list)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        results = pool.map(look, uses)
        for path, result in zip(uses, progress(results, "checking audio", total=len(uses), unit="files"), strict=True):
            split, index = uses[path][0]
            if isinstance(result, InputError):
                report.errors.append(f"{split.where(index)}: {result}")
                continue
            contents[path], length = result
            if not contents[path]:
                silent.append(path)
            else:
                twice[contents[path]].append(path)
            wrong = [(split, index) for split, index in uses[path] if split.n_samples[index] != length]
            if wrong:
                split, index = wrong[0]
                elsewhere = f" (and {len(wrong) - 1} more lines)" if len(wrong) > 1 else ""
                report.errors.append(
                    f"{split.where(index)}: {path} has {length} samples at 16 kHz, the manifest says {split.n_samples[index]}{elsewhere}; "
                    "restore the file, or make the manifest again"
                )
    if silent:
        report.notes.append(f"{len(silent)} files are digital silence, such as {silent[0]}: they are not compared")
    copies = [paths for paths in twice.values() if len(paths) > 1]
    if copies:
        report.notes.append(f"{len(copies)} recordings are there under several names, such as {copies[0][0]} and {copies[0][1]}")
    return contents


def _check_lists(report, member):
    """No utterance twice in a split, none without a frame, ids unique; sidecars that training needs are there."""
    for split in member.splits.values():
        for what, names in (("path", split.paths), ("id", split.ids)):
            first = {}
            again = [i for i, name in enumerate(names) if first.setdefault(name, i) != i]
            if again:
                report.errors.append(
                    f"{split.where(again[0])}: the {what} {names[again[0]]} is in line {first[names[again[0]]] + 2} already "
                    f"({len(again)} such lines); remove them from the list and its sidecars"
                )
                break
        short = np.flatnonzero(split.n_samples < RECEPTIVE_FIELD)
        if len(short):
            report.errors.append(
                f"{split.where(short[0])}: {split.n_samples[short[0]]} samples are not enough for a frame ({RECEPTIVE_FIELD}); "
                f"{len(short)} such lines; remove them"
            )


def _check_dictionaries(report, member):
    """Classes of all splits, and speakers of training splits, are in the dictionaries."""
    for kind, attribute, ignored in (("emo", "emotions", NO_EMOTION), ("spk", "speakers", UNKNOWN_SPEAKER)):
        used = [s for s in member.splits.values() if getattr(s, attribute) and (kind == "emo" or role(s.name) == "train")]
        used = [s for s in used if set(getattr(s, attribute)) != {ignored}]
        path = member.directory / f"dict.{kind}.txt"
        if not used and not path.exists():
            continue
        try:
            known = {*read_dictionary(path), ignored}
        except InputError as error:
            report.errors.append(str(error))
            continue
        for split in used:
            unknown = [i for i, value in enumerate(getattr(split, attribute)) if value not in known]
            if unknown:
                value = getattr(split, attribute)[unknown[0]]
                what = "class" if kind == "emo" else "speaker"
                report.errors.append(
                    f"{split.where(unknown[0], kind)}: the {what} “{value}” is not in {path} ({len(unknown)} such lines); "
                    "correct the line, or make the manifest again"
                )


def _check_scales(report, member):
    """Values of the dimensions lie on the scales that corpus.json states."""
    scales = member.corpus.get("label_scales") or {}
    for split in member.splits.values():
        for name, values in (split.dimensions or {}).items():
            low, high = (scales.get(name, {}).get(end) for end in ("min", "max"))
            outside = np.isinf(values)
            if low is not None and high is not None:
                outside |= (values < low) | (values > high)
            if outside.any():
                i = int(np.argmax(outside))
                report.errors.append(
                    f"{split.where(i, 'dim')}: {name} is {values[i]:g}, but its scale in corpus.json is {low} to {high} "
                    f"({int(outside.sum())} such lines); correct the line or the scale"
                )


def _check_labels(report, label_dirs):
    """Every label file below the folders fits the split it is for."""
    for given in map(Path, label_dirs):
        if not given.is_dir():
            report.errors.append(f"{given}: no such label folder; make it with tools/make_labels.py")
            continue
        folders = sorted({p.parent for pattern in ("*.km", "dict.km.txt") for p in given.rglob(pattern)})
        if not folders:
            report.errors.append(f"{given}: holds no label file (SPLIT.km); make them with tools/make_labels.py")
        for folder in folders:
            _check_label_folder(report, folder)


def _check_label_folder(report, folder):
    members = [m for m in report.members if m.given == 0]
    member = next((m for m in members if m.fold and m.fold in folder.parts), None)
    member = member or next((m for m in members if any(role(s) for s in m.splits)), members[0])
    if member.fold and member.fold not in folder.parts:
        report.errors.append(f"{folder}: no telling which fold these labels are for; give one fold instead of {member.directory.parent}")
        return
    try:
        symbols = read_dictionary(folder / "dict.km.txt")
    except InputError as error:
        report.errors.append(str(error))
        return
    files = sorted(folder.glob("*.km"))
    for name in member.splits:
        if role(name) == "train" and not (folder / f"{name}.km").is_file():
            report.errors.append(f"{folder / name}.km: no such label file, but {member.splits[name].tsv} lists audio; make the labels")
    for path in files:
        split = member.splits.get(path.stem)
        if split is None:
            report.errors.append(f"{path}: {member.directory} has no readable split {path.stem}; give the manifest of these labels")
            continue
        try:
            read_frame_labels(path, symbols, split.n_samples)
        except InputError as error:
            report.errors.append(str(error))


def _find_leaks(report, contents, allow):
    pairs = [(a, b) for a in report.members for b in report.members if a.comparable(b)]
    for a, b in pairs:
        for first in (s for s in a.splits.values() if role(s.name) == "train"):
            for second in (s for s in b.splits.values() if role(s.name) in ("valid", "test")):
                _compare(report, contents, allow, (a, first), (b, second), LEAKS)
    for member in report.members:  # choosing on the test audio is a leak as well
        for first, second in combinations(member.splits.values(), 2):
            if {role(first.name), role(second.name)} == {"valid", "test"}:
                _compare(report, contents, allow, (member, first), (member, second), ("audio",))


def _compare(report, contents, allow, one, other, kinds):
    """Add the leaks between two splits to the report."""
    (a, first), (b, second) = one, other
    same_people = a.corpus.get("corpus") is None or b.corpus.get("corpus") is None or a.corpus["corpus"] == b.corpus["corpus"]
    for kind in kinds:
        if kind == "audio":
            mine, theirs = ({contents.get(s.audio(i)): i for i in reversed(range(len(s)))} for s in (first, second))
            keys = [k for k in theirs if k and k in mine]
            shared = [_same(first.audio(mine[k]), second.audio(theirs[k])) for k in keys]
            where = second.where(theirs[keys[0]]) if keys else ""
        else:
            mine, theirs = ((s.speakers if kind == "speaker" else (s.meta or {}).get("session")) or [] for s in (first, second))
            shared = sorted((set(mine) & set(theirs)) - {UNKNOWN_SPEAKER, ""}) if same_people else []
            where = second.where(theirs.index(shared[0]), "spk" if kind == "speaker" else "meta.tsv") if shared else ""
        if shared:
            allowed = kind in allow or f"{kind}:{second.name}" in allow
            report.leaks.append(Leak(kind, first.tsv, second.tsv, shared, allowed, where))


def _same(one, other):
    return str(one) if one == other else f"{one} = {other}"
