"""From audio to label files: every feature, every number of clusters, each recording read once.

Frames of the fitting split are kept in memory, all of them or as many recordings as the budget allows; k-means is fitted
on them, and the rest of the audio is labelled as it is read. Nothing but labels is written. What is finished is kept: a
run that was killed goes on where it was and ends with the same bytes.
"""

import logging
import shutil
import time
from concurrent.futures import as_completed, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.cli import progress
from ..core.errors import InputError
from ..core.files import Stamp, atomic, fingerprint, make_folder, read_json, sha256, write_lines
from ..core.parallel import cores, one_thread, pool
from ..corpus import audio
from ..corpus.manifest import read_split, splits_of
from ..provenance import records
from . import kmeans
from .centroid_files import load_centroids
from .feature_shards import label_line, write_dictionary
from .features import NOISE, audio_fingerprint, short_recordings
from .pieces import AcousticPieces

logger = logging.getLogger("emohubert")

_WINDOW_SECONDS = 1800
"""Audio that is labelled between two saves."""
_FEW_FRAMES = 39
"""Frames a cluster below which a fit is called poor (as faiss does)."""
_AGREEMENT_UTTERANCES = 32


@dataclass
class LabelSet:
    """Labels to be made: one kind of features, one set of centroids.

    Attributes:
        feature: name of the features, such as "L9".
        clusters: their number.
        folder: where the labels go, such as OUT_DIR/L9/km50.
        fit_stamp: the Stamp of its centroids.
        model: the centroids, once there.
    """

    feature: str
    clusters: int
    folder: Path
    fit_stamp: Stamp
    model: kmeans.KMeans = None

    @property
    def name(self):
        """Such as "L9/km50"."""
        return f"{self.feature}/{self.folder.name}"

    @property
    def centroids(self):
        """Path of the centroids."""
        return self.folder / "kmeans.npz"


