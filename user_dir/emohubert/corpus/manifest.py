"""The manifest directory: `{split}.tsv` and its line-aligned sidecars, dictionaries and `corpus.json`.

`{split}.tsv` is fairseq's: a root folder, then `relative/path<TAB>n_samples`; samples are counted at 16 kHz, after
resampling where a file has another rate. Line i of every sidecar (`.spk`, `.emo`, `.dim`, `.meta.tsv`) belongs to line i
of the audio list.
"""

import glob
import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import atomic, copy, make_folder, read_json, reading_text, write_json, write_lines
from .audio import is_packed
from .string_columns import Codes, Column, KeptFile, Strings, Table, compact, offsets_of

NO_EMOTION = "-"
"""What `.emo` holds for an utterance without a class."""
UNKNOWN_SPEAKER = "<unk>"
"""What `.spk` holds where the corpus does not know who speaks; in no dictionary, and never one person."""
STAGED = "staged.json"
"""What a manifest directory of staged audio says about where it comes from."""
_UNWRITABLE = re.compile("[\t\r\n\ud800-\udfff]|^\\s*$")
"""Text that cannot stand in a column: tabs, line breaks, bytes of a file name that are not UTF-8, nothing at all."""
_REMEDY = "make the manifest first (manifests/NAME.py), or correct the path"


@dataclass(frozen=True)
class Utterance:
    """One recording, as a corpus script sees it.

    Attributes:
        path: relative to the corpus folder, with forward slashes.
        n_samples: at 16 kHz.
        speaker: speaker id.
        emotion: class name, or "-".
        dimensions: name → value, such as {"arousal": 0.4}.
        meta: column → text: whatever else the corpus knows (sex, session, intensity, …).
    """

    path: str
    n_samples: int
    speaker: str
    emotion: str = NO_EMOTION
    dimensions: dict = field(default_factory=dict)
    meta: dict = field(default_factory=dict)

    @property
    def id(self):
        """The column `id` of its meta, or the path without its ending."""
        return self.meta.get("id") or _id_of(self.path)


@dataclass
class Split:
    """One split of a manifest directory, with the sidecars it has.

    Attributes:
        directory, name: where it was read from.
        root: folder of the audio.
        paths: relative paths, in order.
        n_samples: int64 array.
        speakers, emotions: lists of str (or what reads like one, see `columns`), or None without the sidecar.
        dimensions: name → float array (NaN: no value), or None.
        meta: column → list of str, read when it is first asked for; or None.
    """

    directory: Path
    name: str
    root: Path
    paths: list | Column
    n_samples: np.ndarray
    speakers: list | Column | None = None
    emotions: list | Column | None = None
    dimensions: dict | None = None
    meta: dict | Table | None = None

    def __len__(self):
        return len(self.paths)

    @property
    def tsv(self):
        """The audio list."""
        return self.directory / f"{self.name}.tsv"

    @property
    def ids(self):
        """The utterances' ids: the column `id` of `.meta.tsv`, or the paths without their endings."""
        if self.meta and "id" in self.meta:
            return self.meta["id"]
        return [_id_of(p) for p in self.paths]

    def audio(self, index):
        """Full path of an utterance's file."""
        return self.root / self.paths[index]

    def where(self, index, suffix="tsv"):
        """`file:line` of an utterance, for messages."""
        return f"{self.directory / self.name}.{suffix}:{index + (2 if suffix in ('tsv', 'dim', 'meta.tsv') else 1)}"


def _id_of(path):
    return path if is_packed(path) else Path(path).with_suffix("").as_posix()


def read_lines(path):
    """Lines of a UTF-8 text file, without line ends (Windows ones included) and without the byte order mark of Windows editors.

    Raises:
        InputError: missing or not text.
    """
    with reading_text(path, _REMEDY):
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
        return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def read_column(path):
    """The same, as a column (see `columns`): little memory for millions of lines."""
    with reading_text(path, _REMEDY):
        return compact(KeptFile(path).lines)


def read_table(path):
    """A TSV file with a header, as {column: list of str}.

    Raises:
        InputError: no header, duplicate columns, or a line with another number of columns.
    """
    with reading_text(path, _REMEDY):
        table = Table(path)
        return {name: list(table.read(name)) for name in table}


