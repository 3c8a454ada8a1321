#!/usr/bin/env python3
"""Manifests of any corpus that has a table (CSV or TSV, first line the column names).

Columns: path (below AUDIO_DIR), speaker, split, and emotion and/or dimensions such as arousal; start and end, in seconds, if
an utterance is a part of its file; votes_CLASS: how many annotators, or what share of them, heard that class (.votes; without
a column emotion, the class is the one of most votes, none where two tie); every other column goes to .meta.tsv. The delimiter
(tab, comma, semicolon, |) is detected. Names of splits are written in lower case; other words for train, valid and test, such
as Training, dev or evaluation (with or without “set”), become these, any other name stays. An empty emotion or dimension means
that there is no label, an empty number of votes that there are none. Parts are written as files, to OUT_DIR/audio if there is
no --resample.
"""

import logging
import re
import sys
import unicodedata
from collections import defaultdict
from dataclasses import replace
from math import isfinite, isnan
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import command
from emohubert.core.errors import InputError
from emohubert.corpus import build
from emohubert.corpus.audio import SAMPLE_RATE
from emohubert.corpus.manifest import NO_EMOTION, Utterance, as_number
from emohubert.corpus.protocols import protocol_splits
from emohubert.corpus.tables import Paths, read_delimited

logger = logging.getLogger("emohubert")

WORDS = {
    "train": ("train", "training", "trn", "tr"),
    "valid": ("valid", "validation", "val", "dev", "devel", "development", "cv"),
    "test": ("test", "testing", "tst", "te", "eval", "evaluation"),
}
SPLITS = {word: split for split, words in WORDS.items() for word in words}
NO_SPLIT = ("nan", "na", "none", "null", "unknown", "true", "false", "yes", "no")  # what is no name of a split; nor are numbers
VOTES = "votes_"
USUAL = ("arousal", "valence", "dominance")
OURS = ("path", "speaker", "split", "emotion", "start", "end", *USUAL)


def find_table(args):
    """The table and the folder its paths are relative to."""
    if args.audio_dir.is_file() and not args.table:
        return args.audio_dir, args.audio_dir.resolve().parent
    if not args.audio_dir.is_dir():
        raise InputError(f"{args.audio_dir}: no such folder; give the folder of the audio")
    if args.table:
        return args.table, args.audio_dir
    found = sorted(p for ending in ("csv", "tsv") for p in args.audio_dir.glob(f"*.{ending}") if not p.name.startswith("."))
    if len(found) != 1:
        raise InputError(f"{args.audio_dir}: holds {len(found)} CSV or TSV files; name the table with --table FILE")
    return found[0], args.audio_dir


def read_rows(table, names):
    """Header and rows (line number, {column: text}) of the table; `names` maps its columns to ours."""
    own, rows = read_delimited(table)
    for theirs in names:
        if theirs not in own:
            raise InputError(f"{table}:1: has no column “{theirs}” (it has {', '.join(own)}); correct --columns")
    taken = {*own, *names.values()}
    ours = {name: name.lower() for name in own if name.lower() in OURS and name.lower() not in taken} | {"id": "original_id"} | names
    columns = [ours.get(name, name) for name in own]
    if len(set(columns)) != len(columns):
        twice = next(c for c in columns if columns.count(c) > 1)
        raise InputError(f"{table}:1: the column “{twice}” is there twice; rename one")
    return columns, [(number, dict(zip(columns, row.values(), strict=True))) for number, row in rows]


def mapping(pairs):
    """{their column: our column} from OURS=THEIRS words."""
    names = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise InputError(f"--columns {pair}: write OURS=THEIRS, such as path=filename")
        if theirs in names:
            raise InputError(f"--columns {pair}: {theirs} is {names[theirs]} already; a column has one name")
        names[theirs] = ours
    return names


def split_name(text, where):
    """Our name of a split: in small letters, without “set”, and train, valid or test for the usual words."""
    name = re.sub(r"[ _-]?set$", "", text.lower())
    if not re.fullmatch(r"\w[\w-]*", name) or name in NO_SPLIT or name.replace("_", "").isdecimal():
        raise InputError(f"{where}: “{text}” is not the name of a split; use train, valid or test")
    return SPLITS.get(name, name)


def number(row, name, where):
    """A cell as a float, NaN if it is empty."""
    value = as_number(row[name]) if row[name] else float("nan")
    if row[name] and not isfinite(value):
        raise InputError(f"{where}: {name} is “{row[name]}”, not a number; correct it, or leave it empty")
    return value


def part(path, row, where):
    """(path, cut) of an utterance that is a part of its file; (path, None) of one that is all of it."""
    start, end = (number(row, name, where) if name in row else float("nan") for name in ("start", "end"))
    if isnan(end) and (isnan(start) or start == 0):
        return path, None
    start = 0 if isnan(start) else round(start * SAMPLE_RATE)
    stop = None if isnan(end) else round(end * SAMPLE_RATE)
    if start < 0 or stop is not None and stop <= start:
        raise InputError(
            f"{where}: no part from {row.get('start') or 0} to {row.get('end') or 'the end'}; start must be 0 or more, and end after it"
        )
    name = Path(path)
    return name.with_name(f"{name.stem}_{start}_{'end' if stop is None else stop}{name.suffix}").as_posix(), (path, start, stop, where)


