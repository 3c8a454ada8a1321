"""Manifest directories made from others: without labels, or with the audio elsewhere, such as copied to a local disk."""

import fcntl
import hashlib
import os
from itertools import chain
from pathlib import Path

from ..core.errors import InputError
from ..core.files import copy, make_folder, read_json, require_space, write_json, write_lines
from ..core.parallel import in_threads
from .audio import locate
from .manifest import NO_EMOTION, UNKNOWN_SPEAKER, Utterance, manifest_directories, read_split, splits_of, table_lines, write_splits

STAGED = "staged.json"  # says where the manifest directory of a local copy comes from


def write_unlabelled(directory, out, parts):
    """Write a manifest directory of some splits' audio, speakers and sessions, without any labels; returns {new split: utterances}.
    `parts`: new split → names of the splits of `directory` that it is made of (none: it is not written)."""
    new, seen = {}, {}
    for name, sources in parts.items():
        for source in sources:
            split = read_split(directory, source)
            for i, (path, name_of) in enumerate(zip(split.paths, split.ids, strict=True)):
                if path in seen:
                    raise InputError(f"{split.where(i)}: {path} is in {seen[path]} too; give each utterance to one split")
                seen[path] = split.tsv
                speaker = split.speakers[i] if split.speakers else UNKNOWN_SPEAKER
                meta = {"id": name_of} | ({"session": split.meta["session"][i]} if split.meta and "session" in split.meta else {})
                new.setdefault(name, []).append(Utterance(path, int(split.n_samples[i]), speaker, NO_EMOTION, {}, meta))
    write_splits(out, split.root, new)
    return {name: len(utterances) for name, utterances in new.items()}


def relocate(split, out, root, paths):
    """Write a split (with `meta`) to `out` whose audio is at `paths` below `root` now, with its sidecars and the utterances' ids."""
    out, meta = make_folder(out), f"{split.name}.meta.tsv"
    for old in split.files:
        if not old.name.endswith(".tsv"):
            copy(old, out / old.name)
    if split.meta and "id" in split.meta:
        copy(split.directory / meta, out / meta)
    else:
        columns = split.meta or {}
        write_lines(out / meta, table_lines(["id", *columns], zip(split.ids, *columns.values(), strict=True)))
    write_lines(out / split.tsv.name, chain([root], (f"{path}\t{n}" for path, n in zip(paths, split.n_samples, strict=True))))


def relocate_others(directory, out, **changes):
    """Copy the dictionaries of a manifest directory, and `corpus.json` with some changes."""
    out = make_folder(out)
    for old in sorted(Path(directory).glob("dict.*.txt")):
        copy(old, out / old.name)
    if (Path(directory) / "corpus.json").is_file():
        write_json(out / "corpus.json", read_json(Path(directory) / "corpus.json") | changes)


def stage(directory, local, splits=None, name="manifest", jobs=8):
    """Copy the audio of a manifest directory, folds included, to the folder `local`, and write the manifest directory `name` there. Paths,
    sizes and times of change stay: labels and features of the one are those of the other. Other processes that copy to the same folder wait
    for it. Returns (the new manifest directory, files, files copied now). InputError if a split, a file or space is missing."""
    directory, local = Path(directory), make_folder(local)
    every = [(d, s) for d in manifest_directories(directory) for s in splits_of(d)]
    found = [read_split(d, s, sidecars=["meta"]) for d, s in every if splits is None or s in splits]
    if missing := sorted(set(splits or []) - {split.name for split in found}):
        raise InputError(f"{directory}: has no split {missing[0]}; choose from {' '.join(sorted({s for _, s in every}))}")
    out, origin = local / name, str(directory.resolve())
    with open(local / ".staging.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released however the process ends
        marker = out / STAGED
        if out.is_dir() and any(out.iterdir()) and not (marker.is_file() and read_json(marker)["staged"] == origin):
            raise InputError(f"{out}: holds something other than a copy of {directory}; choose another --name or folder")
        files = _files(found, local)
        copied = _copy(files, local, jobs)
        write_json(make_folder(out) / STAGED, {"staged": origin, "manifest": None, "roots": {}})
        for folder in dict.fromkeys(split.directory for split in found):
            own, to = [split for split in found if split.directory == folder], make_folder(out / folder.relative_to(directory))
            for split in own:
                relocate(split, to, _root(split, local), split.paths)
            roots = {split.name: str(split.root.resolve()) for split in own}
            write_json(to / STAGED, {"staged": origin, "manifest": str(folder.resolve()), "roots": roots})
            relocate_others(folder, to)
        relocate_others(directory, out)
    return out, len(files), copied


def _root(split, local):
    """The folder that takes the place of a split's root."""
    root = os.path.realpath(split.root)
    return local.resolve() / "audio" / f"{os.path.basename(root)}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"


def _files(splits, local):
    """File → its copy, each once, in the order of the lists."""
    found = {}
    for split in splits:
        root = _root(split, local)
        for i, path in enumerate(split.paths):
            relative = locate(path).file
            if relative.is_absolute() or ".." in relative.parts:
                raise InputError(f"{split.where(i)}: {path} is not below the root; make the manifest with paths that are")
            old = split.root / relative
            if old not in found and not old.is_file():
                raise InputError(f"{split.where(i)}: {old}: no such audio file; restore it or remove it from the manifest")
            found[old] = root / relative
    return found


def _copy(files, local, jobs):
    """Copy what is not there yet; returns how many files that were."""
    state = lambda path: path.exists() and (path.stat().st_size, path.stat().st_mtime_ns)  # noqa: E731
    wanted = {old: new for old, new in files.items() if state(old) != state(new)}
    require_space(local, sum(old.stat().st_size for old in wanted))
    for folder in {new.parent for new in wanted.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    return len(list(in_threads(lambda old: copy(old, wanted[old]), wanted, "copying", "files", jobs)))


def origin(split):
    """(audio list, root) of a split: those that it is a local copy of, if it is one (see `stage`), otherwise its own."""
    path = split.directory / STAGED
    if not path.is_file():
        return split.tsv, split.root
    staged = read_json(path)
    return Path(staged["manifest"]) / split.tsv.name, Path(staged["roots"][split.name])
