"""Audio in tar shards: a few large files instead of millions of small ones, which shared disks are slow to open.

A shard is a plain tar as WebDataset reads it, of the original files. A manifest names a member by `shards/000003.tar:OFFSET:SIZE`.
"""

import logging
import os
import re
import tarfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..core.errors import InputError
from ..core.files import atomic, make_folder, read_json, require_space, write_json, write_lines
from ..core.parallel import in_threads
from .audio import is_packed, probe
from .manifest import manifest_directories, read_split, splits_of, table_lines

logger = logging.getLogger(__name__)

FOLDER = "shards"


class _Recording(NamedTuple):
    """A file that is packed."""

    file: str
    size: int
    changed: float  # time of the last change
    n_samples: int
    listed: str  # the `file:line` that lists it first


def member_name(path):
    """The name of a recording in a tar: percent-encoded, so that WebDataset's key, which ends at the first dot, is all but the ending."""
    suffix = Path(path).suffix
    ending = suffix if re.fullmatch(r"\.[A-Za-z0-9]+", suffix) else ""
    return quote(os.fsencode(path.removesuffix(ending)), safe="/ ").replace(".", "%2E") + (ending or ".")


def pack(directory, out, shard_bytes=1_000_000_000, jobs=4, overwrite=False):
    """Pack the audio of a manifest directory, folds included, into shards below `out`, and write the manifest directory that lists it
    there. Every file is packed once; the same files give the same bytes, and a second run only makes what is missing. Returns (recordings,
    shards, shards written now). InputError if a recording is missing, damaged, of another length, or packed already."""
    directory, out = Path(directory), make_folder(out)
    if out.resolve() == directory.resolve():
        raise InputError(f"{out}: is the manifest directory itself; choose another output folder")
    splits = [read_split(d, name, sidecars=["meta"]) for d in manifest_directories(directory) for name in splits_of(d)]
    recordings = _recordings(splits)
    folder = make_folder(out / FOLDER)
    shards = {folder / f"{i:06}.tar": shard for i, shard in enumerate(_divided(recordings, shard_bytes))}
    wanted = [path for path, shard in shards.items() if overwrite or not _places(path, shard)]
    require_space(out, sum(map(_stored, (r for path in wanted for r in shards[path].values()))))
    for _ in in_threads(lambda path: _write(path, shards[path]), wanted, "packing", "shards", jobs):
        pass
    logger.info("%d of %d shards were whole already", len(shards) - len(wanted), len(shards))
    places = {r.file: place for path, shard in shards.items() for r, place in zip(shard.values(), _places(path, shard), strict=True)}
    root = out.resolve()
    for split in splits:
        _relocate(split, out / split.directory.relative_to(directory), root, [places[_file(split, i)] for i in range(len(split))])
    for d in {split.directory: None for split in splits} | {directory: None}:
        _copy(d.glob("dict.*.txt"), make_folder(out / d.relative_to(directory)))
        if (d / "corpus.json").is_file():
            facts = {"root": str(root), "packed_from": str(directory.resolve())}
            write_json(out / d.relative_to(directory) / "corpus.json", read_json(d / "corpus.json") | facts)
    for path in set(folder.glob("??????.tar")) - shards.keys():  # of an earlier packing
        path.unlink()
    return len(recordings), len(shards), len(wanted)


def _relocate(split, out, root, paths):
    """Write a split (with `meta`) to `out` whose audio is at `paths` below `root` now, with its sidecars and the utterances' ids."""
    columns = {"id": split.ids} | (split.meta or {})
    _copy((path for path in split.files if path.suffix != ".tsv"), make_folder(out))
    write_lines(out / f"{split.name}.meta.tsv", table_lines(columns, zip(*columns.values(), strict=True)))
    write_lines(out / split.tsv.name, [root, *(f"{path}\t{n}" for path, n in zip(paths, split.n_samples, strict=True))])


def _copy(files, folder):
    for path in files:
        with atomic(folder / path.name, "wb") as f:
            f.write(path.read_bytes())


def _file(split, index):
    return os.path.normpath(split.audio(index))


def _recordings(splits):
    """{name in the tar: _Recording}, each file once, in the order of the lists."""
    found = {}
    for split in splits:
        for i, n_samples in enumerate(split.n_samples.tolist()):
            file = _file(split, i)
            if is_packed(file):
                raise InputError(f"{split.where(i)}: {file} is in a shard already; pack the original manifest")
            if file not in found:
                try:
                    stat = os.stat(file)
                except OSError as error:
                    raise InputError(f"{split.where(i)}: {file}: no such audio file; restore it or remove it from the manifest") from error
                found[file] = _Recording(file, stat.st_size, stat.st_mtime, n_samples, split.where(i))
            elif (first := found[file]).n_samples != n_samples:
                raise InputError(f"{split.where(i)}: {n_samples} samples, but {first.listed} says {first.n_samples}; make one right")
    roots = {os.path.normpath(split.root) for split in splits}
    base = next(iter(roots)) if len(roots) == 1 else os.path.commonpath([os.path.dirname(file) for file in found])
    return {member_name(os.path.relpath(file, base)): recording for file, recording in found.items()}


def _stored(recording):
    """About how many bytes a recording takes in a tar."""
    return tarfile.BLOCKSIZE * (4 + recording.size // tarfile.BLOCKSIZE)


def _divided(recordings, shard_bytes):
    """The recordings of each shard, as many as fit into its bytes: dicts like `recordings`."""
    shards, size = [], 0
    for name, recording in recordings.items():
        size += _stored(recording)
        if not shards or size > shard_bytes:
            shards.append({})
            size = _stored(recording)
        shards[-1][name] = recording
    return shards


def _places(path, shard):
    """Path of every recording in manifests, `shards/NAME.tar:OFFSET:SIZE`; none if the tar is damaged, or not of these files as they are."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
    except (tarfile.TarError, OSError):
        return []
    if [(m.name, m.size, m.mtime) for m in members] != [(name, r.size, r.changed) for name, r in shard.items()]:
        return []
    return [f"{FOLDER}/{path.name}:{m.offset_data}:{m.size}" for m in members]


def _write(path, shard):
    """Write a tar, open its recordings, and compare their lengths with the manifest's; if they differ, it does not stay."""
    with atomic(path, "wb") as f, tarfile.open(fileobj=f, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, r in shard.items():
            member = tarfile.TarInfo(name)  # no owner: the same files, the same bytes
            member.size, member.mode, member.mtime = r.size, 0o644, r.changed
            with open(r.file, "rb") as audio:
                tar.addfile(member, audio)
    for r, place in zip(shard.values(), _places(path, shard), strict=True):
        try:
            probe(path.parent.parent / place, r.n_samples)
        except InputError as error:
            path.unlink()
            raise InputError(f"{r.listed}: {r.file}: {error}") from None
