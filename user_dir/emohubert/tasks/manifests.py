"""The manifest directories of a training: one, or several corpora as one, their classes renamed by a label map."""

from functools import cached_property
from pathlib import Path

import numpy as np
from omegaconf import ListConfig

from ..core.errors import InputError
from ..corpus.manifest import NAMELESS, read_corpus, read_dictionary, read_split
from ..corpus.union import qualified, union
from ..data.speed_perturbation import at_speeds
from ..evaluation import label_maps


class Manifests:
    """What `data`, a directory or a list of them, holds. `speakers`: ending of the sidecar, or None; `label_map`: as for `read_map`, or None;
    `speeds`: factors of speed at which the training part comes once more."""

    def __init__(self, data, speakers, label_map, speeds=()):
        self.directories = [str(directory) for directory in (data if isinstance(data, (list, ListConfig)) else [data])]
        self.speakers, self.label_map, self.speeds = speakers, label_map, list(speeds)

    @property
    def are_several(self):
        """Whether there are several directories."""
        return len(self.directories) > 1

    @property
    def corpus(self):
        """The name of the corpus in `corpus.json`, or None; of several directories a list."""
        return self._corpora if self.are_several else self._corpora[0]

    @cached_property
    def _corpora(self):
        return [read_corpus(directory).get("corpus") for directory in self.directories]

    @property
    def _shown(self):
        """The corpus of each directory, for logs; one without a name is `corpusN`, by its place."""
        return [f"corpus{i}" if name in NAMELESS else name for i, name in enumerate(self._corpora, 1)]

    @property
    def corpora(self):
        """Names of several corpora, for logs; empty for one."""
        return list(dict.fromkeys(self._shown)) if self.are_several else []

    @cached_property
    def _ours_of(self):
        return str if self.label_map is None else label_maps.renaming(label_maps.read_map(self.label_map))

    def having(self, name):
        """The directories that have a split."""
        return [directory for directory in self.directories if (Path(directory) / f"{name}.tsv").is_file()]

    def read(self, name, *sidecars):
        """A split, with all sidecars or those named; `train` is of all directories and speeds, others are of those directories that have them."""
        split = self._read(name, *sidecars)
        return at_speeds(split, self.speeds) if self.speeds and name == "train" else split

    def _read(self, name, *sidecars):
        options = {"speakers": self.speakers} | ({"sidecars": sidecars} if sidecars else {})
        directories = self.directories if name == "train" or not self.are_several else self.having(name)
        splits = [read_split(directory, name, **options) for directory in directories]
        splits = splits if self.label_map is None else [label_maps.renamed(split, self._ours_of) for split in splits]
        if not self.are_several:
            return splits[0]
        whole, shown = union(splits), dict(zip(self.directories, self._shown, strict=True))
        own = np.array([[shown[directory] == name for name in self.corpora] for directory in directories])
        whole.corpora = own.repeat([len(split) for split in splits], axis=0)
        return whole

    def classes(self):
        """The classes of all dict.emo.txt, renamed."""
        paths = [Path(directory) / "dict.emo.txt" for directory in self.directories]
        names = [self._ours_of(name) for path in [p for p in paths if p.is_file()] or paths[:1] for name in read_dictionary(path)]
        return names if self.label_map is None and not self.are_several else sorted({*names} - {None})

    def known_speakers(self):
        """The ids of all speaker dictionaries, as of `read`."""
        paths = [Path(directory) / f"dict.{self.speakers}.txt" for directory in self.directories if self.speakers is not None]
        corpora = self._corpora if self.are_several else [None]
        return [s for path, corpus in zip(paths, corpora, strict=False) for s in qualified(read_dictionary(path), corpus)]

    def scales(self, dimensions):
        """{dimension: its scale}; InputError where corpora have one of these dimensions in different scales."""
        found = {}
        for directory in self.directories:
            for name, scale in read_corpus(directory).get("label_scales", {}).items():
                if found.setdefault(name, scale) != scale and name in dimensions:
                    what = f"the scale of {name} is {scale}, but {found[name]} in another corpus"
                    raise InputError(f"{directory}: {what}; bring .dim and label_scales in corpus.json to one scale")
        return found