def read_split(directory, name, speakers="spk", problems=None, sidecars=("speakers", "emotions", "dimensions", "meta")):
    """Read `{name}.tsv` and every sidecar that is there.

    Args:
        directory: the manifest directory.
        name: of the split, such as `train`.
        speakers: suffix of the speaker sidecar; None ignores it.
        problems: a list that takes what is wrong with sidecars, which are then left out, instead of raising it.
        sidecars: attributes of the split that are wanted.

    Raises:
        InputError: a file is missing, empty, malformed, or of another length than the audio list.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such manifest directory; make it with manifests/NAME.py")
    split = Split(directory, name, *_read_list(directory / f"{name}.tsv"))
    readers = {
        "speakers": lambda: None if speakers is None else _sidecar(split, speakers),
        "emotions": lambda: _sidecar(split, "emo"),
        "dimensions": lambda: _dimensions(split),
        "meta": lambda: _table_sidecar(split, "meta.tsv"),
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
    root, number, paths, lengths, counts = None, 1, bytearray(), [], []
    with reading_text(tsv, _REMEDY):
        for lines in KeptFile(tsv).lines():
            if root is None:
                root = lines.pop(0).decode()
                if lines and (not root.strip() or "\t" in root):
                    raise InputError(f"{tsv}:1: “{root[:80]}” is not a folder; the first line must be the root folder of the paths")
            fields = [line.partition(b"\t") for line in lines]
            paths += b"".join([path for path, _, _ in fields])
            lengths.append(np.fromiter((len(path) for path, _, _ in fields), dtype=np.uint32, count=len(fields)))
            found = [_count(path, count) for path, _, count in fields]
            if None in found:
                bad = found.index(None)
                line = lines[bad].decode()[:80]
                raise InputError(
                    f"{tsv}:{number + 1 + bad}: “{line}” is not path<TAB>n_samples; correct the line or make the manifest again"
                )
            counts.append(np.array(found, dtype=np.int64))
            number += len(lines)
    if number < 2:
        raise InputError(f"{tsv}: lists no audio; expected a root folder and then lines of path<TAB>n_samples")
    return Path(root), Strings(paths, offsets_of(lengths)), np.concatenate(counts)


def _count(path, count):
    """A number of samples, from bytes; None where it is not one, or has no path."""
    text = count.decode()
    return int(text) if path and text.isdecimal() and len(text) <= 15 else None


def splits_of(directory):
    """Names of the splits in a manifest directory, sorted with train, valid and test first."""
    first = {"train": 0, "valid": 1, "test": 2}
    names = [p.name[: -len(".tsv")] for p in Path(directory).glob("*.tsv") if not p.name.endswith(".meta.tsv")]
    return sorted(names, key=lambda n: (first.get(n, 3), n))


def manifest_directories(directory):
    """`directory` itself if it holds splits, and its `fold*` folders that do, in order.

    Raises:
        InputError: there is no split anywhere.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such manifest directory; make it with manifests/NAME.py")
    found = [d for d in [directory, *sorted(directory.glob("fold*"), key=_natural)] if d.is_dir() and splits_of(d)]
    if not found:
        raise InputError(f"{directory}: holds no {{split}}.tsv, nor does any fold*/ in it; make it with manifests/NAME.py")
    return found


def read_dictionary(path):
    """Symbols of a fairseq dictionary file, in order; see `read_counts`."""
    return list(read_counts(path))


def read_counts(path):
    """Symbols of a fairseq dictionary file (`symbol count` lines), in order, with their counts: {symbol: int}.

    Raises:
        InputError: missing, empty, malformed, or a symbol listed twice.
    """
    found = {}
    for number, line in enumerate(read_lines(path), 1):
        symbol, _, count = line.rpartition(" ")
        if not symbol or not count.isdecimal():
            raise InputError(f"{path}:{number}: “{line[:80]}” is not `symbol count`; make the dictionary again")
        if symbol in found:
            raise InputError(f"{path}:{number}: the symbol “{symbol}” is listed twice; make the dictionary again")
        found[symbol] = int(count)
    if not found:
        raise InputError(f"{path}: the dictionary is empty; make it again together with the labels")
    return found


def write_dictionary(path, counts, order=None):
    """Write a fairseq dictionary: one `symbol count` line per symbol, in `order` (sorted by default)."""
    order = sorted(counts) if order is None else order
    write_lines(path, [f"{symbol} {counts.get(symbol, 0)}" for symbol in order])


