"""The same as `label_frames`, in stages with files in between, so that many machines can share a corpus.

Each stage reads fairseq's files and writes files that fairseq's scripts read: either side's stages can be replaced.
"""

import contextlib
import logging
import os
from pathlib import Path

import numpy as np

from ..core.cli import progress
from ..core.errors import InputError
from ..core.files import Stamp, atomic, fingerprint, make_folder, sha256, write_lines
from ..corpus import audio
from ..corpus.frame_labels import state_hop
from ..corpus.manifest import read_split
from ..provenance import records
from . import kmeans
from .centroid_files import load_centroids, write_joblib
from .centroids import KMeans
from .feature_shards import FeatureShard, read_shards, shard_path, shard_range
from .features import collect
from .label_sets import label_line, write_dictionary
from .recordings import audio_fingerprint, choose_recordings, warn_of_short, windows, work_through

logger = logging.getLogger("emohubert")

_WINDOW_BYTES = 256 << 20  # features in memory before they are written; a longer recording is kept as a whole


def dump_features(directory, name, folder, features, nshard, rank, overwrite=False):
    """Write the features (MfccFeatures, ProsodyFeatures or EncoderFeatures) of a shard of the split `name` of a manifest directory:
    `FEAT_DIR/L9/{split}_{rank}_{nshard}.npy`, `.len` and `.json`; returns the paths of the `.npy` files."""
    split = read_split(directory, name)
    indices = np.arange(*shard_range(len(split), nshard, rank))
    warn_of_short(split, features.hop)
    recordings, stamps = audio_fingerprint(split, indices.tolist()), {}
    for kind in features.names:
        path = shard_path(make_folder(Path(folder) / kind), name, rank, nshard, "npy")
        settings = {"features": features.describe(kind), "audio": recordings, **features.settings}
        stamps[kind] = Stamp(path.with_suffix(".json"), settings, [path, path.with_suffix(".len")])
        records.write(records.beside(path), records.FEATURES, split, indices, features.sources)
    wanting = {kind: stamp for kind, stamp in stamps.items() if overwrite or not stamp.is_current()}
    if not wanting:
        logger.info("%s, shard %d of %d: its features are whole and made with these settings", name, rank, nshard)
    for stamp in wanting.values():
        stamp.clear()
        stamp.files[1].unlink(missing_ok=True)
    if wanting:
        work_through(_write_features(features, split, indices, wanting), f"{name}: features", split.n_samples[indices])
    for stamp in wanting.values():
        write_lines(stamp.files[1], audio.n_frames(split.n_samples[indices], features.hop).tolist())
        stamp.write()
    return [stamp.files[0] for stamp in stamps.values()]


def _write_features(features, split, indices, stamps):
    frames = audio.n_frames(split.n_samples[indices], features.hop)
    width = sum(features.widths[kind] for kind in stamps)
    with contextlib.ExitStack() as stack:
        files = {kind: stack.enter_context(_appending(stamp.files[0])) for kind, stamp in stamps.items()}
        for window in windows(frames, max(_WINDOW_BYTES // (4 * width), 1)):
            arrays = {kind: np.empty((frames[window].sum(), features.widths[kind]), dtype=np.float32) for kind in stamps}
            yield from collect(features, split, indices[window], arrays)
            for kind, values in arrays.items():
                files[kind].append(values)


@contextlib.contextmanager
def _appending(path):
    """An NpyAppendArray whose file gets its name when it is whole."""
    from npy_append_array import NpyAppendArray

    with atomic(path, "wb") as f:
        with NpyAppendArray(f.name, delete_if_exists=True) as array:
            yield array
        with open(f.name, "rb") as written:
            os.fsync(written.fileno())


def learn_kmeans(folder, split, nshard, path, clusters, seed=1, max_memory=512 << 20, joblib=None, overwrite=False):
    """Fit k-means on the feature shards of a folder such as FEAT_DIR/L9 and write it as `kmeans.npz` to `path`; returns the KMeans. `seed`:
    of the k-means, and of the recordings it is fitted on: all, or as many as `max_memory` bytes hold. `joblib`: path of a scikit-learn
    joblib file to be written too. InputError: shards are missing, interrupted or of different kinds; or too little audio."""
    shards = read_shards(folder, split, nshard)
    of_shards = [[shard.path.name, shard.path.stat().st_size, shard.path.stat().st_mtime_ns] for shard in shards]
    settings = {"shards": fingerprint(of_shards), "clusters": clusters, "seed": seed, "max_memory": max_memory}
    path = Path(path)
    make_folder(path.parent)
    stamp = Stamp(path.with_name(f".{path.name}.stamp"), settings, [path, records.beside(path), *([joblib] if joblib else [])])
    if not overwrite and stamp.is_current():
        logger.info("%s: whole and made with these settings", path)
        return KMeans.load(path)
    stamp.clear()
    width = shards[0].features.shape[1]
    lengths = np.concatenate([shard.lengths for shard in shards])
    if not (chosen := choose_recordings(list(range(len(lengths))), lengths, max_memory // (4 * width), seed)):
        raise InputError(f"{folder}: no recording of “{split}” has a frame and fits into --max-memory; allow more memory")
    wanted, utterances = set(chosen), (values for shard in shards for values in shard.utterances())
    frames = np.concatenate([values for number, values in enumerate(utterances) if number in wanted])
    logger.info("fit on %d of %d recordings, %d of %d frames", len(chosen), len(lengths), len(frames), int(lengths.sum()))
    model = kmeans.fit(frames, clusters, seed)
    model.features = shards[0].description
    model.fit |= {"split": split, "recordings": len(chosen)}
    records.write_shard_fit(path, shards, chosen)
    model.save(path)
    if joblib:
        make_folder(Path(joblib).parent)
        records.write_shard_fit(joblib, shards, chosen)
        write_joblib(model, joblib)
    stamp.write()
    return model


def dump_labels(folder, split, centroids, nshard, rank, out, overwrite=False):
    """Label a feature shard of a folder such as FEAT_DIR/L9 with a `kmeans.npz` or joblib file of scikit-learn; returns the path of
    `LAB_DIR/{split}_{rank}_{nshard}.km`. Beside it come `dict.km.txt`, and the hop where it is known. InputError: the shard is missing or
    interrupted, or of another kind than the centroids were fitted on."""
    model = load_centroids(centroids)
    shard = FeatureShard(folder, split, rank, nshard)
    model.check(shard.description, shard.features.shape[1], centroids)
    path = shard_path(make_folder(out), split, rank, nshard, "km")
    source = [shard.path.stat().st_size, shard.path.stat().st_mtime_ns]
    settings = {"centroids": sha256(centroids), "features": fingerprint(source), "utterances": len(shard)}
    stamp = Stamp(path.with_suffix(".km.json"), settings, [path, path.with_name("dict.km.txt")])
    if hop := (shard.description or model.features or {}).get("hop"):
        state_hop(path.parent, hop)
    if not overwrite and stamp.is_current():
        logger.info("%s: whole and made with these settings", path)
        return path
    stamp.clear()
    write_dictionary(path.parent, model.sizes, len(model))
    assigner = kmeans.Assigner(model.centroids)
    lines = (label_line(assigner.labels(np.array(frames)).numpy()) for frames in shard.utterances())
    write_lines(path, progress(lines, f"{split}: labels", len(shard), "utterances"))
    known = records.read(records.beside(shard.path)).sources if records.beside(shard.path).is_file() else []
    records.write(path.parent, records.LABELS, sources=[records.source("centroids", centroids, sha256=sha256(centroids)), *known])
    stamp.write()
    return path
