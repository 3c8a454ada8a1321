"""Training utterances once more at other speeds: pitch and formants follow, so that each speed makes other voices (Ko et al. 2015)."""

from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError
from ..corpus.manifest import UNKNOWN_SPEAKER, Split, Strings
from . import degradations


@dataclass
class AtSpeeds(Split):
    """A Split, and behind it all its utterances at each of some other speeds; their speakers are others, such as `anna@0.9`."""

    original: Split | None = None
    factors: np.ndarray | None = None  # of each utterance; 1: as it is
    corpora: np.ndarray | None = None  # as of a `Union`

    def of_directories(self, indices):
        """What the utterances were made of, each once; see `Split`."""
        return self.original.of_directories(np.unique(np.asarray(indices) % len(self.original)))

    def where(self, index, suffix="tsv"):
        """`file:line` of an utterance, for messages."""
        return self.original.where(int(index) % len(self.original), suffix)

    def check_header(self, index):
        """As `Split`'s."""
        self.original.check_header(int(index) % len(self.original))

    def read(self, index, start=0, stop=None):
        """As `Split`'s, at the utterance's speed."""
        own, factor = int(index) % len(self.original), self.factors[index]
        if factor == 1:
            return self.original.read(own, start, stop)
        return degradations.change_speed(self.original.read(own), factor)[start:stop]


def at_speeds(split, factors, option="task.speed_perturbation"):
    """The AtSpeeds of a Split; InputError, with the name of the `option`, if a factor is 1, given twice, or no speed."""
    if 1 in factors or len(set(factors)) < len(factors):
        raise InputError(f"{option}={list(factors)}: give other speeds than 1, each once; utterances as they are come too")
    degradations.check_speeds(factors, option)
    lengths = [[degradations.speed_length(int(n), factor) for n in split.n_samples] for factor in factors]
    times = 1 + len(factors)

    def repeated(column):
        """A column of the original, so many times over."""
        return column if column is None else np.tile(column, times) if isinstance(column, np.ndarray) else Strings(list(column) * times)

    tables = ({name: repeated(c) for name, c in table.items()} if table else table for table in (split.dimensions, split.meta, split.votes))
    speakers = None
    if split.speakers is not None:
        others = [s if s == UNKNOWN_SPEAKER else f"{s}@{factor:g}" for factor in factors for s in split.speakers]
        speakers = Strings([*split.speakers, *others])
    corpora = getattr(split, "corpora", None)
    return AtSpeeds(
        split.directory,
        split.name,
        split.root,
        repeated(split.paths),
        np.concatenate([split.n_samples, *lengths]).astype(np.int64),
        speakers,
        repeated(split.emotions),
        *tables,
        split,
        np.repeat([1.0, *factors], len(split)),
        None if corpora is None else np.tile(corpora, (times, 1)),
    )