class LabelMaker:
    """Makes the label sets of a manifest directory.

    Args:
        directory: the manifest directory.
        out: output folder.
        features: MfccFeatures or EncoderFeatures.
        clusters: numbers of clusters.
        fit_split: the split that centroids are fitted on.
        splits: the splits that get labels; by default those that exist of train, valid and test.
        seed, metric, restarts, iterations: see `kmeans.fit`; the seed also draws the recordings of the fit.
        max_memory: bytes of features kept for the fit.
        centroids: path of a `kmeans.npz` or joblib file to be applied; nothing is fitted then.
        pieces: sizes of vocabularies of acoustic pieces to be made over each set.
        overwrite: make everything again.
    """

    def __init__(
        self, directory, out, features, clusters=(), fit_split="train", splits=None, seed=1, metric="euclidean", restarts=1,
        iterations=100, max_memory=512 << 20, centroids=None, pieces=(), overwrite=False,
    ):  # fmt: skip
        self.features, self.seed, self.max_memory, self.overwrite = features, seed, max_memory, overwrite
        self.options = {"metric": metric, "restarts": restarts, "iterations": iterations}
        self.splits = {name: read_split(directory, name) for name in self._split_names(directory, splits)}
        self.out = make_folder(out)
        self._fingerprints = {}
        self._memory = {}
        self.rechecked = 0
        self.fit_split, self.sample = None, []
        if centroids is None:
            self.fit_split = self.splits.get(fit_split) or read_split(directory, fit_split)
            self.sample = self._choose_sample()
            self.sets = [self._fitted_set(name, k) for name in features.names for k in sorted(set(clusters))]
        else:
            self.sets = [self._given_set(centroids)]
        self.pieces = sorted(set(pieces))
        if self.pieces and (self.fit_split is None or self.fit_split.name not in self.splits):
            raise InputError(
                "--pieces: pieces are learned from the labels of the fitting split; name it in --splits too, and give --clusters"
            )
        for s in self.sets:
            if wrong := [n for n in self.pieces if n <= s.clusters]:
                raise InputError(
                    f"--pieces {wrong[0]}: there are {s.clusters} clusters, each a piece of its own; ask for more pieces than clusters"
                )

    @staticmethod
    def _split_names(directory, splits):
        if splits:
            return list(dict.fromkeys(splits))
        if not Path(directory).is_dir():
            raise InputError(f"{directory}: no such manifest directory; make it with manifests/NAME.py")
        there = splits_of(directory)
        names = [s for s in ("train", "valid", "test") if s in there]
        if not names:
            raise InputError(f"{directory}: holds none of train.tsv, valid.tsv and test.tsv; name the splits with --splits")
        return names

    def run(self):
        """Fit what is not fitted, label what is not labelled; returns the label sets."""
        start = time.perf_counter()
        for split in self.splits.values():
            if short := short_recordings(split, self.features.hop):
                logger.warning(short)
        self._fit()
        for split in sorted(self.splits.values(), key=lambda split: split is not self.fit_split):
            if split is not self.fit_split:
                self._memory = {}
            self._label(split)
        self._memory = {}
        for s in self.sets:
            for size in self.pieces:
                self._make_pieces(s, size)
        if self.rechecked:
            logger.info("%d pieces of padded batches had frames between two clusters and were extracted again alone", self.rechecked)
        logger.info("pseudo-labels: %d sets of %s in %.1f s", len(self.sets), ", ".join(self.splits), time.perf_counter() - start)
        return self.sets

    # --- what is to be made -------------------------------------------------------------------------------------------

    def _fitted_set(self, name, clusters):
        folder = make_folder(self.out / name / f"km{clusters}")
        settings = {
            "features": self.features.describe(name),
            **self.features.settings,
            "clusters": clusters,
            "seed": self.seed,
            **self.options,
            "audio": self._audio(self.fit_split),
            "recordings": fingerprint([int(i) for i in self.sample]),
        }
        return LabelSet(name, clusters, folder, Stamp(folder / ".kmeans.stamp", settings, [folder / "kmeans.npz", folder / "dict.km.txt"]))

    def _given_set(self, path):
        if len(self.features.names) != 1:
            raise InputError(f"{path}: given centroids label one layer; name the one they were fitted on with --layers")
        (name,) = self.features.names
        model = load_centroids(path)
        model.check(self.features.describe(name), self.features.widths[name], path)
        model.features = self.features.describe(name)
        folder = make_folder(self.out / name / f"km{len(model)}")
        stamp = Stamp(
            folder / ".kmeans.stamp",
            {"features": self.features.describe(name), "given": sha256(path)},
            [folder / "kmeans.npz", folder / "dict.km.txt"],
        )
        given = LabelSet(name, len(model), folder, stamp, model)
        if self.overwrite or not stamp.is_current():
            stamp.clear()
            self._save(given)
        if given.centroids.resolve() != Path(path).resolve():
            sources = [records.source("centroids", path, sha256=sha256(path)), *self.features.sources]
            records.write(records.beside(given.centroids), records.LABELS, sources=sources)
        return given

    def _audio(self, split):
        if split.name not in self._fingerprints:
            self._fingerprints[split.name] = audio_fingerprint(split)
        return self._fingerprints[split.name]

    def _choose_sample(self):
        split = self.fit_split
        frames = audio.n_frames(split.n_samples, self.features.hop)
        budget = self.max_memory // (4 * sum(self.features.widths.values()))
        chosen = choose_recordings(split.paths, frames, budget, self.seed)
        if not chosen:
            raise InputError(
                f"{split.tsv}: no recording has a frame ({audio.RECEPTIVE_FIELD} samples) and fits into --max-memory; "
                "allow more memory or give more audio"
            )
        if frames[chosen].sum() < frames.sum():
            logger.info(
                "fit on %d of the %d recordings of %s, %d of %d frames: as many as --max-memory allows",
                len(chosen), len(split), split.name, int(frames[chosen].sum()), int(frames.sum()),
            )  # fmt: skip
        return chosen

    # --- fitting ------------------------------------------------------------------------------------------------------

    def _fit(self):
        wanting = []
        for s in self.sets:
            if s.model is None and not self.overwrite and s.fit_stamp.is_current():
                s.model = kmeans.KMeans.load(s.centroids)
                self._record_fit(s)
            elif s.model is None:
                wanting.append(s)
        if not wanting:
            return
        names = [name for name in self.features.names if any(s.feature == name for s in wanting)]
        self._memory = self._extract_sample(names)
        for s, model, seconds in self._fits(wanting):
            s.model = model
            s.model.features = self.features.describe(s.feature)
            s.model.fit |= {"split": self.fit_split.name, "recordings": len(self.sample), "precision": self.features.precision}
            s.fit_stamp.clear()
            self._record_fit(s)
            self._save(s)
            logger.info(
                "%s: inertia %.4f a frame, %d iterations, clusters of %d to %d frames, %.1f s",
                s.name, model.fit["inertia"], model.fit["iterations"], model.sizes.min(), model.sizes.max(), seconds,
            )  # fmt: skip

    def _record_fit(self, s):
        records.write_fit(s.centroids, self.fit_split, self.sample, self.features.sources, features=self.features.describe(s.feature))

    def _fits(self, wanting):
        """Fit sets; yields (set, KMeans, seconds) as they are done. Where there are enough sets, each has a core of its own."""
        if len(wanting) < cores() or self.features.device.type != "cpu":
            yield from (self._fit_one(s, cores()) for s in wanting)
            return
        with one_thread():
            running = [pool(cores()).submit(self._fit_one, s, 1) for s in wanting]
            try:
                yield from (fit.result() for fit in as_completed(running))
            finally:
                for fit in running:
                    fit.cancel()
                wait(running)

    def _fit_one(self, s, workers):
        start, frames = time.perf_counter(), self._memory[s.feature]
        if len(frames) < _FEW_FRAMES * s.clusters:
            logger.warning("%s: only %.0f frames a cluster; give more audio or more --max-memory", s.name, len(frames) / s.clusters)
        model = kmeans.fit(frames, s.clusters, self.seed, device=self.features.device, workers=workers, **self.options)
        return s, model, time.perf_counter() - start

    @staticmethod
    def _save(s):
        _remove_stale(s.folder, "fit", s.fit_stamp.settings)
        write_dictionary(s.folder / "dict.km.txt", s.model)
        s.model.save(s.centroids)
        s.fit_stamp.write()

    def _extract_sample(self, names):
        split = self.fit_split
        frames = audio.n_frames(split.n_samples[self.sample], self.features.hop)
        ends = np.cumsum(frames)
        self._rows = {i: slice(int(end - n), int(end)) for i, end, n in zip(self.sample, ends, frames, strict=True)}
        memory = {name: np.empty((int(ends[-1]), self.features.widths[name]), dtype=np.float32) for name in names}

        def keep(extracted):
            first = self._rows[extracted.piece.utterance].start + extracted.piece.first
            for name, features in extracted.features.items():
                memory[name][first : first + len(features)] = features.cpu().numpy()

        durations = self.features.extract(split, self.sample, keep, names, alone=True)
        seconds = int(split.n_samples[self.sample].sum() / audio.SAMPLE_RATE)
        for _ in progress(each_second(durations), f"{split.name}: features to fit on", seconds, "s"):
            pass
        return memory

    # --- labelling ----------------------------------------------------------------------------------------------------

    def _label(self, split):
        jobs = []
        for s in self.sets:
            stamp = Stamp(s.folder / f".{split.name}.stamp", self._label_settings(s, split), [s.folder / f"{split.name}.km"])
            current = not self.overwrite and stamp.is_current()
            _clear(s.folder, split, None if current or self.overwrite else stamp)
            if not current:
                jobs.append(_SplitLabels(s, split, stamp, self.features.device))
        if not jobs:
            logger.info("%s: its labels are whole and made with these settings", split.name)
            return
        for job in jobs:
            job.open()
        windows = _windows(split.n_samples)
        seconds = int(split.n_samples.sum() / audio.SAMPLE_RATE)
        for _ in progress(each_second(self._label_windows(split, windows, jobs)), f"{split.name}: labels", seconds, "s"):
            pass
        for job in jobs:
            job.finish(len(windows))

    def _label_windows(self, split, windows, jobs):
        """Make the missing parts of the labels; yields the seconds done."""
        for number, window in enumerate(windows):
            undone = [job for job in jobs if not job.part(number).is_file()]
            if undone:
                yield from self._label_window(split, window, undone)
                for job in undone:
                    job.save(number)
            else:
                yield split.n_samples[window].sum() / audio.SAMPLE_RATE

    def _label_settings(self, s, split):
        return {"fit": s.fit_stamp.settings, "audio": self._audio(split), **self.features.settings}

    def _label_window(self, split, window, jobs):
        frames = audio.n_frames(split.n_samples[window], self.features.hop)
        for job in jobs:
            job.start(window, frames)
        names = [name for name in self.features.names if any(job.set.feature == name for job in jobs)]
        known = set()
        if split is self.fit_split and self._memory and set(names) <= set(self._memory):
            known = self._rows.keys() & set(window.tolist())
            for i in sorted(known):
                for job in jobs:
                    job.label(i, 0, self._memory[job.set.feature][self._rows[i]])
                yield split.n_samples[i] / audio.SAMPLE_RATE

        def consume(extracted):
            noise = NOISE if extracted.alone else 0.0
            piece = extracted.piece
            doubtful = [job.label(piece.utterance, piece.first, extracted.features[job.set.feature], noise) for job in jobs]
            if any(doubtful):
                features = extracted.alone()
                self.rechecked += 1
                for job in jobs:
                    job.label(piece.utterance, piece.first, features[job.set.feature])

        rest = np.array([i for i in window if i not in known and frames[i - window[0]]], dtype=np.int64)
        yield from self.features.extract(split, rest, consume, names)

    # --- acoustic pieces ----------------------------------------------------------------------------------------------

    def _make_pieces(self, s, size):
        """`km50-pieces1000/`: pieces learned from the labels of the fitting split, and every split in them."""
        folder = make_folder(s.folder.with_name(f"{s.folder.name}-pieces{size}"))
        for unfinished in folder.glob(".*.tmp"):
            unfinished.unlink()
        settings = {"units": self._label_settings(s, self.fit_split), "pieces": size}
        fit = Stamp(folder / ".pieces.stamp", settings, [folder / "pieces.model", folder / "dict.km.txt"])
        if self.overwrite or not fit.is_current():
            fit.clear()
            chosen = set(self.sample)
            pieces = AcousticPieces.fit(
                (line for i, line in enumerate(_read_label_lines(s.folder / f"{self.fit_split.name}.km")) if i in chosen), s.clusters, size
            )
            counts = np.zeros(size, dtype=np.int64)
            for line in _read_label_lines(s.folder / f"{self.fit_split.name}.km"):
                counts += np.bincount(pieces.labels(line), minlength=size)
            _remove_stale(folder, "units", settings["units"])
            write_lines(folder / "dict.km.txt", [f"{i} {max(n, 1)}" for i, n in enumerate(counts)])
            with atomic(folder / "pieces.model", "wb") as f:
                f.write(pieces.model)
            fit.write()
            logger.info("%s/%s: %d acoustic pieces, %d of them in use", s.feature, folder.name, size, np.count_nonzero(counts))
        records.write_fit(folder / "pieces.model", self.fit_split, self.sample, [records.source("labels", s.folder)])
        pieces = AcousticPieces((folder / "pieces.model").read_bytes(), folder / "pieces.model")
        for split in self.splits.values():
            path = folder / f"{split.name}.km"
            stamp = Stamp(folder / f".{split.name}.stamp", {**settings, "split": self._label_settings(s, split)}, [path])
            if self.overwrite or not stamp.is_current():
                stamp.clear()
                write_lines(path, (label_line(pieces.labels(line)) for line in _read_label_lines(s.folder / path.name)))
                stamp.write()


