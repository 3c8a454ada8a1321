"""What a corpus is made of: a table of its utterances, what is known of each speaker, and how the speakers sound."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..core.files import Stamp, make_folder, sha256, write_json
from ..corpus.audio import RECEPTIVE_FIELD, SAMPLE_RATE
from ..corpus.manifest import NO_EMOTION, UNKNOWN_SPEAKER, manifest_directories, read_corpus, read_split, splits_of
from ..data import speaker_vectors
from ..evaluation.predictions import write_table
from . import corpus_figures

logger = logging.getLogger(__name__)

MOST_VALUES = 12  # properties of speakers with more values than this are counted in figures only


@dataclass
class Corpus:
    """The utterances of a manifest directory, each once, whatever splits and folds it is in. Columns of `table`: `id`, `path`, `seconds`,
    `split` (all that they are in, such as fold1/train+fold2/test), `speaker`, `emotion`, dimensions (NaN: unknown), metadata (text); and
    `source` and `row`, where they are in `splits`."""

    name: str
    splits: list
    table: pd.DataFrame
    dimensions: list  # columns of the table, as are these:
    meta: dict  # name → column

    @property
    def known(self):
        """The utterances of known speakers."""
        return self.table[self.table["speaker"] != UNKNOWN_SPEAKER]


def read(directory):
    """Read all splits of a manifest directory and of its folds as a Corpus. Where both a dimension and a metadata column are called, say,
    intensity, the column of the latter has `meta_` before its name."""
    directory = Path(directory)
    splits = [read_split(folder, name) for folder in manifest_directories(directory) for name in splits_of(folder)]
    dimensions = list(dict.fromkeys(name for split in splits for name in split.dimensions or {}))
    common = ["id", "path", "seconds", "split", "speaker", "emotion", *dimensions]
    names = dict.fromkeys(name for split in splits for name in split.meta or {} if name != "id")
    meta = {name: f"meta_{name}" if name in common else name for name in names}
    frames = []
    for number, split in enumerate(splits):
        place = (split.directory / split.name).relative_to(directory).as_posix()
        columns = {"id": list(split.ids), "path": list(split.paths), "seconds": split.n_samples / SAMPLE_RATE, "split": place}
        columns |= {"speaker": list(split.speakers or [UNKNOWN_SPEAKER] * len(split))}
        columns |= {"emotion": list(split.emotions or [NO_EMOTION] * len(split)), **(split.dimensions or {})}
        columns |= {meta[name]: list(column) for name, column in (split.meta or {}).items() if name != "id"}
        frames.append(pd.DataFrame({**columns, "source": number, "row": np.arange(len(split))}))
    table = pd.concat(frames, ignore_index=True)[[*common, *meta.values(), "source", "row"]]
    table[[*meta.values()]] = table[[*meta.values()]].fillna("")
    places = table.groupby("path", sort=False)["split"].agg("+".join)
    table = table.drop_duplicates("path").assign(split=places.to_numpy())
    return Corpus(read_corpus(directory).get("corpus", directory.resolve().name), splits, table, dimensions, meta)


def speaker_metadata(corpus):
    """Metadata of speakers, in which nobody has two values: name → {speaker: value, or "" if unknown}."""
    found, speakers = {}, sorted(corpus.known["speaker"].unique())
    for name, column in corpus.meta.items():
        known = corpus.known[corpus.known[column] != ""].groupby("speaker")[column]
        if len(known) and (known.nunique() == 1).all():
            found[name] = dict.fromkeys(speakers, "") | known.first().to_dict()
    return found


def speaker_table(corpus, metadata):
    """A row for each known speaker: utterances, seconds, utterances of each class (`n_CLASS`), means of dimensions, metadata."""
    groups, classes = corpus.known.groupby("speaker"), pd.crosstab(corpus.known["speaker"], corpus.known["emotion"]).add_prefix("n_")
    parts = [groups["seconds"].agg(utterances="size", seconds="sum"), classes, groups[corpus.dimensions].mean()]
    parts.append(pd.DataFrame({corpus.meta[name]: values for name, values in metadata.items()}, dtype=object))
    return pd.concat(parts, axis=1).rename_axis("speaker").reset_index()


def voices(corpus, workers=None):
    """SpeakerVectors: mean MFCCs of every known speaker, None without one; utterances under one frame are counted in the log."""
    known = corpus.known
    long = known[known["seconds"] * SAMPLE_RATE >= RECEPTIVE_FIELD]
    if len(long) < len(known):
        logger.warning("%d utterances are shorter than one frame and not in the means of MFCCs", len(known) - len(long))
    means = [speaker_vectors.mfcc_means(corpus.splits[source], workers, rows["row"]) for source, rows in long.groupby("source")]
    return speaker_vectors.from_utterances(long["speaker"].tolist(), np.concatenate(means)) if means else None


def summary(corpus, metadata):
    """Counts of the whole corpus, JSON values with a `title`, as reports show them."""
    table, seconds = corpus.table, corpus.table["seconds"]
    known = {name: Counter(v or "unknown" for v in values.values()) for name, values in metadata.items()}
    lengths = seconds.agg({"shortest": "min", "median": "median", "longest": "max"}).round(3)
    return {
        "title": f"The corpus {corpus.name}",
        "utterances": len(table),
        "hours": round(float(seconds.sum()) / 3600, 4),
        "seconds": lengths.to_dict(),
        "classes": dict(sorted(Counter(table["emotion"]).items())),
        "splits": Counter(table["split"].str.split("+").explode()),
        "speakers": corpus.known["speaker"].nunique(),
        "utterances of unknown speakers": len(table) - len(corpus.known),
        **{f"speakers by {name}": dict(sorted(counts.items())) for name, counts in known.items() if len(counts) <= MOST_VALUES},
    }


def write(directory, out, workers=None, overwrite=False):
    """Describe the corpus of a manifest directory: tables, and figures in `figures/`. Returns (the content of `summary.json`, paths of what
    was written), or None where all is there and made from the same manifests."""
    directory, out = Path(directory), make_folder(out)
    inputs = [p for d in manifest_directories(directory) for p in sorted(d.iterdir()) if p.is_file() and not p.name.startswith(".")]
    tables = [out / name for name in ("utterances.tsv", "speakers.tsv", "summary.json")]
    stamp = Stamp(out / ".description.json", {"manifest": {str(p.relative_to(directory)): sha256(p) for p in inputs}}, tables)
    if stamp.is_current() and not overwrite:
        return None
    corpus = read(directory)
    metadata, vectors = speaker_metadata(corpus), voices(corpus, workers)
    content = summary(corpus, metadata)
    stamp.clear()
    table = corpus.table.drop(columns=["source", "row"]).assign(seconds=corpus.table["seconds"].map("{:.4f}".format))
    write_table(tables[0], table, digits=6, undefined="")
    write_table(tables[1], speaker_table(corpus, metadata), digits=6, undefined="")
    write_json(tables[2], content)
    if vectors is not None:
        tables.append(out / "speaker_mfcc.npz")
        speaker_vectors.write(tables[-1], vectors)
    drawn = corpus_figures.draw(make_folder(out / "figures"), corpus, metadata, vectors)
    stamp.write()
    return content, tables + drawn
