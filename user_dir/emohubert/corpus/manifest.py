"""The manifest directory: `{split}.tsv` and its line-aligned sidecars (`.spk`, `.emo`, `.votes`, `.dim`, `.meta.tsv`), dictionaries, and
`corpus.json`.

`{split}.tsv` is fairseq's: a root folder, then `relative/path<TAB>n_samples`, counted at 16 kHz also where a file has another rate.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import make_folder, natural, read_json, reading_text, write_json, write_lines
from . import audio
from .audio import SAMPLE_RATE, is_packed

NO_EMOTION = "-"  # what `.emo` holds for an utterance without a class
UNKNOWN_SPEAKER = "<unk>"  # what `.spk` holds where nobody knows who speaks; in no dictionary, and never one person
NAMELESS = {None, "table", "folder"}
"""What `corpus.json` calls a corpus whose script does not know its name."""
_TABLES = ("dim", "votes", "meta.tsv")  # sidecars whose first line names the columns
_UNWRITABLE = re.compile("[\t\r\n\ud800-\udfff]|^\\s*$")  # cannot stand in a column; the surrogates are of names that are not UTF-8
_LARGEST = float(np.finfo(np.float32).max)
_REMEDY = "make the manifest first (manifests/NAME.py), or correct the path"


@dataclass(frozen=True)
class Utterance:
    """One recording, as a corpus script sees it."""

    path: str  # relative to the corpus folder, with forward slashes
    n_samples: int  # at 16 kHz
    speaker: str
    emotion: str = NO_EMOTION
    dimensions: dict = field(default_factory=dict)  # name → value
    meta: dict = field(default_factory=dict)  # column → text: whatever else the corpus knows (sex, session, intensity, …)
    votes: dict = field(default_factory=dict)  # class → how many annotators, or what share of them, heard it
    cut: tuple | None = None  # (path of a recording, start, stop at 16 kHz, or None for its end, file:line) of a part yet to be written

    @property
    def id(self):
        """The column `id` of its meta, or the path without its ending."""
        return self.meta.get("id") or _id_of(self.path)


class Strings(Sequence):
    """A list of str that cannot be changed. It is one array: workers that read it share it, where they would copy a list of str."""

    def __init__(self, values):
        self._array = np.array(values, dtype=np.dtypes.StringDType())

    def __len__(self):
        return len(self._array)

    def __getitem__(self, index):
        return self._array[index].tolist() if isinstance(index, slice) else self._array[index]

    def __iter__(self):
        return iter(self._array)

    def __eq__(self, other):
        return list(self) == list(other) if isinstance(other, (list, Strings)) else NotImplemented


@dataclass
class Split:
    """One split of a manifest directory, with the sidecars it has (otherwise None)."""

    directory: Path
    name: str
    root: Path  # folder of the audio
    paths: list | Strings  # relative to it
    n_samples: np.ndarray  # int64, at 16 kHz
    speakers: list | Strings | None = None
    emotions: list | Strings | None = None
    dimensions: dict | None = None  # name → float array (NaN: no value)
    meta: dict | None = None  # column → list or Strings
    votes: dict | None = None  # class → float array, votes or shares of them

    def __len__(self):
        return len(self.paths)

    @property
    def tsv(self):
        """The audio list."""
        return self.directory / f"{self.name}.tsv"

    @property
    def files(self):
        """The audio list and its sidecars that are there, sorted."""
        return sorted(path for path in self.directory.glob(f"{escape(self.name)}.*") if path.is_file())

    @property
    def ids(self):
        """The utterances' ids: the column `id` of `.meta.tsv`, or the paths without their endings."""
        return self.meta["id"] if self.meta and "id" in self.meta else [_id_of(p) for p in self.paths]

    def of_directories(self, indices):
        """[(the split of each directory, those of the `indices` that are in it)], see `union`."""
        return [(self, indices)]

    def audio(self, index):
        """Full path of an utterance's file."""
        return self.root / self.paths[index]

    def read(self, index, start=0, stop=None):
        """Samples [start, stop) of an utterance, float32; nothing else is decoded."""
        return audio.read(self.audio(index), start, stop, n_samples=int(self.n_samples[index]))

    def check_header(self, index):
        """InputError if an utterance's file is missing, unreadable, truncated, or of another length than listed, by its header."""
        try:
            audio.probe(self.audio(index), self.n_samples[index])
        except InputError as error:
            raise InputError(f"{self.where(index)}: {error}") from None

    def where(self, index, suffix="tsv"):
        """`file:line` of an utterance, for messages."""
        return f"{self.directory / self.name}.{suffix}:{index + (2 if suffix in ('tsv', *_TABLES) else 1)}"

    def shares(self, classes):
        """Each of `classes`' share of the annotators' votes for any of them: float64 (n, classes); a row without votes is 0."""
        votes = np.stack([self.votes.get(name, np.zeros(len(self))) for name in classes], axis=1)
        return votes / np.maximum(votes.sum(axis=1, keepdims=True), np.finfo(float).tiny)