def _read_label_lines(path):
    with path.open(encoding="utf-8") as f:
        for line in f:
            yield np.array(line.split(), dtype=np.int64)


class _SplitLabels:
    """The labels of one set and split on their way to `{split}.km`: in parts, each saved when it is whole."""

    def __init__(self, label_set, split, stamp, device):
        self.set, self.split, self.stamp = label_set, split, stamp
        self._assigner = kmeans.Assigner(label_set.model.centroids, label_set.model.metric, device)
        self._folder = _parts(label_set.folder, split, stamp)

    def open(self):
        self.stamp.clear()
        self._folder.mkdir(exist_ok=True)

    def part(self, number):
        return self._folder / f"{number:06d}.km"

    def start(self, window, frames):
        self._first, self._ends, self._frames = int(window[0]), np.cumsum(frames), frames
        self._labels = np.zeros(int(self._ends[-1]), dtype=np.int32)

    def label(self, utterance, first_frame, features, noise=0.0):
        """Label frames of an utterance from `first_frame` on; True if batch rounding leaves a label in doubt."""
        labels, doubtful = self._assigner.labels_and_doubt(features, noise)
        i = utterance - self._first
        row = int(self._ends[i] - self._frames[i]) + first_frame
        self._labels[row : row + len(labels)] = labels.cpu().numpy()
        return doubtful

    def save(self, number):
        write_lines(self.part(number), (label_line(self._labels[end - n : end]) for end, n in zip(self._ends, self._frames, strict=True)))

    def finish(self, parts):
        with atomic(self.set.folder / f"{self.split.name}.km", "wb") as out:
            for number in range(parts):
                with self.part(number).open("rb") as f:
                    shutil.copyfileobj(f, out, 1 << 20)
        self.stamp.write()
        shutil.rmtree(self._folder)


