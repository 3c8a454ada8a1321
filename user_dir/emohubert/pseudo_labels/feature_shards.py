"""Files of the staged tools, those of fairseq's examples/hubert/simple_kmeans.

`{split}_{rank}_{nshard}.npy` holds the features of a shard, utterance after utterance (frames × width, float32),
`.len` the frames of each utterance, `.km` a line of labels for each. Shards are the ranges of fairseq's
`get_shard_range`. Ours come with `.json`, which says what the features are; fairseq's do not have it.
"""

import contextlib
import os
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import atomic, read_json, write_lines


def shard_range(total, nshard, rank):
    """First and last + 1 of the utterances of a shard, as fairseq's `get_shard_range`.

    Raises:
        InputError: no such shard, or an empty one.
    """
    if not 0 <= rank < nshard:
        raise InputError(f"--rank {rank}: there are {nshard} shards, 0 to {nshard - 1}; correct --rank or --nshard")
    start, end = round(total / nshard * rank), round(total / nshard * (rank + 1))
    if start >= end:
        raise InputError(f"--nshard {nshard}: {total} utterances are too few for {nshard} shards, shard {rank} is empty; use fewer shards")
    return start, end


def shard_path(folder, split, rank, nshard, ending):
    """Path of a shard's file."""
    return Path(folder) / f"{split}_{rank}_{nshard}.{ending}"


class FeatureShard:
    """Features of a shard on disk, checked.

    Attributes:
        path: of the `.npy` file.
        features: (frames, width) array, memory-mapped.
        lengths: frames of each utterance.
        description: what the features are, or None if the file does not come from us.

    Raises:
        InputError: a file of the shard is missing, damaged, or does not belong to the other; the message names it.
    """

    def __init__(self, folder, split, rank, nshard):
        self.path = shard_path(folder, split, rank, nshard, "npy")
        lengths = self.path.with_suffix(".len")
        again = f"run tools/dump_features.py again for --nshard {nshard} --rank {rank}"
        for path in (self.path, lengths):
            if not path.is_file():
                raise InputError(f"{path}: shard {rank} of {nshard} is missing (not made yet, or interrupted); {again}")
        try:
            self.features = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{self.path}: damaged or cut off ({str(error).splitlines()[0][:120]}); {again}") from error
        if not isinstance(self.features, np.ndarray) or self.features.ndim != 2 or self.features.dtype != np.float32:
            raise InputError(f"{self.path}: not a (frames × width) array of float32; {again}")
        lines = lengths.read_text(encoding="utf-8", errors="replace").split()
        if not all(line.isdecimal() for line in lines):
            raise InputError(f"{lengths}: holds something else than numbers of frames; {again}")
        self.lengths = np.array(lines, dtype=np.int64)
        if self.lengths.sum() != len(self.features):
            raise InputError(
                f"{self.path}: {len(self.features)} frames, but {lengths.name} adds up to {self.lengths.sum()} (interrupted?); {again}"
            )
        description = self.path.with_suffix(".json")
        self.description = read_json(description).get("settings", {}).get("features") if description.is_file() else None

    def __len__(self):
        return len(self.lengths)

    def utterances(self):
        """The features of each utterance, in order."""
        for end, length in zip(np.cumsum(self.lengths), self.lengths, strict=True):
            yield self.features[end - length : end]


def read_shards(folder, split, nshard):
    """All feature shards of a split, after checking that every one is whole and holds the same kind of features.

    Raises:
        InputError: a shard is missing or damaged (all missing ones are named), or two differ in kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of features; make them with tools/dump_features.py")
    missing = [str(r) for r in range(nshard) if not all(shard_path(folder, split, r, nshard, e).is_file() for e in ("npy", "len"))]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {nshard} shards of “{split}” are missing or interrupted: "
            f"{' '.join(missing)}; run tools/dump_features.py with --nshard {nshard} for each of these --rank"
        )
    shards = [FeatureShard(folder, split, rank, nshard) for rank in range(nshard)]
    for shard in shards[1:]:
        if shard.description != shards[0].description or shard.features.shape[1] != shards[0].features.shape[1]:
            raise InputError(f"{shard.path}: holds another kind of features than {shards[0].path}; dump all shards with the same settings")
    return shards


@contextlib.contextmanager
def feature_writer(path, frames, width):
    """Write a `.npy` file of known size in any order; yields `put(first_frame, features)`, safe in several threads.

    Nothing is kept in memory, and the file gets its name when it is whole.
    """
    with atomic(path, "wb") as f:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": (frames, width)}
        np.lib.format.write_array_header_2_0(f, header)
        f.flush()
        start = f.tell()
        os.ftruncate(f.fileno(), start + 4 * frames * width)

        def put(first_frame, features):
            data = memoryview(np.ascontiguousarray(features, dtype=np.float32)).cast("B")
            position = start + 4 * first_frame * width
            while data:
                written = os.pwrite(f.fileno(), data, position)
                data, position = data[written:], position + written

        yield put


def label_line(labels):
    """A line of a `.km` file, without its end."""
    return " ".join(map(str, labels.tolist()))


def merge_labels(folder, split, nshard, utterances=None):
    """Join the `.km` shards of a split into `{split}.km`.

    Args:
        folder: of the labels.
        split, nshard: which shards.
        utterances: of the split, if known: then every shard must have the lines of its range.

    Returns:
        (path, number of lines).

    Raises:
        InputError: shards are missing or interrupted; all of them are named.
    """
    folder = Path(folder)
    paths = [shard_path(folder, split, rank, nshard, "km") for rank in range(nshard)]
    missing = [str(rank) for rank, path in enumerate(paths) if not path.is_file()]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {nshard} label shards of “{split}” are missing: {' '.join(missing)}; "
            f"run tools/dump_labels.py again for each of these ranks"
        )
    lines = 0
    with atomic(folder / f"{split}.km", "wb") as out:
        for rank, path in enumerate(paths):
            count, ended = 0, True
            with path.open("rb") as f:
                while block := f.read(1 << 20):
                    out.write(block)
                    count += block.count(b"\n")
                    ended = block.endswith(b"\n")
            stamp = path.with_suffix(".km.json")
            known = read_json(stamp).get("settings", {}).get("utterances") if stamp.is_file() else None
            if utterances is not None:
                first, last = shard_range(utterances, nshard, rank)
                known = last - first
            if not ended or count == 0 or count != (known or count):
                raise InputError(f"{path}: {count} lines{f' of {known}' if known else ''}, interrupted; dump this shard again")
            lines += count
    return folder / f"{split}.km", lines


def write_dictionary(path, model):
    """`dict.km.txt` of centroids: each cluster with its frames in the fit, or 1 where they are unknown."""
    counts = np.ones(len(model), dtype=np.int64) if model.sizes is None else np.maximum(model.sizes, 1)
    write_lines(path, [f"{i} {n}" for i, n in enumerate(counts)])
