"""Audio in tar shards: a few large files instead of millions of small ones, which shared disks are slow to open.

A shard is a plain tar as WebDataset reads it: members `KEY.wav` or `KEY.flac`, the original files byte for byte, one after
the other. A manifest names a member by where it lies, `shards/000003.tar:OFFSET:SIZE`, so that only its own bytes are read.
"""

import hashlib
import logging
import os
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from ..core.cli import progress
from ..core.errors import InputError
from ..core.files import Stamp, append, atomic, make_folder, require_space
from .audio import is_packed, probe
from .derived_manifests import relocate, relocate_others
from .manifest import manifest_directories, read_split, splits_of

logger = logging.getLogger(__name__)

FOLDER = "shards"
_END = b"\0" * 2 * tarfile.BLOCKSIZE


@dataclass
class _Recording:
    """A file that is packed: where it is, what it is called in the tar, and the `file:line` that lists it first."""

    file: str
    name: str
    size: int
    changed: int
    n_samples: int
    listed: str
    header: bytes = b""
    offset: int = 0

    @property
    def stored(self):
        """Bytes in a tar, with the header and the padding."""
        return len(self.header) + self.size + -self.size % tarfile.BLOCKSIZE


@dataclass
class _Shard:
    """A tar that is written, and what is in it."""

    path: Path
    recordings: list = field(default_factory=list)
    size: int = 0

    def add(self, recording):
        recording.offset = self.size + len(recording.header)
        self.recordings.append(recording)
        self.size += recording.stored

    @property
    def stamp(self):
        """Made of these files, unchanged since."""
        digest = hashlib.sha256()
        for r in self.recordings:
            digest.update(f"{r.name}\0{r.size}\0{r.changed}\0{r.n_samples}\n".encode("utf-8", "surrogateescape"))
        return Stamp(f"{self.path}.json", {"recordings": digest.hexdigest(), "bytes": self.size}, [self.path])

    @property
    def is_current(self):
        """Whether it is whole and made of these files."""
        return self.stamp.is_current() and self.path.stat().st_size == self.size + len(_END)


def member_name(path):
    """The name of a recording in a tar: percent-encoded, so that WebDataset's key, which ends at the first dot, is all but the ending."""
    suffix = Path(path).suffix
    ending = suffix if re.fullmatch(r"\.[A-Za-z0-9]+", suffix) else ""
    return quote(os.fsencode(path.removesuffix(ending)), safe="/ ").replace(".", "%2E") + (ending or ".")


def original_path(name):
    """The path that a member's name was made from."""
    stem, _, ending = name.rpartition(".")
    return os.fsdecode(unquote(stem, errors="surrogateescape").encode("utf-8", "surrogateescape")) + (f".{ending}" if ending else "")


def pack(directory, out, shard_bytes=1_000_000_000, jobs=4, overwrite=False):
    """Pack the audio of a manifest directory, its folds included, and write the manifest directory that lists it.

    Every file is packed once, in the order of the lists; the same files give the same shards, byte for byte. A shard is written
    under a temporary name, its recordings are opened and their lengths compared with the manifest's, and then it gets its stamp:
    a second run only makes what is missing.

    Args:
        directory: manifest directory.
        out: folder of the new one; the shards are in it.
        shard_bytes: a shard is closed before it would be larger.
        jobs: shards that are written at once.
        overwrite: write all shards again.

    Returns:
        (recordings, shards, shards that were written now).

    Raises:
        InputError: a recording is missing, damaged, of another length than the manifest says, or packed already; there is not
            enough space.
    """
    directory, out = Path(directory), make_folder(out)
    if out.resolve() == directory.resolve():
        raise InputError(f"{out}: is the manifest directory itself; choose another output folder")
    splits = [read_split(d, name, sidecars=["meta"]) for d in manifest_directories(directory) for name in splits_of(d)]
    recordings = _recordings(splits)
    shards = _fill(recordings.values(), make_folder(out / FOLDER), shard_bytes)
    wanted = [shard for shard in shards if overwrite or not shard.is_current]
    require_space(out, sum(shard.size + len(_END) for shard in wanted))
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        for _ in progress(pool.map(_write, wanted), "packing", total=len(wanted), unit="shards"):
            pass
    logger.info("%d of %d shards were whole already", len(shards) - len(wanted), len(shards))
    places = {r.file: f"{shard.path.relative_to(out).as_posix()}:{r.offset}:{r.size}" for shard in shards for r in shard.recordings}
    root = out.resolve()
    for split in splits:
        to = out / split.directory.relative_to(directory)
        relocate(split, to, root, (places[_file(split, i)] for i in range(len(split))))
    for folder in {split.directory: None for split in splits} | {directory: None}:
        relocate_others(folder, out / folder.relative_to(directory), root=str(root), packed_from=str(directory.resolve()))
    _remove_others(out / FOLDER, shards)
    return len(recordings), len(shards), len(wanted)


def _file(split, index):
    return os.path.normpath(split.audio(index))


def _recordings(splits):
    """Full path → _Recording, in the order of the lists."""
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
                found[file] = _Recording(file, "", stat.st_size, stat.st_mtime_ns, n_samples, split.where(i))
            elif found[file].n_samples != n_samples:
                raise InputError(
                    f"{split.where(i)}: {n_samples} samples, but {found[file].listed} says {found[file].n_samples}; make one right"
                )
    base = os.path.commonpath([os.path.dirname(file) for file in found])
    roots = {os.path.normpath(split.root) for split in splits}
    if len(roots) == 1 and all(file.startswith(f"{next(iter(roots))}{os.sep}") for file in found):
        base = next(iter(roots))
    for recording in found.values():
        recording.name = member_name(os.path.relpath(recording.file, base))
        member = tarfile.TarInfo(recording.name)
        member.size, member.mode = recording.size, 0o644  # no owner and no time: the same files, the same bytes
        recording.header = member.tobuf(tarfile.PAX_FORMAT)
    return found


def _fill(recordings, folder, shard_bytes):
    shards = []
    for recording in recordings:
        if not shards or shards[-1].size + recording.stored + len(_END) > shard_bytes:
            shards.append(_Shard(folder / f"{len(shards):06}.tar"))
        shards[-1].add(recording)
    return shards


def _write(shard):
    stamp = shard.stamp
    stamp.clear()
    with atomic(shard.path, "wb") as f:
        for r in shard.recordings:
            f.write(r.header)
            append(r.file, f)
            if f.tell() != r.offset + r.size:
                raise InputError(f"{r.file}: was changed while it was packed; start again when nothing writes to it")
            f.write(b"\0" * (-r.size % tarfile.BLOCKSIZE))
        f.write(_END)
    for r in shard.recordings:
        try:
            n_samples = probe(f"{shard.path}:{r.offset}:{r.size}").n_samples
        except InputError as error:
            raise InputError(f"{r.listed}: {r.file}: {error}") from None
        if n_samples != r.n_samples:
            raise InputError(
                f"{r.listed}: {r.file} has {n_samples} samples at 16 kHz, the manifest says {r.n_samples}; restore the file, or make the "
                "manifest again"
            )
    stamp.write()


def _remove_others(folder, shards):
    """Remove shards of an earlier packing, which nothing lists any more."""
    kept = {shard.path.name for shard in shards}
    for stamp in sorted(folder.glob("*.tar.json")):
        name = stamp.name.removesuffix(".json")
        if re.fullmatch(r"\d{6}\.tar", name) and name not in kept:
            logger.info("%s: removed, it is of an earlier packing", folder / name)
            stamp.unlink()
            (folder / name).unlink(missing_ok=True)