def _parts(folder, split, stamp):
    """Where the parts of labels with these settings wait until they are all there."""
    return folder / f".{split.name}.{fingerprint([stamp.settings, _WINDOW_SECONDS])}.parts"


def _clear(folder, split, stamp):
    """Remove what killed runs left behind; parts made with the settings of `stamp` stay."""
    for parts in folder.glob(f".{split.name}.*.parts"):
        if stamp is None or parts != _parts(folder, split, stamp):
            shutil.rmtree(parts)
    for unfinished in [*folder.glob(".*.tmp"), *folder.glob(".*.parts/.*.tmp")]:
        unfinished.unlink()


def _remove_stale(folder, key, settings):
    """Remove labels of other centroids or pieces than are about to be written: they would not fit the dictionary."""
    for labels in folder.glob("*.km"):
        stamp = folder / f".{labels.stem}.stamp"
        made = read_json(stamp).get("settings", {}).get(key) if stamp.is_file() else None
        if fingerprint(made) != fingerprint(settings):
            stamp.unlink(missing_ok=True)
            labels.unlink()
            logger.info("%s: removed, it was made with other centroids", labels)


def _windows(n_samples):
    """Contiguous ranges of utterances of about half an hour of audio each."""
    number = (np.cumsum(n_samples) - 1) // (_WINDOW_SECONDS * audio.SAMPLE_RATE)
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return [np.arange(a, b) for a, b in zip(starts, [*starts[1:], len(n_samples)], strict=True)]


