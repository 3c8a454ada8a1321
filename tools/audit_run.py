#!/usr/bin/env python3
"""Audit a run: did an evaluated speaker, session or utterance reach training, pseudo-labels or the choice of a checkpoint?

For every evaluation below RUN_DIR, the records of what was seen (*.seen, which every program here writes beside what it makes) are
followed back: what the checkpoint was trained on and chosen by, the checkpoint it started from, the labels that was pretrained on,
what their centroids were fitted on, the checkpoint that made those features, and so on. What has no record is named: outside of
RUN_DIR as unknown, such as a checkpoint that was pretrained elsewhere; within it, it is a problem.

Writes RUN_DIR/audit.json. Exit status 2 on a leak or a missing record, unless it is allowed by name:

    transductive           unlabelled audio of the evaluation in pretraining, or in the fit of centroids or acoustic pieces
    adapted                unlabelled audio of the evaluation in the embedding, normalisation or calibration of a new speaker
    unknown                files within RUN_DIR without a record
    KIND[:ROLE|:SPLIT]     speaker, session or audio; everywhere, in one role (train, calibration, pretraining, clustering,
                           adaptation, selection) or in the evaluations of one split, such as speaker:test_seen

Checkpoints chosen by the evaluated recordings are never allowed.

  tools/audit_run.py exp/tapt --allow transductive
"""

import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import Parser, command, print_problems
from emohubert.core.files import write_json
from emohubert.corpus.check import LEAKS
from emohubert.provenance import audit


def allowed(text):
    """The argument of --allow."""
    for item in text.split(","):
        try:
            audit.check_allowed(item)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None
    return text.split(",")


def print_table(report):
    """What every evaluation shares with everything that its model has seen."""
    rows = [("evaluation", "seen in", "utterances", *LEAKS, "record")]
    for e in report.evaluations:
        name = f"{e.name}: {e.split}, {len(e.record.utterances)} utterances" if e.record else e.name
        if e.record and not e.is_test:
            rows.append((name, "not a test: nothing can leak", *[""] * 4, ""))
        for i, met in enumerate(e.met if e.is_test else []):
            shared = [str(len(met.shared.get(kind, []))) for kind in LEAKS]
            where = audit.relative(met.record.path, report.folder)
            rows.append((name if i == 0 else "", met.role, str(len(met.record.utterances)), *shared, where))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    for row in rows:
        cells = (cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row[:6], widths, strict=True)))
        print("  ".join([*cells, row[6]]).rstrip())


@command
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a run, such as --out of a recipe")
    parser.add_argument(
        "--allow", action="extend", type=allowed, default=[], metavar="NAME", help="see above; repeat it or separate by commas for several"
    )
    parser.add_argument("--names-only", action="store_true", help="do not decode: faster, but audio under two names goes unnoticed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found here and not to RUN_DIR/audit.json")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that read audio")
    args = parser.parse_args(argv)
    report = audit.audit(args.run_dir, args.allow, not args.names_only, args.workers)
    write_json(args.json or args.run_dir / "audit.json", report.as_json())
    print_table(report)
    for line in report.unknown:
        print(f"unknown: {line}")
    print_problems(report, "audit.json has all")
    print("no leaks" if not report.leaks else "no leaks but those allowed")


if __name__ == "__main__":
    main()
