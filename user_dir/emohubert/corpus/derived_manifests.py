"""Manifest directories made from others: with the audio elsewhere, or without labels."""

import glob
from itertools import chain
from pathlib import Path

from ..core.errors import InputError
from ..core.files import copy, make_folder, read_json, write_json, write_lines
from .manifest import NO_EMOTION, UNKNOWN_SPEAKER, Utterance, read_split, table_lines, write_splits

STAGED = "staged.json"
"""Says where the manifest directory of a local copy comes from."""


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
    for old in sorted(split.directory.glob(f"{glob.escape(split.name)}.*")):
        if old.name not in (split.tsv.name, meta) and not old.name.endswith(".tsv") and old.is_file():
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


def origin(split):
    """(audio list, root) of a split: those that it is a local copy of, if it is one (see `local_copy`), otherwise its own."""
    path = split.directory / STAGED
    if not path.is_file():
        return split.tsv, split.root
    staged = read_json(path)
    return Path(staged["manifest"]) / split.tsv.name, Path(staged["roots"][split.name])