def _id_of(path):
    return path if is_packed(path) else Path(path).with_suffix("").as_posix()


def read_column(path):
    """Lines of a UTF-8 text file (any line ends, byte order mark or not), as a list of str."""
    with reading_text(path, _REMEDY):
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    return lines if lines[-1] else lines[:-1]


def read_table(path, column=list):
    """A TSV file with a header: {name: `column` of its texts}. InputError if it is empty, or columns differ in length or share a name."""
    names, *lines = read_column(path) or [""]
    names = names.split("\t")
    if names == [""] and not lines:
        raise InputError(f"{path}: empty; the first line must name the columns")
    if len(set(names)) != len(names):
        raise InputError(f"{path}:1: a column is named twice in {names}; rename one")
    for number, line in enumerate(lines, 2):
        if line.count("\t") + 1 != len(names):
            raise InputError(f"{path}:{number}: {line.count('	') + 1} columns where the header has {len(names)}; correct the line")
    return {name: column([line.split("\t", i + 1)[i] for line in lines]) for i, name in enumerate(names)}


def read_split(directory, name, speakers="spk", problems=None, sidecars=("speakers", "emotions", "votes", "dimensions", "meta")):
    """Read `{name}.tsv` and every sidecar that is there; InputError if one is malformed or of another length than the audio list.
    `speakers`: suffix of the speaker sidecar, or None. `problems`: a list that takes what is wrong with sidecars instead of raising it."""
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such manifest directory; make it with manifests/NAME.py")
    split = Split(directory, name, *_read_list(directory / f"{name}.tsv"))
    readers = {
        "speakers": lambda: None if speakers is None else _column_sidecar(split, speakers),
        "emotions": lambda: _column_sidecar(split, "emo"),
        "votes": lambda: _numbers(split, "votes", lambda x: (x >= 0) & np.isfinite(x), "not a number of votes; correct it (0: none)"),
        "dimensions": lambda: _numbers(split, "dim", lambda x: ~np.isinf(x), "not a number; correct it (nan: no value)"),
        "meta": lambda: _sidecar(split, "meta.tsv"),
    }
    for attribute in sidecars:
        try:
            setattr(split, attribute, readers[attribute]())
        except InputError as error:
            if problems is None:
                raise
            problems.append(error)
    return split


def _read_list(tsv):
    """The audio list: (root, paths, n_samples)."""
    root, *lines = read_column(tsv) or [""]
    if not lines:
        raise InputError(f"{tsv}: lists no audio; expected a root folder and then lines of path<TAB>n_samples")
    if not root.strip() or "\t" in root:
        raise InputError(f"{tsv}:1: “{root[:80]}” is not a folder; the first line must be the root folder of the paths")
    paths, n_samples = [], np.empty(len(lines), dtype=np.int64)
    for i, line in enumerate(lines):
        path, _, n = line.partition("\t")
        if not (path and n.isdecimal() and len(n) <= 15):
            raise InputError(f"{tsv}:{i + 2}: “{line[:80]}” is not path<TAB>n_samples; correct the line or make the manifest again")
        paths.append(path)
        n_samples[i] = int(n)
    return Path(root), Strings(paths), n_samples


def splits_of(directory):
    """Names of the splits in a manifest directory, sorted with train, valid and test first; InputError if it is no folder."""
    if not Path(directory).is_dir():
        raise InputError(f"{directory}: no such manifest directory; make it with manifests/NAME.py")
    first = {"train": 0, "valid": 1, "test": 2}
    names = [p.name[: -len(".tsv")] for p in Path(directory).glob("*.tsv") if not p.name.endswith(".meta.tsv")]
    return sorted(names, key=lambda n: (first.get(n, 3), n))


