#!/usr/bin/env python3
"""One table of what tools/adapt_speaker.py --holdout found for several models or folds.

Bits per masked frame of the held-out utterances of each new speaker: with the unknown speaker's embedding, with the average of the
most similar training speakers' and with one adapted to the other utterances. Printed, and written as PREFIX.md and PREFIX.json.

  tools/adaptation_table.py exp/fold*/adapted.json --out exp/adaptation
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.errors import InputError
from emohubert.core.files import make_folder, read_json, write_json, write_lines


def table(paths):
    """(lines of a Markdown table, {"speakers": {id: bits}, "summary"}) of reports of tools/adapt_speaker.py."""
    speakers = {}
    for path in paths:
        found = read_json(path).get("speakers")
        if not isinstance(found, dict) or not any("held_out" in r for r in found.values()):
            raise InputError(f"{path}: no report of tools/adapt_speaker.py with held-out utterances; make it with --holdout")
        if twice := set(found) & set(speakers):
            raise InputError(f"{path}: the speaker “{min(twice)}” is in another report too; give each speaker once")
        speakers |= {name: r for name, r in found.items() if "held_out" in r}
    bits = {name: r["held_out"]["bits"] for name, r in speakers.items()}
    methods = list(next(iter(bits.values())))
    means = {m: sum(b[m] for b in bits.values()) / len(bits) for m in methods}
    below = {m: sum(b["adapted"] < b[m] for b in bits.values()) for m in methods if m != "adapted"}
    lines = ["| speaker | seconds used | " + " | ".join(methods) + " |", "| --- " * (len(methods) + 2) + "|"]
    lines += [
        f"| {name} | {speakers[name]['seconds']:.0f} | " + " | ".join(f"{b[m]:.3f}" for m in methods) + " |" for name, b in bits.items()
    ]
    lines += [f"| mean of {len(bits)} | | " + " | ".join(f"{v:.3f}" for v in means.values()) + " |", ""]
    lines.append("adapted: " + ", ".join(f"below {name} for {n} of {len(bits)} speakers" for name, n in below.items()))
    return lines, {"speakers": bits, "summary": {"speakers": len(bits), "bits": means, "below": below}}


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("reports", metavar="REPORT", nargs="+", type=Path, help="OUT.json of tools/adapt_speaker.py")
    parser.add_argument("--out", required=True, metavar="PREFIX", type=Path, help="output files without their endings")
    args = parser.parse_args(argv)
    lines, values = table(args.reports)
    make_folder(args.out.parent)
    write_json(args.out.with_suffix(".json"), values)
    write_lines(args.out.with_suffix(".md"), lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
