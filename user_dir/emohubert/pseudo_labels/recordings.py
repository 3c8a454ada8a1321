"""The recordings of a split as work: which to fit on, in which windows, whether they have changed, and how far the work is."""

import logging

import numpy as np

from ..core.cli import progress
from ..core.errors import InputError
from ..core.files import fingerprint
from ..corpus import audio

logger = logging.getLogger("emohubert")


def audio_fingerprint(split, indices=None):
    """Fingerprint of a split's audio (paths, lengths, speakers, the files' sizes and times of change); InputError if a file is missing."""
    rows = []
    for i in range(len(split)) if indices is None else indices:
        try:
            size, changed = audio.locate(split.audio(i)).stat()
        except OSError as error:
            raise InputError(f"{split.audio(i)}: no such audio file; restore it or remove it from {split.tsv}") from error
        rows.append([split.paths[i], int(split.n_samples[i]), size, changed, split.speakers[i] if split.speakers else None])
    return fingerprint(rows)


def warn_of_short(split, hop):
    """Log how many recordings are under one frame."""
    if len(short := np.flatnonzero(audio.n_frames(split.n_samples, hop) == 0)):
        what = f"{len(short)} recordings are shorter than one frame ({audio.RECEPTIVE_FIELD} samples) and get an empty line"
        logger.warning("%s: %s, such as %s", split.tsv, what, split.paths[short[0]])


def choose_recordings(names, frames, budget, seed):
    """Recordings to fit on, a list of indices, ordered by name: all with frames if these are within the budget, otherwise a random part.
    The choice and its order depend on the names (such as paths) and the seed only, not on the order of the recordings."""
    ordered = sorted(np.flatnonzero(frames).tolist(), key=lambda i: (names[i], i))
    if frames.sum() <= budget:
        return ordered
    chosen, used = set(), 0
    for _, i in sorted((fingerprint([seed, names[i]]), i) for i in ordered):
        if used + frames[i] <= budget:
            chosen.add(i)
            used += int(frames[i])
    return [i for i in ordered if i in chosen]


def windows(sizes, most):
    """Contiguous ranges of recordings, as index arrays: about `most` of their summed sizes in each."""
    starts = np.flatnonzero(np.diff((np.cumsum(sizes) - 1) // most, prepend=-1))
    return [window for window in np.split(np.arange(len(sizes)), starts[1:]) if len(window)]


def work_through(durations, description, n_samples):
    """Exhaust an iterable of the seconds of audio that are done, with a progress bar over the whole of `n_samples`."""
    for _ in progress(_each_second(durations), description, int(n_samples.sum() / audio.SAMPLE_RATE), "s"):
        pass


def _each_second(durations):
    done = shown = 0
    for duration in durations:
        done += duration
        while shown < int(done + 1e-6):
            shown += 1
            yield shown