def manifest_directories(directory):
    """`directory` itself if it holds splits, and its `fold*` folders that do, in order; InputError if there is none."""
    folds = sorted((d for d in Path(directory).glob("fold*") if d.is_dir()), key=lambda path: natural(path.name))
    if not (found := [d for d in (Path(directory), *folds) if splits_of(d)]):
        raise InputError(f"{directory}: holds no {{split}}.tsv, nor does any fold*/ in it; make it with manifests/NAME.py")
    return found


def read_dictionary(path):
    """Symbols of a fairseq dictionary file, in order; see `read_counts`."""
    return list(read_counts(path))


def read_counts(path):
    """{symbol: count} of a fairseq dictionary file (`symbol count` lines), in order; InputError if it is malformed or empty."""
    found = {}
    for number, line in enumerate(read_column(path), 1):
        symbol, _, count = line.rpartition(" ")
        if not symbol or not count.isdecimal():
            raise InputError(f"{path}:{number}: “{line[:80]}” is not `symbol count`; make the dictionary again")
        if symbol in found:
            raise InputError(f"{path}:{number}: the symbol “{symbol}” is listed twice; make the dictionary again")
        found[symbol] = int(count)
    if not found:
        raise InputError(f"{path}: the dictionary is empty; make it again together with the labels")
    return found


def write_splits(directory, root, splits):
    """Write the splits (name → list of Utterance) of one manifest directory, and its dictionaries: those of `train`, or of the first."""
    check_splits(directory, root, splits)
    directory = make_folder(directory)
    counts = _counts(splits)
    for name, utterances in splits.items():
        _write_split(directory, root, name, utterances, counts["emo"])
    for kind, found in counts.items():
        if found:
            write_lines(directory / f"dict.{kind}.txt", [f"{symbol} {n}" for symbol, n in found.items()])


def _counts(splits):
    """{"emo": {class: utterances}, "spk": {speaker: utterances}} of the dictionaries, sorted."""
    train = splits.get("train") or next(iter(splits.values()))
    symbols = {
        "emo": (u.emotion for u in train if u.emotion != NO_EMOTION),
        "spk": (u.speaker for u in train if u.speaker != UNKNOWN_SPEAKER),
    }
    return {kind: dict(sorted(Counter(found).items())) for kind, found in symbols.items()}


def check_splits(directory, root, splits):
    """InputError if a split is empty, or a line of the manifest cannot hold what is to be written: to be found before anything is."""
    unfit = "is empty, or holds a tab, a line break or something that is not UTF-8; rename it"
    if _UNWRITABLE.search(str(root)):
        raise InputError(f"{root}: the name of the folder {unfit}")
    for name, utterances in splits.items():
        if not utterances:
            raise InputError(f"{Path(directory, name)}.tsv: the split would be empty; choose other options or look into the corpus folder")
        for u in utterances:
            if any(_UNWRITABLE.search(field) for field in (u.path, u.speaker, u.emotion)):
                raise InputError(f"{root}/{u.path}: the path, the speaker “{u.speaker}” or the class “{u.emotion}” {unfit}")


def _write_split(directory, root, name, utterances, known):
    """Write a split and its sidecars; votes for other than the `known` classes are left out."""
    dimensions, columns = list(utterances[0].dimensions), [column for column in utterances[0].meta if column != "id"]
    values = ([f"{u.dimensions.get(d, float('nan')):.6g}" for d in dimensions] for u in utterances)
    votes = ([f"{u.votes.get(c, 0):.6g}" for c in known] for u in utterances)
    classes = [u.emotion for u in utterances]
    sidecars = {
        "tsv": [root, *(f"{u.path}\t{u.n_samples}" for u in utterances)],
        "spk": [u.speaker for u in utterances],
        "emo": classes if any(c != NO_EMOTION for c in classes) else None,
        "votes": table_lines(known, votes) if known and any(u.votes for u in utterances) else None,
        "dim": table_lines(dimensions, values) if dimensions else None,
        "meta.tsv": table_lines(["id", *columns], ([u.id, *(u.meta.get(c, "") for c in columns)] for u in utterances)),
    }
    for suffix, lines in sidecars.items():
        if lines is None:
            (directory / f"{name}.{suffix}").unlink(missing_ok=True)
        else:
            write_lines(directory / f"{name}.{suffix}", lines)


def table_lines(names, rows):
    """Lines of a TSV file; tabs and line breaks within cells become spaces."""
    yield "\t".join(names)
    for row in rows:
        yield "\t".join(re.sub(r"[\t\r\n]+", " ", str(cell)) for cell in row)


