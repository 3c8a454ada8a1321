#!/usr/bin/env python3
"""Manifests of any corpus that has a table (CSV or TSV, first line the column names).

Columns: path (relative to AUDIO_DIR), speaker, split, and emotion and/or dimensions such as arousal; votes_CLASS: how many
annotators, or what share of them, heard that class (.votes; without a column emotion, the class is the one of most votes,
none where two tie); every other column goes to .meta.tsv. The delimiter (tab, comma, semicolon, |) is detected. Names of
splits are written in lower case; training, dev, devel, development, val, validation and testing (with or without “set”)
become train, valid and test. An empty emotion or dimension means that there is no label, an empty number of votes that there
are none.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path, PureWindowsPath

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import command
from emohubert.core.errors import InputError
from emohubert.corpus import build
from emohubert.corpus.manifest import NO_EMOTION, Utterance, as_number
from emohubert.corpus.protocols import protocol_splits
from emohubert.corpus.tables import read_delimited

SPLITS = {"training": "train", "testing": "test"} | dict.fromkeys(("dev", "devel", "development", "val", "validation"), "valid")
VOTES = "votes_"
USUAL = ("arousal", "valence", "dominance")


def find_table(args):
    """The table and the folder its paths are relative to."""
    if args.table:
        return args.table, args.audio_dir
    if args.audio_dir.is_file():
        return args.audio_dir, args.audio_dir.resolve().parent
    if not args.audio_dir.is_dir():
        raise InputError(f"{args.audio_dir}: no such folder; give the folder of the audio")
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
    columns = [names.get(name, "original_id" if name == "id" else name) for name in own]
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
        names[theirs] = ours
    return names


def split_name(text):
    """Our name of a split: in small letters, without “set”, and train, valid or test for the usual words."""
    name = re.sub(r"[ _-]?set$", "", text.lower())
    return SPLITS.get(name, name)


def utterance(row, where, dimensions, scale, root):
    """One row as an Utterance without length."""
    for needed in ("path", "speaker"):
        if not row[needed]:
            raise InputError(f"{where}: no {needed}; fill it in or remove the line")
    path = PureWindowsPath(row["path"]).as_posix() if "\\" in row["path"] else row["path"]
    if Path(path).is_absolute():
        if not Path(path).is_relative_to(root.resolve()):
            raise InputError(f"{where}: {path} is not below {root}; give a common folder as AUDIO_DIR")
        path = Path(path).relative_to(root.resolve()).as_posix()
    values = {}
    for name in dimensions:
        try:
            values[name] = float(row[name]) if row[name] else float("nan")
        except ValueError:
            raise InputError(f"{where}: {name} is “{row[name]}”, not a number; correct it, or leave it empty") from None
        if scale:
            if values[name] < scale[0] or values[name] > scale[1]:
                raise InputError(f"{where}: {name} {row[name]} is outside --scale {scale[0]:g} {scale[1]:g}; correct one of them")
            values[name] = build.to_unit(values[name], *scale)
    votes = {}
    for column in (c for c in row if c.startswith(VOTES)):
        votes[column[len(VOTES) :]] = number = as_number(row[column] or 0)
        if not 0 <= number < float("inf"):
            raise InputError(f"{where}: {column} is “{row[column]}”, not a number of votes; correct it, or leave it empty")
    most = [name for name, number in votes.items() if number == max(votes.values()) > 0]
    emotion = row.get("emotion") or (most[0] if "emotion" not in row and len(most) == 1 else NO_EMOTION)
    known = {"path", "speaker", "split", "emotion", *dimensions}
    meta = {column: text for column, text in row.items() if column not in known and not column.startswith(VOTES)}
    return Utterance(Path(path).as_posix(), 0, row["speaker"], emotion, values, meta, votes)


def read_entries(args, table, rows, dimensions, left_out):
    """(list of Utterance without length, id → split) of the rows; a second line of an utterance must say the same."""
    entries, split_of, line_of = [], {}, {}
    for number, row in rows:
        entry = utterance(row, f"{table}:{number}", dimensions, args.scale, args.audio_dir)
        split = split_name(row.get("split", ""))
        if args.protocol == "table" and (not split or not all(c.isalnum() or c in "_-" for c in split)):
            raise InputError(f"{table}:{number}: “{row['split']}” is not the name of a split; use train, valid or test")
        first, other = line_of.setdefault(entry.id, (number, row))
        if other != row:
            raise InputError(f"{table}:{number}: {entry.path} is in line {first} already, with other values; remove one of the lines")
        if first != number:
            left_out["listed twice"].append(entry.path)
            continue
        split_of[entry.id] = split
        entries.append(entry)
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
    if args.scale and not args.scale[0] < args.scale[1]:
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
