"""From audio to label files: every feature, every number of clusters, each recording read once.

Frames of the fitting split are kept in memory, all of them or as many recordings as the budget allows; k-means is fitted
on them, and the rest of the audio is labelled as it is read. Nothing but labels is written. A run that was killed keeps
the fits and the label files that are finished, and ends with the same bytes.
"""

import contextlib
import logging
import time
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import Stamp, atomic, fingerprint, make_folder, sha256, write_lines
from ..core.parallel import cores
from ..corpus import audio
from ..corpus.frame_labels import state_hop
from ..corpus.manifest import read_split, splits_of
from ..provenance import records
from . import kmeans
from .acoustic_pieces import AcousticPieces
from .centroid_files import load_centroids
from .centroids import KMeans
from .features import collect
from .label_sets import LabelSet, label_line, read_label_lines, remove_stale, write_dictionary
from .recordings import audio_fingerprint, choose_recordings, warn_of_short, windows, work_through

logger = logging.getLogger("emohubert")

_WINDOW_SECONDS = 1800  # audio whose labels are in memory
_FEW_FRAMES = 39  # frames a cluster below which a fit is called poor (as faiss does)


class LabelMaker:
    """Makes the label sets of a manifest directory, in the folder `out`.

    `features` are MfccFeatures, ProsodyFeatures or EncoderFeatures, `clusters` numbers of clusters, fitted on `fit_split` with `max_memory`
    bytes of features and a `seed`; or `centroids`, a `kmeans.npz` or joblib file, are applied. `splits` get labels, by default those that
    exist of train, valid and test. `pieces`: sizes of vocabularies of acoustic pieces to be made over each set.
    """

    def __init__(
        self,
        directory,
        out,
        features,
        clusters=(),
        fit_split="train",
        splits=None,
        seed=1,
        max_memory=512 << 20,
        centroids=None,
        pieces=(),
        overwrite=False,
    ):
        self.features, self.seed, self.max_memory, self.overwrite = features, seed, max_memory, overwrite
        self.splits = {name: read_split(directory, name) for name in _split_names(directory, splits)}
        self.out = make_folder(out)
        self._memory = {}
        self.fit_split = None if centroids else self.splits.get(fit_split) or read_split(directory, fit_split)
        read = {split.name: split for split in (*self.splits.values(), self.fit_split) if split is not None}
        self._audio = {name: audio_fingerprint(split) for name, split in read.items()}
        if centroids:
            self.sets = [self._given_set(centroids)]
        else:
            self.sample = self._choose_sample()
            self.sets = [self._fitted_set(name, k) for name in features.names for k in sorted(set(clusters))]
        self.pieces = sorted(set(pieces))
        if self.pieces and (centroids or fit_split not in self.splits):
            raise InputError("--pieces: they are learned from labels of the fitting split; name it in --splits too, and give --clusters")
        if self.pieces and (most := max(s.clusters for s in self.sets)) >= self.pieces[0]:
            n = self.pieces[0]
            raise InputError(f"--pieces {n}: there are {most} clusters, each a piece of its own; ask for more pieces than clusters")

    def run(self):
        """Fit what is not fitted, label what is not labelled."""
        start = time.perf_counter()
        for split in self.splits.values():
            warn_of_short(split, self.features.hop)
        self._fit()
        for split in sorted(self.splits.values(), key=lambda split: split is not self.fit_split):
            if split is not self.fit_split:
                self._memory = {}
            self._label(split)
        for s in self.sets:
            for size in self.pieces:
                self._make_pieces(s, size)
        logger.info("pseudo-labels: %d sets of %s in %.1f s", len(self.sets), ", ".join(self.splits), time.perf_counter() - start)

    def _set(self, name, clusters, settings, model=None):
        folder = make_folder(self.out / name / f"km{clusters}")
        settings = {"features": self.features.describe(name), **settings}
        stamp = Stamp(folder / ".kmeans.stamp", settings, [folder / "kmeans.npz", folder / "dict.km.txt"])
        return LabelSet(name, clusters, folder, stamp, model)

    def _fitted_set(self, name, clusters):
        settings = {**self.features.settings, "clusters": clusters, "seed": self.seed}
        settings |= {"audio": self._audio[self.fit_split.name], "recordings": fingerprint([int(i) for i in self.sample])}
        return self._set(name, clusters, settings)

    def _given_set(self, path):
        if len(self.features.names) != 1:
            raise InputError(f"{path}: given centroids label one layer; name the one they were fitted on with --layers")
        (name,) = self.features.names
        model = load_centroids(path)
        model.check(self.features.describe(name), self.features.widths[name], path)
        model.features = self.features.describe(name)
        given = self._set(name, len(model), {"given": sha256(path)}, model)
        if self.overwrite or not given.fit_stamp.is_current():
            given.save(self.features.hop)
        if given.centroids.resolve() != Path(path).resolve():
            sources = [records.source("centroids", path, sha256=sha256(path)), *self.features.sources]
            records.write(records.beside(given.centroids), records.LABELS, sources=sources)
        return given

    def _choose_sample(self):
        split = self.fit_split
        frames = audio.n_frames(split.n_samples, self.features.hop)
        chosen = choose_recordings(split.paths, frames, self.max_memory // (4 * sum(self.features.widths.values())), self.seed)
        if not chosen:
            what = f"no recording has a frame ({audio.RECEPTIVE_FIELD} samples) and fits into --max-memory"
            raise InputError(f"{split.tsv}: {what}; allow more memory or give more audio")
        if len(chosen) < np.count_nonzero(frames):
            what = "fit on %d of the %d recordings of %s, %d of %d frames: as many as --max-memory allows"
            logger.info(what, len(chosen), len(split), split.name, int(frames[chosen].sum()), int(frames.sum()))
        return chosen

    def _fit(self):
        wanting = []
        for s in self.sets:
            if s.model is None and not self.overwrite and s.fit_stamp.is_current():
                s.model = KMeans.load(s.centroids)
                self._record_fit(s)
            elif s.model is None:
                wanting.append(s)
            state_hop(s.folder, self.features.hop)
        if wanting:
            self._extract_sample({s.feature for s in wanting})
        for s in wanting:
            start, frames = time.perf_counter(), self._memory[s.feature]
            if len(frames) < _FEW_FRAMES * s.clusters:
                logger.warning("%s: only %.0f frames a cluster; give more audio or more --max-memory", s.name, len(frames) / s.clusters)
            s.model = kmeans.fit(frames, s.clusters, self.seed, device=self.features.device, workers=cores())
            s.model.features, fit = self.features.describe(s.feature), s.model.fit
            fit |= {"split": self.fit_split.name, "recordings": len(self.sample), "precision": self.features.precision}
            self._record_fit(s)
            s.save(self.features.hop)
            seconds = time.perf_counter() - start
            logger.info("%s: inertia %.4f a frame, %d iterations, %.1f s", s.name, fit["inertia"], fit["iterations"], seconds)

    def _record_fit(self, s):
        path, features = records.beside(s.centroids), self.features.describe(s.feature)
        records.write(path, records.CLUSTERING, self.fit_split, self.sample, self.features.sources, features=features)

    def _extract_sample(self, names):
        """Fill the memory: features of the recordings of the fit, and the rows that each of them has."""
        split = self.fit_split
        frames = audio.n_frames(split.n_samples[self.sample], self.features.hop)
        self._rows = {i: slice(int(end - n), int(end)) for i, end, n in zip(self.sample, np.cumsum(frames), frames, strict=True)}
        self._memory = {name: np.empty((int(frames.sum()), self.features.widths[name]), dtype=np.float32) for name in sorted(names)}
        durations = collect(self.features, split, self.sample, self._memory)
        work_through(durations, f"{split.name}: features to fit on", split.n_samples[self.sample])

    def _label_settings(self, s, split):
        return {"fit": s.fit_stamp.settings, "audio": self._audio[split.name], **self.features.settings}

    def _label(self, split):
        stamps = {}
        for s in self.sets:
            stamp = Stamp(s.folder / f".{split.name}.stamp", self._label_settings(s, split), [s.folder / f"{split.name}.km"])
            if self.overwrite or not stamp.is_current():
                stamp.clear()
                stamps[s] = stamp
        if not stamps:
            logger.info("%s: its labels are whole and made with these settings", split.name)
            return
        durations = self._write_labels(split, {s: stamp.files[0] for s, stamp in stamps.items()})
        work_through(durations, f"{split.name}: labels", split.n_samples)
        for stamp in stamps.values():
            stamp.write()

    def _write_labels(self, split, paths):
        """Write the files {set: path}, window by window; yields the seconds done."""
        frames = audio.n_frames(split.n_samples, self.features.hop)
        assigners = {s: kmeans.Assigner(s.model.centroids, self.features.device) for s in paths}
        with contextlib.ExitStack() as stack:
            files = {s: stack.enter_context(atomic(path)) for s, path in paths.items()}
            for window in windows(split.n_samples, _WINDOW_SECONDS * audio.SAMPLE_RATE):
                ends = np.cumsum(frames[window])
                labels = {s: np.zeros(ends[-1], dtype=np.int32) for s in paths}
                yield from self._label_window(split, window, ends - frames[window], assigners, labels)
                for s, f in files.items():
                    f.writelines(f"{label_line(line)}\n" for line in np.split(labels[s], ends[:-1]))

    def _label_window(self, split, window, starts, assigners, labels):
        """Fill `labels`, {set: those of the window's recordings}, which begin at `starts`; yields the seconds done."""

        def label(utterance, first, features):
            row = int(starts[utterance - window[0]]) + first
            for s, assigner in assigners.items():
                found = assigner.labels(features[s.feature])
                labels[s][row : row + len(found)] = found.cpu().numpy()

        names = list({s.feature: None for s in labels})
        known = set()
        if split is self.fit_split and set(names) <= set(self._memory):
            known = self._rows.keys() & set(window.tolist())
        for i in sorted(known):
            label(i, 0, {name: self._memory[name][self._rows[i]] for name in names})
            yield split.n_samples[i] / audio.SAMPLE_RATE
        audible = audio.n_frames(split.n_samples[window], self.features.hop) > 0
        rest = np.array([i for i in window[audible] if i not in known], dtype=np.int64)
        yield from self.features.extract(split, rest, lambda piece, features: label(piece.utterance, piece.first, features), names)

    def _make_pieces(self, s, size):
        """`km50-pieces1000/`: pieces learned from the labels of the fitting split, and every split in them."""
        folder = make_folder(s.folder.with_name(f"{s.folder.name}-pieces{size}"))
        settings, units = {"units": self._label_settings(s, self.fit_split), "pieces": size}, s.folder / f"{self.fit_split.name}.km"
        model = folder / "pieces.model"
        fit = Stamp(folder / ".pieces.stamp", settings, [model, folder / "dict.km.txt"])
        if self.overwrite or not fit.is_current():
            fit.clear()
            chosen = set(self.sample)
            pieces = AcousticPieces.fit((line for i, line in enumerate(read_label_lines(units)) if i in chosen), s.clusters, size)
            counts = sum(np.bincount(pieces.labels(line), minlength=size) for line in read_label_lines(units))
            remove_stale(folder, "units", settings["units"])
            write_dictionary(folder, counts, size)
            with atomic(model, "wb") as f:
                f.write(pieces.model)
            fit.write()
            logger.info("%s/%s: %d acoustic pieces, %d of them in use", s.feature, folder.name, size, np.count_nonzero(counts))
        state_hop(folder, self.features.hop)
        records.write(records.beside(model), records.CLUSTERING, self.fit_split, self.sample, [records.source("labels", s.folder)])
        pieces = AcousticPieces(model.read_bytes(), model)
        for split in self.splits.values():
            path = folder / f"{split.name}.km"
            stamp = Stamp(folder / f".{split.name}.stamp", {**settings, "split": self._label_settings(s, split)}, [path])
            if self.overwrite or not stamp.is_current():
                stamp.clear()
                write_lines(path, (label_line(pieces.labels(line)) for line in read_label_lines(s.folder / path.name)))
                stamp.write()


def _split_names(directory, splits):
    if splits:
        return list(dict.fromkeys(splits))
    if not (names := [s for s in splits_of(directory) if s in ("train", "valid", "test")]):
        raise InputError(f"{directory}: holds none of train.tsv, valid.tsv and test.tsv; name the splits with --splits")
    return names