def write_corpus(directory, corpus, root, folds, everything=None, options=None, scales=None, left_out=None):
    """Write a corpus: one manifest directory, or one per fold, and `corpus.json`. `folds`: name ("": the output folder itself) → {split →
    list of Utterance}. `everything`: those of `all.*`. `scales`: dimension → {"min": …, "max": …, …}. `left_out`: reason → paths."""
    directory, root = make_folder(directory), Path(root).resolve()
    (directory / "corpus.json").unlink(missing_ok=True)
    for name, splits in folds.items():
        write_splits(directory / name, root, splits)
    if everything is not None and "" in folds:
        _write_split(directory, root, "all", everything, _counts(folds[""])["emo"])
    elif everything is not None:
        write_splits(directory, root, {"all": everything})
    listed = everything or [u for splits in folds.values() for us in splits.values() for u in us]
    once = {u.path: u for u in listed}.values()
    source = sorted({f"{u.path}\t{u.n_samples}" for u in listed})
    facts = {
        "corpus": corpus,
        "options": options or {},
        "root": str(root),
        "utterances": len(source),
        "hours": round(sum(u.n_samples for u in once) / SAMPLE_RATE / 3600, 4),
        "speakers": len({u.speaker for u in listed}),
        "classes": dict(sorted(Counter(u.emotion for u in once).items())),
        "counts": {name or ".": {split: len(us) for split, us in splits.items()} for name, splits in folds.items()},
        "label_scales": scales or {},
        "left_out": {reason: sorted(paths) for reason, paths in (left_out or {}).items()},
        "source_sha256": hashlib.sha256("\n".join(source).encode()).hexdigest(),
    }
    write_json(directory / "corpus.json", facts)


def read_corpus(directory):
    """`corpus.json` of a manifest directory or of its parent; {} without one."""
    for folder in (Path(directory), Path(directory).parent):
        if (path := folder / "corpus.json").is_file():
            facts = read_json(path)
            scales = facts.get("label_scales") or {} if isinstance(facts, dict) else None
            if not isinstance(scales, dict) or not all(isinstance(scale, dict) for scale in scales.values()):
                raise InputError(f"{path}: is not what a corpus script writes; make the manifest again")
            return facts
    return {}


def share_people(corpus, other):
    """Whether an id may be one person in two corpora, by their names in `corpus.json`; in one without a name, anybody may speak."""
    return corpus == other or not NAMELESS.isdisjoint((corpus, other))


def _sidecar(split, suffix):
    """The columns of a sidecar, None without one; InputError if its lines are not as many as those of the audio list."""
    path = split.directory / f"{split.name}.{suffix}"
    if not path.is_file():
        return None
    columns = read_table(path, Strings) if suffix in _TABLES else {"": Strings(read_column(path))}
    rows = len(next(iter(columns.values())))
    if rows != len(split):
        raise InputError(f"{path}: {rows} lines for the {len(split)} utterances of {split.tsv}; make the manifest again")
    return columns


def _column_sidecar(split, suffix):
    column = (_sidecar(split, suffix) or {}).get("")
    if column is not None and not all(map(str.strip, set(column))):
        number = next(number for number, line in enumerate(column) if not line.strip())
        raise InputError(f"{split.where(number, suffix)}: empty line; every utterance needs a value")
    return column


def _numbers(split, suffix, fits, otherwise):
    """The columns of a sidecar as float arrays; InputError, which ends with `otherwise`, for the first number that does not `fit`."""
    table = _sidecar(split, suffix)
    for name, column in (table or {}).items():
        table[name] = np.array([as_number(text) for text in column])
        if not (good := fits(table[name])).all():
            bad = int(np.argmin(good))
            raise InputError(f"{split.where(bad, suffix)}: {name} is “{column[bad]}”, {otherwise}")
    return table


def as_number(text):
    """A float, infinite where the text is none, or none that single precision has."""
    try:
        value = float(text)
        return float("inf") if "_" in str(text) or abs(value) > _LARGEST else value
    except (TypeError, ValueError):
        return float("inf")


def by_speaker(speakers):
    """{speaker: indices, ascending} of the known speakers among n ids, sorted by id."""
    names, number = np.unique(np.asarray(speakers, dtype=np.str_), return_inverse=True)
    rows = np.split(np.argsort(number, kind="stable"), np.bincount(number).cumsum()[:-1])
    return {name: own for name, own in zip(names.tolist(), rows, strict=False) if name != UNKNOWN_SPEAKER}