def write_splits(directory, root, splits, training="train", classes=None):
    """Write the splits of one manifest directory and its dictionaries.

    Args:
        directory: made if needed.
        root: absolute folder of the audio.
        splits: name → list of Utterance. All utterances of a split must know the same dimensions and meta columns.
        training: the split that dictionaries are counted on (the only split, where it is alone).
        classes: order of the classes in `dict.emo.txt` (sorted by default).
    """
    directory = make_folder(directory)
    for name, utterances in splits.items():
        if not utterances:
            raise InputError(f"{directory / name}.tsv: the split would be empty; choose other options or look into the corpus folder")
        _write_split(directory, root, name, utterances)
    train = splits[training if training in splits else next(iter(splits))]
    emotions = Counter(u.emotion for u in train if u.emotion != NO_EMOTION)
    if emotions:
        write_dictionary(directory / "dict.emo.txt", emotions, [c for c in classes if c in emotions] if classes else None)
    speakers = Counter(u.speaker for u in train if u.speaker != UNKNOWN_SPEAKER)
    if speakers:
        write_dictionary(directory / "dict.spk.txt", speakers)


def write_unlabelled(directory, out, parts):
    """Write a manifest directory of some splits' audio, speakers and sessions, without anything that says a label.

    Args:
        directory: manifest directory.
        out: folder to write.
        parts: new split → names of the splits it is made of; a new split of none is not written.

    Returns:
        new split → utterances.

    Raises:
        InputError: a split is missing, or an utterance would be in the new directory twice.
    """
    new, seen = {}, {}
    for name, sources in parts.items():
        for source in sources:
            split = read_split(directory, source)
            for i, (path, name_of) in enumerate(zip(split.paths, split.ids, strict=True)):
                if path in seen:
                    raise InputError(f"{split.where(i)}: {path} is in {seen[path]} too; give each utterance to one split")
                seen[path] = split.tsv
                speaker = split.speakers[i] if split.speakers else UNKNOWN_SPEAKER
                meta = {"id": name_of} | ({"session": split.meta["session"][i]} if split.meta and "session" in split.meta else {})
                new.setdefault(name, []).append(Utterance(path, int(split.n_samples[i]), speaker, NO_EMOTION, {}, meta))
    write_splits(out, split.root, new)
    return {name: len(utterances) for name, utterances in new.items()}


def relocate(split, out, root, paths):
    """Write a split anew whose audio is elsewhere, with all its sidecars as they are, and the utterances' ids.

    Args:
        split: a Split with `meta`.
        out: folder to write.
        root: folder of the audio there.
        paths: the new paths, in the order of the split.
    """
    out, meta = make_folder(out), f"{split.name}.meta.tsv"
    for old in sorted(split.directory.glob(f"{glob.escape(split.name)}.*")):
        if old.name not in (split.tsv.name, meta) and not old.name.endswith(".tsv") and old.is_file():
            copy(old, out / old.name)
    if split.meta and "id" in split.meta:
        copy(split.directory / meta, out / meta)
    else:
        columns = split.meta or {}
        _write_table(out / meta, ["id", *columns], zip(split.ids, *columns.values(), strict=True))
    write_lines(out / split.tsv.name, chain([root], (f"{path}\t{n}" for path, n in zip(paths, split.n_samples, strict=True))))


def relocate_others(directory, out, **changes):
    """Copy the dictionaries of a manifest directory, and `corpus.json` with some changes."""
    out = make_folder(out)
    for old in sorted(Path(directory).glob("dict.*.txt")):
        copy(old, out / old.name)
    if (Path(directory) / "corpus.json").is_file():
        write_json(out / "corpus.json", read_json(Path(directory) / "corpus.json") | changes)


def origin(split):
    """(audio list, root) of a split: those that it was staged from, if it was (see `staging`), otherwise its own."""
    path = split.directory / STAGED
    if not path.is_file():
        return split.tsv, split.root
    staged = read_json(path)
    return Path(staged["manifest"]) / split.tsv.name, Path(staged["roots"][split.name])


def write_corpus(directory, corpus, root, folds, everything=None, options=None, scales=None, classes=None, left_out=None):
    """Write a whole corpus: one manifest directory, or one per fold, and `corpus.json`.

    Args:
        directory: output folder.
        corpus: name of the corpus.
        root: folder of the audio.
        folds: name → {split → list of Utterance}; the name "" is the output folder itself.
        everything: the utterances of `all.*`, if it is wanted.
        options: the options the manifests were made with.
        scales: dimension → {"min": …, "max": …, …}: what the values mean.
        classes: order of the classes.
        left_out: reason → list of paths that are not in the manifests.
    """
    directory = make_folder(directory)
    (directory / "corpus.json").unlink(missing_ok=True)
    root = Path(root).resolve()
    for name, splits in folds.items():
        write_splits(directory / name if name else directory, root, splits, classes=classes)
    if everything is not None:
        if "" in folds:
            _write_split(directory, root, "all", everything)
        else:
            write_splits(directory, root, {"all": everything}, training="all", classes=classes)
    listed = everything or [u for splits in folds.values() for us in splits.values() for u in us]
    source = sorted({f"{u.path}\t{u.n_samples}" for u in listed})
    write_json(
        directory / "corpus.json",
        {
            "corpus": corpus,
            "options": options or {},
            "root": str(root),
            "utterances": len(source),
            "hours": round(sum(u.n_samples for u in {u.path: u for u in listed}.values()) / 16_000 / 3600, 4),
            "speakers": len({u.speaker for u in listed}),
            "classes": dict(sorted(Counter(u.emotion for u in {u.path: u for u in listed}.values()).items())),
            "counts": {name or ".": {split: len(us) for split, us in splits.items()} for name, splits in folds.items()},
            "label_scales": scales or {},
            "left_out": {reason: sorted(paths) for reason, paths in (left_out or {}).items()},
            "source_sha256": hashlib.sha256("\n".join(source).encode()).hexdigest(),
        },
    )


