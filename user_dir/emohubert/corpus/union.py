"""Several manifest directories as one, for a training on several corpora: an id is one person within a corpus, another in the next."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from .manifest import NAMELESS, NO_EMOTION, UNKNOWN_SPEAKER, Split, Strings, read_corpus, share_people


@dataclass
class Union(Split):
    """Splits of several directories, one after the other. Paths are absolute; speakers are `CORPUS/id` where the corpus has a name."""

    splits: list = field(default_factory=list)
    corpora: np.ndarray | None = None  # bool (n, corpora): whose each utterance is

    def where(self, index, suffix="tsv"):
        """`file:line` of an utterance, for messages."""
        split, own = self.of_directories([index])[0]
        return split.where(int(own[0]), suffix)

    def of_directories(self, indices):
        """[(split of a directory, those of the `indices` that are in it, as its own)], without empty ones."""
        stops, indices = np.cumsum([len(split) for split in self.splits]), np.asarray(indices)
        parts = [(s, indices[(indices >= b - len(s)) & (indices < b)] - (b - len(s))) for s, b in zip(self.splits, stops, strict=True)]
        return [(split, own) for split, own in parts if len(own)]


def qualified(speakers, corpus):
    """Ids that no other corpus has: CORPUS/id; those of a corpus without a name, and unknown speakers, stay as they are."""
    return [s if corpus in NAMELESS or s == UNKNOWN_SPEAKER else f"{corpus}/{s}" for s in speakers]


def as_in(corpus, speakers, trained):
    """Speakers of a training as a corpus names them, None where an id means another person there. `trained`: the training's corpus, or a list
    of several, whose ids are `qualified`."""
    if not isinstance(trained, list):
        return list(speakers) if share_people(corpus, trained) else [None] * len(speakers)
    found = []
    for speaker in speakers:
        own = next((name for name in trained if name not in NAMELESS and speaker.startswith(f"{name}/")), None)
        found.append(speaker.removeprefix(f"{own}/") if share_people(corpus, own) else None)
    return found


def union(splits):
    """One Split of several of the same name, each with the sidecars that any of them has: without its own, nothing is known of its utterances.
    InputError: two corpora without names have the same speaker ids, which may or may not be the same people."""
    speakers, nameless = [], {}
    for split in splits:
        name = read_corpus(split.directory).get("corpus")
        speakers += qualified(split.speakers or [UNKNOWN_SPEAKER] * len(split), name)
        if name in NAMELESS:
            for speaker in set(split.speakers or []) - {UNKNOWN_SPEAKER}:
                if (other := nameless.setdefault(speaker, split.directory)) != split.directory:
                    what = f"has the speaker id “{speaker}” of {other}, and neither corpus has a name"
                    raise InputError(f"{split.tsv}: {what}; give each its own “corpus” in its corpus.json (the same: the same people)")
    lengths = [len(split) for split in splits]

    def together(attribute, missing):
        """The columns of a sidecar."""
        tables = [getattr(split, attribute) or {} for split in splits]
        names = dict.fromkeys(name for table in tables for name in table)
        columns = {name: [t.get(name, np.full(n, missing)) for t, n in zip(tables, lengths, strict=True)] for name in names}
        as_one = (lambda parts: Strings([x for part in parts for x in part])) if missing == "" else np.concatenate
        return {name: as_one(parts) for name, parts in columns.items()} or None

    emotions = None
    if any(split.emotions for split in splits):
        emotions = Strings([e for split in splits for e in split.emotions or [NO_EMOTION] * len(split)])
    return Union(
        Path(" + ".join(str(split.directory) for split in splits)),
        splits[0].name,
        Path("/"),
        Strings([str(split.audio(i).absolute()) for split in splits for i in range(len(split))]),
        np.concatenate([split.n_samples for split in splits]),
        Strings(speakers) if any(split.speakers for split in splits) else None,
        emotions,
        together("dimensions", np.nan),
        together("meta", ""),
        together("votes", 0.0),
        splits,
    )
