#!/usr/bin/env python3
"""Join the label shards LAB_DIR/{split}_{R}_{N}.km, R = 0 … N−1, into LAB_DIR/{split}.km.

A shard that is missing, or that does not have its number of lines, is named. The number of lines is known for shards of
tools/dump_labels.py; for fairseq's give --manifest-dir.

  tools/merge_labels.py labels/L9/km50 train 4
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("lab_dir", metavar="LAB_DIR", help="folder of the label shards")
    parser.add_argument("split", metavar="SPLIT", help="split, such as train")
    parser.add_argument("nshard", metavar="N", type=cli.positive_int, help="number of shards")
    parser.add_argument("--manifest-dir", metavar="DIR", help="check the number of lines against this manifest")
    args = parser.parse_args(argv)
    from emohubert.corpus.manifest import read_split
    from emohubert.pseudo_labels.feature_shards import merge_labels

    utterances = len(read_split(args.manifest_dir, args.split)) if args.manifest_dir else None
    path, lines = merge_labels(args.lab_dir, args.split, args.nshard, utterances)
    print(f"{path}: {lines} lines")


if __name__ == "__main__":
    main()