def utterance(row, where, dimensions, scale, paths):
    """One row as an Utterance without length."""
    for needed in ("path", "speaker"):
        if not row[needed]:
            raise InputError(f"{where}: no {needed}; fill it in or remove the line")
    path = paths.relative(row["path"])
    if path is None:
        raise InputError(f"{where}: {row['path']} is not below {paths.folder}; give a common folder as AUDIO_DIR")
    values = {name: number(row, name, where) for name in dimensions}
    for name in dimensions if scale else ():
        if values[name] < scale[0] or values[name] > scale[1]:
            raise InputError(f"{where}: {name} {row[name]} is outside --scale {scale[0]:g} {scale[1]:g}; correct one of them")
        values[name] = build.to_unit(values[name], *scale)
    heard = [column for column in row if column.startswith(VOTES)]
    votes = {column.removeprefix(VOTES): number_of_votes(row, column, where) for column in heard}
    meta = {column: text for column, text in row.items() if column not in ("path", "speaker", "split", "emotion", *dimensions, *heard)}
    path, cut = part(path, row, where)
    speaker, emotion = (unicodedata.normalize("NFC", text) for text in (row["speaker"], row.get("emotion", "")))
    most = [name for name, n in votes.items() if n == max(votes.values()) > 0]
    if "emotion" not in row and len(most) == 1:
        emotion = most[0]
    return Utterance(path, 0, speaker, emotion or NO_EMOTION, values, meta, votes, cut)


def number_of_votes(row, column, where):
    """A cell of votes, 0 where it is empty; InputError if it is negative, infinite or no number."""
    value = as_number(row[column] or 0)
    if not 0 <= value < float("inf"):
        raise InputError(f"{where}: {column} is “{row[column]}”, not a number of votes; correct it, or leave it empty")
    return value


def read_entries(args, table, rows, dimensions, left_out):
    """(list of Utterance without length, id → split) of the rows; a second line of an utterance must say the same."""
    entries, split_of, first, called, paths = [], {}, {}, defaultdict(dict), Paths(args.audio_dir)
    for line, row in rows:
        where = f"{table}:{line}"
        entry = utterance(row, where, dimensions, args.scale, paths)
        split = split_name(row["split"], where) if args.protocol == "table" else ""
        known_line, known, known_split = first.setdefault(entry.id, (line, entry, split))
        if known.path != entry.path:
            what = f"{entry.path} and {known.path} (line {known_line}) are called the same but for the ending"
            raise InputError(f"{where}: {what}; rename one, or remove its line")
        if known_split != split or repr(replace(known, cut=None)) != repr(replace(entry, cut=None)):
            raise InputError(f"{where}: {row['path']} is in line {known_line} already, with other values; remove one of the lines")
        if known_line != line:
            left_out["listed twice"].append(entry.path)
            continue
        called[split][row.get("split")] = None
        split_of[entry.id] = split
        entries.append(entry)
    for split, words in called.items():
        if set(words) != {split} and split:
            logger.info("%s: the split %s is called %s there", table, split, ", ".join(words))
    if args.protocol == "table" and "train" not in called:
        logger.warning("%s: no split is train (it has %s): made for evaluation, not for training", table, ", ".join(called))
    return entries, split_of


@command
def main(argv=None):
    parser = build.parser(
        __doc__,
        ("table", "speaker-independent", "seen", "both"),
        audio_help="folder of the audio, or the table itself when it lies there",
        own_protocols={"table": "the splits of the table"},
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="the table (default: the only CSV or TSV file in AUDIO_DIR)")
    columns_help = "names of the columns in the table, such as path=filename emotion=label"
    parser.add_argument("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help=columns_help)
    dimensions_help = f"columns with numbers (default: those of {', '.join(USUAL)} that are there)"
    parser.add_argument("--dimensions", nargs="+", metavar="NAME", help=dimensions_help)
    parser.add_argument("--scale", type=float, nargs=2, metavar=("MIN", "MAX"), help="scale of the dimensions; MIN..MAX becomes 0..1")
    args = parser.parse_args(argv)
    if args.scale and not (args.scale[0] < args.scale[1] and all(map(isfinite, args.scale))):
        raise InputError(f"--scale {args.scale[0]:g} {args.scale[1]:g}: MIN must be below MAX")
    table, args.audio_dir = find_table(args)
    columns, rows = read_rows(table, mapping(args.columns))
    dimensions = args.dimensions or [name for name in USUAL if name in columns]
    needed = ["path", "speaker", *(["split"] if args.protocol == "table" else []), *dimensions]
    for name in needed:
        if name not in columns:
            remedy = ", or choose another --protocol" if name == "split" else ""
            raise InputError(
                f"{table}:1: has no column “{name}” (it has {', '.join(columns)}); name it with --columns {name}=THEIRS{remedy}"
            )
    if not dimensions and "emotion" not in columns and not any(name.startswith(VOTES) for name in columns):
        raise InputError(
            f"{table}:1: has neither a column “emotion” nor dimensions (it has {', '.join(columns)}); use --columns or --dimensions"
        )
    left_out = build.LeftOut()
    entries, split_of = read_entries(args, table, rows, dimensions, left_out)
    if any(u.cut for u in entries) and not args.resample:
        args.resample = args.out_dir / "audio"
        logger.info("parts of files, by start and end, are written to %s", args.resample)

    def splits(measured):
        if args.protocol != "table":
            return protocol_splits(measured, args.protocol, args.seed)
        result = defaultdict(list)
        for u in measured:
            result[split_of[u.id]].append(u)
        return {"": dict(result)}

    scales = {name: build.unit_scale(*args.scale) if args.scale else {} for name in dimensions}
    build.write(args, "table", entries, splits, scales=scales, left_out=left_out, source=split_of)


if __name__ == "__main__":
    main()
