"""The same as `make`, in stages with files in between, so that many machines can share a corpus.

Each stage reads fairseq's files and writes files that fairseq's scripts read: either side's stages can be replaced.
"""

import logging
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..core.cli import progress
from ..core.errors import InputError
from ..core.files import Stamp, fingerprint, make_folder, sha256, write_lines
from ..corpus import audio
from ..corpus.manifest import read_split
from ..provenance import records
from . import kmeans
from .centroid_files import load_centroids, write_joblib
from .feature_shards import FeatureShard, feature_writer, label_line, read_shards, shard_path, shard_range, write_dictionary
from .features import audio_fingerprint, short_recordings
from .make import choose_recordings, each_second

logger = logging.getLogger("emohubert")


def dump_features(directory, name, folder, features, nshard, rank, overwrite=False):
    """Write the features of a shard: `FEAT_DIR/L9/{split}_{rank}_{nshard}.npy`, `.len` and `.json`.

    Args:
        directory, name: manifest directory and split.
        folder: FEAT_DIR.
        features: MfccFeatures or EncoderFeatures.
        nshard, rank: which part of the split.
        overwrite: write them again.

    Returns:
        paths of the `.npy` files.
    """
    split = read_split(directory, name)
    first, last = shard_range(len(split), nshard, rank)
    indices = np.arange(first, last)
    frames = audio.n_frames(split.n_samples[indices], features.hop)
    ends = np.cumsum(frames)
    if short := short_recordings(split, features.hop):
        logger.warning(short)
    recordings = audio_fingerprint(split, indices.tolist())
    stamps = {}
    for kind in features.names:
        path = shard_path(make_folder(Path(folder) / kind), name, rank, nshard, "npy")
        settings = {"features": features.describe(kind), "audio": recordings, **features.settings}
        stamps[kind] = Stamp(path.with_suffix(".json"), settings, [path, path.with_suffix(".len")])
    wanting = {kind: stamp for kind, stamp in stamps.items() if overwrite or not stamp.is_current()}
    for stamp in wanting.values():
        stamp.clear()
        stamp.files[1].unlink(missing_ok=True)
    for stamp in stamps.values():
        records.write(records.beside(stamp.files[0]), records.FEATURES, split, indices, features.sources)
    if not wanting:
        logger.info("%s, shard %d of %d: its features are whole and made with these settings", name, rank, nshard)
        return [stamp.files[0] for stamp in stamps.values()]
    with ExitStack() as stack:
        puts = {k: stack.enter_context(feature_writer(s.files[0], int(ends[-1]), features.widths[k])) for k, s in wanting.items()}

        def write(extracted):
            piece = extracted.piece
            i = piece.utterance - first
            row = int(ends[i] - frames[i]) + piece.first
            for kind, values in extracted.features.items():
                puts[kind](row, values.cpu().numpy())

        durations = features.extract(split, indices, write, list(wanting))
        for _ in progress(each_second(durations), f"{name}: features", int(split.n_samples[indices].sum() / audio.SAMPLE_RATE), "s"):
            pass
    for stamp in wanting.values():
        write_lines(stamp.files[1], frames.tolist())
        stamp.write()
    return [stamp.files[0] for stamp in stamps.values()]


def learn_kmeans(folder, split, nshard, path, clusters, seed=1, max_memory=512 << 20, joblib=None, overwrite=False, **options):
    """Fit k-means on feature shards and write it as `kmeans.npz` to `path`.

    Args:
        folder: of the shards, such as FEAT_DIR/L9.
        split, nshard: which shards.
        clusters: number of clusters.
        seed: of the k-means, and of the recordings it is fitted on.
        max_memory: bytes of features in memory: all recordings, or as many as fit.
        joblib: path of a scikit-learn joblib file to be written too.
        options: for `kmeans.fit`.

    Returns:
        KMeans.

    Raises:
        InputError: shards are missing, interrupted or of different kinds; or there is too little audio.
    """
    shards = read_shards(folder, split, nshard)
    of_shards = [[shard.path.name, shard.path.stat().st_size, shard.path.stat().st_mtime_ns] for shard in shards]
    settings = {"shards": fingerprint(of_shards), "clusters": clusters, "seed": seed, "max_memory": max_memory, **options}
    path = Path(path)
    make_folder(path.parent)
    files = [path, records.beside(path), *([Path(joblib)] if joblib else [])]
    stamp = Stamp(path.with_name(f".{path.name}.stamp"), settings, files)
    if not overwrite and stamp.is_current():
        logger.info("%s: whole and made with these settings", path)
        return kmeans.KMeans.load(path)
    stamp.clear()
    width = shards[0].features.shape[1]
    lengths = np.concatenate([shard.lengths for shard in shards])
    chosen = choose_recordings(list(range(len(lengths))), lengths, max_memory // (4 * width), seed)
    if not chosen:
        raise InputError(f"{folder}: no recording of “{split}” has a frame and fits into --max-memory; allow more memory")
    frames = np.empty((int(lengths[chosen].sum()), width), dtype=np.float32)
    wanted, row, number = set(chosen), 0, 0
    for shard in shards:
        for values in shard.utterances():
            if number in wanted:
                frames[row : row + len(values)] = values
                row += len(values)
            number += 1
    logger.info("fit on %d of %d recordings, %d of %d frames", len(chosen), len(lengths), len(frames), int(lengths.sum()))
    model = kmeans.fit(frames, clusters, seed, **options)
    model.features = shards[0].description
    model.fit |= {"split": split, "recordings": len(chosen)}
    for file in (path, joblib):
        if file:
            records.write_shard_fit(file, shards, chosen)
    model.save(path)
    if joblib:
        make_folder(Path(joblib).parent)
        write_joblib(model, joblib)
    stamp.write()
    return model


def dump_labels(folder, split, centroids, nshard, rank, out, overwrite=False):
    """Label a feature shard: `LAB_DIR/{split}_{rank}_{nshard}.km`, and `dict.km.txt`.

    Args:
        folder: of the shards, such as FEAT_DIR/L9.
        split, nshard, rank: which shard.
        centroids: `kmeans.npz` or a joblib file of scikit-learn.
        out: LAB_DIR.

    Returns:
        path of the `.km` file.

    Raises:
        InputError: the shard is missing or interrupted, or of another kind than the centroids were fitted on.
    """
    model = load_centroids(centroids)
    shard = FeatureShard(folder, split, rank, nshard)
    model.check(shard.description, shard.features.shape[1], centroids)
    path = shard_path(make_folder(out), split, rank, nshard, "km")
    source = [shard.path.stat().st_size, shard.path.stat().st_mtime_ns]
    settings = {"centroids": sha256(centroids), "features": fingerprint(source), "utterances": len(shard)}
    stamp = Stamp(path.with_suffix(".km.json"), settings, [path, path.with_name("dict.km.txt")])
    if not overwrite and stamp.is_current():
        logger.info("%s: whole and made with these settings", path)
        return path
    stamp.clear()
    write_dictionary(path.with_name("dict.km.txt"), model)
    assigner = kmeans.Assigner(model.centroids, model.metric)
    lines = (label_line(assigner.labels(np.array(frames)).numpy()) for frames in shard.utterances())
    write_lines(path, progress(lines, f"{split}: labels", len(shard), "utterances"))
    known = records.read(records.beside(shard.path)).sources if records.beside(shard.path).is_file() else []
    records.write(path.parent, records.LABELS, sources=[records.source("centroids", centroids, sha256=sha256(centroids)), *known])
    stamp.write()
    return path
