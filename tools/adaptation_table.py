#!/usr/bin/env python3
"""One table of what tools/adapt_speaker.py --holdout found for several models or folds.

Bits per masked frame of the held-out utterances of each new speaker: heard as the unknown speaker, as an average of the nearest
training speakers, and with an embedding adapted to the other utterances. Printed, and written as PREFIX.md and PREFIX.json.

  tools/adaptation_table.py exp/fold*/adapted.json --out exp/adaptation
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.files import make_folder, write_json, write_lines
from emohubert.speakers import adaptation


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("reports", metavar="REPORT", nargs="+", type=Path, help="OUT.json of tools/adapt_speaker.py")
    parser.add_argument("--out", required=True, metavar="PREFIX", type=Path, help="output files without their endings")
    args = parser.parse_args(argv)
    lines, values = adaptation.held_out_table(args.reports)
    make_folder(args.out.parent)
    write_json(args.out.with_suffix(".json"), values)
    write_lines(args.out.with_suffix(".md"), lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
