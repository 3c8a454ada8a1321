#!/usr/bin/env python3
"""One table from several evaluations, printed and written as PREFIX.md and PREFIX.json.

Rows with the same NAME are one system's folds or seeds: mean ± standard deviation over them is shown. Every row says in which
setting its speakers were met. A DIR may also be an output folder of tools/run_folds.py: it stands for all its runs, and what they
give pooled over folds is another row.

  tools/results.py "V-FT=results/fold1" "V-FT=results/fold2" "PAPT=results/papt1" "PAPT=results/papt2" --out results/table
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.errors import InputError
from emohubert.evaluation.results import OVER_SPEAKERS, add_losses, of_folds, paired, read_published, read_results, write_results


def pairs(texts):
    """[(name, folder)] of NAME=DIR."""
    found = [text.partition("=")[::2] for text in texts]
    for text, pair in zip(texts, found, strict=True):
        if not all(pair):
            raise InputError(f"{text}: not NAME=DIR; give a name, an equals sign and a folder")
    return found


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("rows", metavar="NAME=DIR", nargs="+", help="the system's name, and a folder with a metrics.json")
    parser.add_argument("--out", required=True, metavar="PREFIX", help="output files without their endings")
    parser.add_argument("--title", default="Results", help="heading of the table; name the protocol in it")
    parser.add_argument("--paper", metavar="FILE", help="TSV with published numbers to stand beside ours: system, scores, source")
    parser.add_argument(
        "--pretraining",
        metavar="NAME=DIR",
        action="append",
        default=[],
        help="folder of the system's pretraining: show its validation loss",
    )
    parser.add_argument("--paired", metavar="NAME", help="show the other systems' differences from this one, speaker by speaker")
    args = parser.parse_args(argv)
    rows, pretrained = pairs(args.rows), pairs(args.pretraining)
    published = read_published(args.paper)
    over_speakers = any(column.endswith(OVER_SPEAKERS) for row in published.values() for column in row)
    folders = of_folds(rows)
    systems = add_losses(read_results(folders, over_speakers=over_speakers), pretrained)
    more = paired(folders, args.paired) if args.paired else []
    print("\n".join(write_results(args.out, systems, args.title, published=published, more=more)))


if __name__ == "__main__":
    main()
