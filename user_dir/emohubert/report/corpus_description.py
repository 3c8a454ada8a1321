"""What a corpus is made of: a table of its utterances, what is known of each speaker, and how the speakers sound."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.files import Stamp, make_folder, sha256, write_json, write_lines
from ..corpus.audio import RECEPTIVE_FIELD, SAMPLE_RATE
from ..corpus.manifest import NO_EMOTION, UNKNOWN_SPEAKER, manifest_directories, read_corpus, read_split, splits_of
from ..data import speaker_vectors
from ..evaluation import figures
from . import corpus_figures

logger = logging.getLogger(__name__)

MOST_ODD = 0.1
"""A column that differs within no more than this share of the speakers is named in the log: there may be a mistake in it."""

MOST_VALUES = 12
"""Properties of speakers with more values than this are counted in figures only."""


@dataclass
class Corpus:
    """The utterances of a manifest directory, each once, whatever splits and folds it is in.

    Attributes:
        name: of the corpus.
        sources: list of (Split, indices of the utterances that are met there first): together, all of them in order.
        utterances: list of dicts: `id`, `path`, `seconds`, `speaker`, `emotion`, `places` ({"split" or fold: splits it is in}),
            `dimensions` ({name: value}) and `meta` ({column: text}).
    """

    name: str
    sources: list
    utterances: list

    def names(self, kind):
        """Names in `places`, `dimensions` or `meta` of all utterances, in the order of their first appearance."""
        return list(dict.fromkeys(name for u in self.utterances for name in u[kind]))

    @property
    def speakers(self):
        """Speaker → utterances, sorted by speaker; unknown speakers are nobody."""
        found = {}
        for u in self.utterances:
            if u["speaker"] != UNKNOWN_SPEAKER:
                found.setdefault(u["speaker"], []).append(u)
        return dict(sorted(found.items()))


def read(directory):
    """Read all splits of a manifest directory and of its folds.

    Returns:
        A Corpus.

    Raises:
        InputError: there is no split, or one cannot be read.
    """
    directory, known, sources = Path(directory), {}, []
    for folder in manifest_directories(directory):
        place = "split" if folder == directory else folder.name
        for name in splits_of(folder):
            split, new = read_split(folder, name), []
            for i, path in enumerate(split.paths):
                if path not in known:
                    new.append(i)
                    known[path] = _utterance(split, i)
                known[path]["places"].setdefault(place, []).append(name)
            if new:
                sources.append((split, np.array(new)))
    return Corpus(read_corpus(directory).get("corpus", directory.resolve().name), sources, list(known.values()))


def _utterance(split, i):
    return {
        "id": split.ids[i],
        "path": split.paths[i],
        "seconds": int(split.n_samples[i]) / SAMPLE_RATE,
        "speaker": split.speakers[i] if split.speakers else UNKNOWN_SPEAKER,
        "emotion": split.emotions[i] if split.emotions else NO_EMOTION,
        "places": {},
        "dimensions": {name: float(values[i]) for name, values in (split.dimensions or {}).items()},
        "meta": {name: column[i] for name, column in (split.meta or {}).items() if name != "id"},
    }


def utterance_table(corpus):
    """All that is known of every utterance, one column each.

    Columns are `id path seconds`, the splits it is in (`split`, and one for each fold), `speaker emotion`, dimensions and metadata;
    where a name is taken, as both a dimension and metadata may be called intensity, the later has `meta_` before it. What is
    not known is empty.

    Returns:
        (header, rows), lists of str.
    """
    places, dimensions = corpus.names("places"), corpus.names("dimensions")
    header = ["id", "path", "seconds", *places, "speaker", "emotion", *dimensions]
    meta = corpus.names("meta")
    header += [f"meta_{name}" if name in header else name for name in meta]
    rows = []
    for u in corpus.utterances:
        levels = [u["dimensions"].get(name, np.nan) for name in dimensions]
        row = [u["id"], u["path"], f"{u['seconds']:.4f}", *("+".join(u["places"].get(p, [])) for p in places), u["speaker"], u["emotion"]]
        rows.append([*row, *("" if np.isnan(v) else f"{v:.6g}" for v in levels), *(u["meta"].get(name, "") for name in meta)])
    return header, rows


def speaker_metadata(corpus):
    """Metadata that tells something of speakers: columns in which nobody has two values.

    A column in which hardly anybody has two is named in the log, since there may be a mistake in it.

    Returns:
        column → {speaker: value, or "" if it is not known}; numbers where all that are known are numbers.
    """
    speakers, found = corpus.speakers, {}
    for column in corpus.names("meta"):
        values = {s: Counter(v for u in us if (v := u["meta"].get(column, ""))) for s, us in speakers.items()}
        several = [s for s, counts in values.items() if len(counts) > 1]
        if several and len(several) <= MOST_ODD * len(speakers):
            example = ", ".join(f"{value} {n}×" for value, n in values[several[0]].most_common(3))
            logger.warning(
                "%s differs within %d of %d speakers (%s: %s) and is not taken as a property of speakers; correct the manifest",
                *(column, len(several), len(speakers), several[0], example),
            )
        if not several and any(values.values()):
            found[column] = _numbers({s: next(iter(counts), "") for s, counts in values.items()})
    return found


def _numbers(values):
    """The values as numbers if all that are known are; ids such as 03 stay text."""
    try:
        return {s: "" if v == "" else _number(v) for s, v in values.items()}
    except ValueError:
        return values


def _number(text):
    number = float(text)
    if not np.isfinite(number) or text[:1] == "0" and text[1:2].isdigit():
        raise ValueError(text)
    return int(number) if number == int(number) else number


def speaker_table(corpus, metadata, vectors=None):
    """What is known of each speaker.

    Args:
        corpus: of `read`.
        metadata: of `speaker_metadata`.
        vectors: of `voices`, or None.

    Returns:
        speaker → {`utterances`, `seconds`, `classes` ({class: utterances}), `splits` ({"split" or fold: {split: utterances}}),
        `dimensions` ({name: mean}), `metadata`, `mfcc` (mean of 13 coefficients; not without a vector)}.
    """
    mfcc = {} if vectors is None else dict(zip(vectors.ids, vectors.vectors, strict=True))
    table = {}
    for speaker, utterances in corpus.speakers.items():
        places = {p: Counter(split for u in utterances for split in u["places"].get(p, [])) for p in corpus.names("places")}
        levels = {d: [u["dimensions"].get(d, np.nan) for u in utterances] for d in corpus.names("dimensions")}
        table[speaker] = {
            "utterances": len(utterances),
            "seconds": round(sum(u["seconds"] for u in utterances), 3),
            "classes": dict(sorted(Counter(u["emotion"] for u in utterances).items())),
            "splits": {p: dict(counts) for p, counts in places.items() if counts},
            "dimensions": {d: round(float(np.nanmean(v)), 6) for d, v in levels.items() if not np.isnan(v).all()},
            "metadata": {column: values[speaker] for column, values in metadata.items()},
        }
        if speaker in mfcc:
            table[speaker]["mfcc"] = [round(float(x), 6) for x in mfcc[speaker]]
    return table


def voices(corpus, workers=None):
    """Mean MFCCs of every speaker who is known; utterances under one frame are counted in the log.

    Returns:
        SpeakerVectors, or None without a speaker.

    Raises:
        InputError: audio that cannot be read.
    """
    speakers, means, short = [], [], 0
    for split, indices in corpus.sources:
        named = np.array([i for i in indices if split.speakers and split.speakers[i] != UNKNOWN_SPEAKER], dtype=np.int64)
        long = named[split.n_samples[named] >= RECEPTIVE_FIELD]
        short += len(named) - len(long)
        if len(long):
            speakers += [split.speakers[i] for i in long]
            means.append(speaker_vectors.mfcc_means(split, workers, long))
    if short:
        logger.warning("%d utterances are shorter than one frame and not in the means of MFCCs", short)
    return speaker_vectors.from_utterances(speakers, np.concatenate(means)) if means else None


def summary(corpus, metadata):
    """Counts of the whole corpus, JSON values with a `title`, as reports show them."""
    seconds = np.array([u["seconds"] for u in corpus.utterances])
    unknown = sum(u["speaker"] == UNKNOWN_SPEAKER for u in corpus.utterances)
    known = {column: Counter("unknown" if v == "" else str(v) for v in values.values()) for column, values in metadata.items()}
    return {
        "title": f"The corpus {corpus.name}",
        "utterances": len(seconds),
        "hours": round(float(seconds.sum()) / 3600, 4),
        "seconds": {
            name: round(float(v), 3)
            for name, v in zip(("shortest", "median", "longest"), np.percentile(seconds, [0, 50, 100]), strict=True)
        },
        "classes": dict(sorted(Counter(u["emotion"] for u in corpus.utterances).items())),
        "splits": {p: dict(Counter(s for u in corpus.utterances for s in u["places"].get(p, []))) for p in corpus.names("places")},
        "speakers": len(corpus.speakers),
        "utterances of unknown speakers": unknown,
        **{f"speakers by {column}": dict(sorted(counts.items())) for column, counts in known.items() if len(counts) <= MOST_VALUES},
    }


def write(directory, out, workers=None, overwrite=False):
    """Describe a corpus: tables, and figures in `figures/`, unless they are there and made from the same manifests.

    Args:
        directory: manifest directory, with or without folds.
        out: folder to write.
        workers: threads that read audio; by default one for each core.
        overwrite: write again what is there.

    Returns:
        (the content of `summary.json`, paths of what was written), or None where nothing was to be done.

    Raises:
        InputError: as `read` and `voices`; or the folder cannot be written to.
    """
    directory, out = Path(directory), make_folder(out)
    inputs = [p for d in manifest_directories(directory) for p in sorted(d.iterdir()) if p.is_file() and not p.name.startswith(".")]
    modules = (corpus_figures, figures, speaker_vectors)
    settings = {"manifest": {str(p.relative_to(directory)): sha256(p) for p in inputs}, "code": [sha256(m.__file__) for m in modules]}
    tables = [out / name for name in ("utterances.tsv", "speakers.json", "summary.json")]
    stamp = Stamp(out / ".description.json", {**settings, "this": sha256(__file__)}, tables)
    if stamp.is_current() and not overwrite:
        return None
    corpus = read(directory)
    metadata, vectors = speaker_metadata(corpus), voices(corpus, workers)
    content = summary(corpus, metadata)
    stamp.clear()
    header, rows = utterance_table(corpus)
    write_lines(tables[0], ("\t".join(row) for row in [header, *rows]))
    write_json(tables[1], speaker_table(corpus, metadata, vectors))
    write_json(tables[2], content)
    if vectors is not None:
        tables.append(out / "speaker_mfcc.npz")
        speaker_vectors.write(tables[-1], vectors)
    drawn = corpus_figures.draw(make_folder(out / "figures"), corpus, metadata, vectors)
    stamp.write()
    return content, tables + drawn
