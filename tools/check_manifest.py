#!/usr/bin/env python3
"""Check manifest directories: audio, lengths, sidecars, dictionaries, frame labels, and leaks.

Every file is decoded once. A leak is a speaker, a session (column of .meta.tsv) or audio, under whatever name, that a
training split shares with a validation or test split, or audio that a validation split shares with a test split. Several
folders are checked together: nothing that one trains on may be tested in another. The folds of one folder are separate
protocols, each checked by itself. Exit status 2 on an error, or on a leak not allowed by name.
"""

import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import Parser, command, print_problems
from emohubert.core.files import write_json
from emohubert.corpus import check


def leaks(text):
    """The argument of --allow."""
    for item in text.split(","):
        kind, colon, split = item.partition(":")
        if kind not in check.LEAKS or (colon and not check.role(split)):
            raise ArgumentTypeError(f"“{item}” is not one of {', '.join(check.LEAKS)}, alone or with a split such as speaker:valid")
    return text.split(",")


def print_table(report):
    """Counts of every split."""
    rows = [("", "utterances", "hours", "speakers", "classes")]
    for member in report.members:
        for name, split in member.splits.items():
            counts = check.summary(split)
            classes = ", ".join(f"{c} {n}" for c, n in counts["classes"].items()) or "-"
            speakers = "-" if counts["speakers"] is None else str(counts["speakers"])
            rows.append((f"{member.directory / name}", str(counts["utterances"]), f"{counts['hours']:.2f}", speakers, classes))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print(row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:4], widths[1:], strict=True)), row[4], sep="  ")


@command
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="manifest directory, or corpus folder with fold*/")
    parser.add_argument("--labels", nargs="+", type=Path, default=[], metavar="LABEL_DIR", help="frame labels of the first DIR")
    parser.add_argument(
        "--allow",
        action="extend",
        type=leaks,
        default=[],
        metavar="KIND[:SPLIT]",
        help="a leak that is intended: speaker, session or audio, everywhere or into one split, such as speaker:test_seen; "
        "repeat the option or separate by commas for several",
    )
    parser.add_argument(
        "--headers-only", action="store_true", help="do not decode: faster, but damage inside a file and audio under two names go unnoticed"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found to FILE")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that read audio")
    args = parser.parse_args(argv)
    report = check.check(args.directories, args.labels, args.allow, not args.headers_only, args.workers)
    if args.json:
        write_json(args.json, report.as_json())
    print_problems(report, "--json FILE keeps all")
    print_table(report)
    print("no errors, no leaks" if not report.leaks else "no errors, no leaks but those allowed")


if __name__ == "__main__":
    main()