def read_corpus(directory):
    """`corpus.json` of a manifest directory or of its parent; {} without one."""
    for folder in (Path(directory), Path(directory).parent):
        if (folder / "corpus.json").is_file():
            return read_json(folder / "corpus.json")
    return {}


def _write_split(directory, root, name, utterances):
    for u in utterances:
        if any(_UNWRITABLE.search(field) for field in (u.path, u.speaker, u.emotion)):
            raise InputError(
                f"{root}/{u.path}: the path, the speaker “{u.speaker}” or the class “{u.emotion}” is empty, or holds a tab, a line break or "
                "something that is not UTF-8; rename it"
            )
    write_lines(directory / f"{name}.tsv", [root, *(f"{u.path}\t{u.n_samples}" for u in utterances)])
    write_lines(directory / f"{name}.spk", [u.speaker for u in utterances])
    if any(u.emotion != NO_EMOTION for u in utterances):
        write_lines(directory / f"{name}.emo", [u.emotion for u in utterances])
    else:
        (directory / f"{name}.emo").unlink(missing_ok=True)
    names = list(utterances[0].dimensions)
    if names:
        _write_table(directory / f"{name}.dim", names, [[f"{u.dimensions.get(n, float('nan')):.6g}" for n in names] for u in utterances])
    else:
        (directory / f"{name}.dim").unlink(missing_ok=True)
    columns = [column for column in utterances[0].meta if column != "id"]
    _write_table(directory / f"{name}.meta.tsv", ["id", *columns], [[u.id, *(str(u.meta.get(c, "")) for c in columns)] for u in utterances])


def _write_table(path, names, rows):
    with atomic(path) as f:
        f.write("\t".join(names) + "\n")
        f.writelines("\t".join(re.sub(r"[\t\r\n]+", " ", str(cell)) for cell in row) + "\n" for row in rows)


def _check_length(split, path, n):
    if n != len(split):
        raise InputError(f"{path}: {n} lines for the {len(split)} utterances of {split.tsv}; make the manifest again")


def _sidecar(split, suffix):
    path = split.directory / f"{split.name}.{suffix}"
    if not path.is_file():
        return None
    column = read_column(path)
    _check_length(split, path, len(column))
    distinct = column.symbols if isinstance(column, Codes) else column
    if not all(map(str.strip, distinct)):
        number = next(number for number, line in enumerate(column, 1) if not line.strip())
        raise InputError(f"{path}:{number}: empty line; every utterance needs a value")
    return column


def _table_sidecar(split, suffix):
    path = split.directory / f"{split.name}.{suffix}"
    if not path.is_file():
        return None
    with reading_text(path, _REMEDY):
        table = Table(path)
    _check_length(split, path, table.rows)
    return table


def _dimensions(split):
    table = _table_sidecar(split, "dim")
    if table is None:
        return None
    values, done = np.empty((len(table), table.rows)), 0
    try:
        for lines in table.lines():
            cells = list(map(float, b"\t".join(lines).decode().split("\t"))) if lines else []
            values[:, done : done + len(lines)] = np.reshape(cells, (len(lines), len(table))).T
            done += len(lines)
        finite = not np.isinf(values).any()
    except ValueError:
        finite = False
    if not finite:
        name, bad, text = next((n, i, text) for n in table for i, text in enumerate(table.read(n)) if not _is_number(text))
        raise InputError(f"{split.where(bad, 'dim')}: {name} is “{text}”, not a number; correct it (nan: no value)")
    return dict(zip(table, values, strict=True))


def _is_number(text):
    try:
        return not math.isinf(float(text))
    except ValueError:
        return False


def _natural(path):
    digits = "".join(c for c in path.name if c.isdigit())
    return (int(digits) if digits else 0, path.name)
