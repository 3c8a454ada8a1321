"""Audio in tar shards: a few large files instead of millions of small ones, which shared disks are slow to open.

A shard is a plain tar as WebDataset reads it, of the original files. A manifest names a member by `shards/000003.tar:OFFSET:SIZE`.
"""

import logging
import os
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from ..core.errors import InputError
from ..core.files import Stamp, atomic, fingerprint, make_folder, require_space
from ..core.parallel import in_threads
from .audio import is_packed, probe
from .derived_manifests import relocate, relocate_others
from .manifest import manifest_directories, read_split, splits_of

logger = logging.getLogger(__name__)

FOLDER = "shards"


@dataclass
class _Recording:
    """A file that is packed."""

    file: str
    size: int
    changed: int
    n_samples: int
    listed: str  # the `file:line` that lists it first
    name: str = ""  # in the tar


@dataclass
class _Shard:
    """A tar of some recordings."""

    path: Path
    recordings: list = field(default_factory=list)

    @property
    def size(self):
        """About how many bytes it has."""
        return sum(tarfile.BLOCKSIZE * (2 + r.size // tarfile.BLOCKSIZE) for r in self.recordings)

    @property
    def stamp(self):
        """Made of these files, unchanged since."""
        made_of = [(r.name, r.size, r.changed, r.n_samples) for r in self.recordings]
        return Stamp(f"{self.path}.json", {"recordings": fingerprint(made_of)}, [self.path])

    def places(self):
        """Path of every recording in manifests, `shards/NAME.tar:OFFSET:SIZE`; none if the tar is damaged or not of these files."""
        try:
            with tarfile.open(self.path, "r:") as tar:
                members = [(m.name, m.size, m.offset_data) for m in tar]
        except (tarfile.TarError, OSError):
            return []
        if [(name, size) for name, size, _ in members] != [(r.name, r.size) for r in self.recordings]:
            return []
        return [f"{FOLDER}/{self.path.name}:{offset}:{size}" for _, size, offset in members]

    def write(self):
        """Write the tar, open its recordings, compare their lengths with the manifest's, and then give it its stamp."""
        stamp = self.stamp
        stamp.clear()
        with atomic(self.path, "wb") as f, tarfile.open(fileobj=f, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for r in self.recordings:
                member = tarfile.TarInfo(r.name)
                member.size, member.mode = r.size, 0o644  # no owner and no time: the same files, the same bytes
                with open(r.file, "rb") as audio:
                    tar.addfile(member, audio)
                    now = os.fstat(audio.fileno())
                if (now.st_size, now.st_mtime_ns) != (r.size, r.changed):
                    raise InputError(f"{r.file}: was changed while it was packed; start again when nothing is writing to it")
        for r, place in zip(self.recordings, self.places(), strict=True):
            try:
                probe(self.path.parent.parent / place, r.n_samples)
            except InputError as error:
                raise InputError(f"{r.listed}: {r.file}: {error}") from None
        stamp.write()


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
    shards = _fill(recordings, make_folder(out / FOLDER), shard_bytes)
    wanted = [shard for shard in shards if overwrite or not (shard.stamp.is_current() and shard.places())]
    require_space(out, sum(shard.size for shard in wanted))
    for _ in in_threads(_Shard.write, wanted, "packing", "shards", jobs):
        pass
    logger.info("%d of %d shards were whole already", len(shards) - len(wanted), len(shards))
    places = {r.file: place for shard in shards for r, place in zip(shard.recordings, shard.places(), strict=True)}
    root = out.resolve()
    for split in splits:
        to = out / split.directory.relative_to(directory)
        relocate(split, to, root, (places[_file(split, i)] for i in range(len(split))))
    for folder in {split.directory: None for split in splits} | {directory: None}:
        relocate_others(folder, out / folder.relative_to(directory), root=str(root), packed_from=str(directory.resolve()))
    for stamp in set((out / FOLDER).glob("??????.tar.json")) - {shard.stamp.path for shard in shards}:  # of an earlier packing
        stamp.unlink()
        stamp.with_suffix("").unlink(missing_ok=True)
    return len(recordings), len(shards), len(wanted)


def _file(split, index):
    return os.path.normpath(split.audio(index))


def _recordings(splits):
    """List of _Recording, each file once, in the order of the lists."""
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
                found[file] = _Recording(file, stat.st_size, stat.st_mtime_ns, n_samples, split.where(i))
            elif (first := found[file]).n_samples != n_samples:
                raise InputError(f"{split.where(i)}: {n_samples} samples, but {first.listed} says {first.n_samples}; make one right")
    roots = {os.path.normpath(split.root) for split in splits}
    base = next(iter(roots)) if len(roots) == 1 else os.path.commonpath([os.path.dirname(file) for file in found])
    for recording in found.values():
        recording.name = member_name(os.path.relpath(recording.file, base))
    return list(found.values())


def _fill(recordings, folder, shard_bytes):
    shards, size = [], 0
    for recording in recordings:
        stored = _Shard(folder, [recording]).size
        if not shards or size + stored > shard_bytes:
            shards.append(_Shard(folder / f"{len(shards):06}.tar"))
            size = 0
        shards[-1].recordings.append(recording)
        size += stored
    return shards
