"""Files of the staged tools, those of fairseq's examples/hubert/simple_kmeans.

`{split}_{rank}_{nshard}.npy` holds the features of a shard, utterance after utterance (frames × width, float32),
`.len` the frames of each utterance, `.km` a line of labels for each. Shards are the ranges of fairseq's
`get_shard_range`. Ours come with `.json`, which says what the features are; fairseq's do not have it.
"""

from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import atomic, read_json
from .centroids import first_line


def shard_range(total, nshard, rank):
    """First and last + 1 of the utterances of a shard, as fairseq's `get_shard_range`; InputError for no such shard, or an empty one."""
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
    """A shard on disk, checked: the `path` of its `.npy`, `features` (frames, width) float32, memory-mapped, `lengths`, the frames of each
    utterance, and a `description` of the features, None in others' files. InputError: a file is missing, damaged, or of another shard."""

    def __init__(self, folder, split, rank, nshard):
        self.path = reading = shard_path(folder, split, rank, nshard, "npy")
        again = f"run tools/dump_features.py again for --nshard {nshard} --rank {rank}"
        try:
            self.features = np.load(self.path, mmap_mode="r", allow_pickle=False)
            reading = self.path.with_suffix(".len")
            self.lengths = np.array(reading.read_text(encoding="utf-8").split(), dtype=np.int64)
        except FileNotFoundError:
            raise InputError(f"{reading}: shard {rank} of {nshard} is missing (not made yet, or interrupted); {again}") from None
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{reading}: damaged or cut off ({first_line(error)}); {again}") from error
        if not isinstance(self.features, np.ndarray) or self.features.ndim != 2 or self.features.dtype != np.float32:
            raise InputError(f"{self.path}: not a (frames × width) array of float32; {again}")
        if self.lengths.min(initial=0) < 0 or self.lengths.sum() != len(self.features):
            what = f"{len(self.features)} frames, but {reading.name} adds up to {self.lengths.sum()} (interrupted?)"
            raise InputError(f"{self.path}: {what}; {again}")
        self.description = _settings(self.path.with_suffix(".json")).get("features")

    def __len__(self):
        return len(self.lengths)

    def utterances(self):
        """The features of each utterance, in order."""
        for end, length in zip(np.cumsum(self.lengths), self.lengths, strict=True):
            yield self.features[end - length : end]


def _settings(stamp):
    """Those of a Stamp; {} without one, as fairseq leaves it."""
    return read_json(stamp).get("settings", {}) if stamp.is_file() else {}


def read_shards(folder, split, nshard):
    """The FeatureShards of a split; InputError if one is missing (all those are named) or damaged, or two differ in kind."""
    remedy = f"run tools/dump_features.py with --nshard {nshard} for each of these --rank"
    _require(folder, split, nshard, ("npy", "len"), "shards", "missing or interrupted", remedy)
    shards = [FeatureShard(folder, split, rank, nshard) for rank in range(nshard)]
    for shard in shards[1:]:
        if shard.description != shards[0].description or shard.features.shape[1] != shards[0].features.shape[1]:
            raise InputError(f"{shard.path}: holds another kind of features than {shards[0].path}; dump all shards with the same settings")
    return shards


def _require(folder, split, nshard, endings, what, state, remedy):
    if missing := [str(r) for r in range(nshard) if not all(shard_path(folder, split, r, nshard, e).is_file() for e in endings)]:
        raise InputError(f"{folder}: {len(missing)} of {nshard} {what} of “{split}” are {state}: {' '.join(missing)}; {remedy}")


def merge_labels(folder, split, nshard, utterances=None):
    """Join the `.km` shards of a split into `{split}.km`; returns (path, number of lines). With the number of `utterances` of the split, if
    known, every shard must have the lines of its range. InputError: shards are missing (all those are named) or interrupted."""
    _require(folder, split, nshard, ("km",), "label shards", "missing", "run tools/dump_labels.py again for each of these ranks")
    total, merged = 0, Path(folder) / f"{split}.km"
    with atomic(merged, "wb") as out:
        for rank in range(nshard):
            path = shard_path(folder, split, rank, nshard, "km")
            content = path.read_bytes()
            count = content.count(b"\n")
            expected = _settings(path.with_suffix(".km.json")).get("utterances", count)
            if utterances is not None:
                first, last = shard_range(utterances, nshard, rank)
                expected = last - first
            if not content.endswith(b"\n") or count != expected:
                raise InputError(f"{path}: {count} lines of {expected}, interrupted; dump this shard again")
            out.write(content)
            total += count
    return merged, total