def choose_recordings(names, frames, budget, seed):
    """Recordings to fit on: all if their frames are within the budget, otherwise a random part that is.

    The choice and its order depend on the names and the seed only, not on the order of the recordings.

    Args:
        names: of the recordings, such as their paths.
        frames: of each; recordings without frames are left out.
        budget: most frames.
        seed: of the choice.

    Returns:
        list of indices, ordered by name.
    """
    ordered = sorted(np.flatnonzero(frames).tolist(), key=lambda i: (names[i], i))
    if frames.sum() <= budget:
        return ordered
    drawn = {i: fingerprint([seed, names[i]]) for i in ordered}
    chosen, used = set(), 0
    for i in sorted(ordered, key=lambda i: (drawn[i], i)):
        if used + frames[i] <= budget:
            chosen.add(i)
            used += int(frames[i])
    return [i for i in ordered if i in chosen]


def each_second(durations):
    """One item per second of audio that is done."""
    done = shown = 0
    for duration in durations:
        done += duration
        while shown < int(done + 1e-6):
            shown += 1
            yield shown


def agreement(maker, reduced, full):
    """Share of frames on which reduced precision gives the same labels as float32, measured on a seeded sample.

    Args:
        maker: a LabelMaker that has run.
        reduced, full: EncoderFeatures of the same encoder.

    Returns:
        {name of the set: share}, and the number of frames.
    """
    split = next(iter(maker.splits.values()))
    audible = np.flatnonzero(audio.n_frames(split.n_samples))
    chosen = np.random.default_rng(maker.seed).permutation(audible)[:_AGREEMENT_UTTERANCES]
    assigners = {s.name: (s.feature, kmeans.Assigner(s.model.centroids, s.model.metric, full.device)) for s in maker.sets}

    def labels_by(features):
        found = {}

        def consume(extracted):
            for name, (feature, assigner) in assigners.items():
                found[name, extracted.piece.utterance, extracted.piece.first] = assigner.labels(extracted.features[feature]).cpu().numpy()

        for _ in features.extract(split, chosen, consume, alone=True):
            pass
        return found

    a, b = labels_by(reduced), labels_by(full)
    shares = {}
    for name in assigners:
        same = np.concatenate([a[key] == b[key] for key in a if key[0] == name])
        shares[name] = float(same.mean())
    return shares, len(same)
