#!/usr/bin/env python3
"""Label a feature shard with centroids.

    LAB_DIR/{split}_{R}_{N}.km    a line of labels for each recording of the shard
            dict.km.txt           the labels
            frames.km.json        the samples between two labels, where the features or the centroids say it

KM_PATH is a kmeans.npz, or a scikit-learn joblib file such as HuBERT's official one, which is read without running anything
in it. Centroids are refused for features of another checkpoint, layer or kind than they were fitted on.

  tools/dump_labels.py features/L9 train labels/L9/km50/kmeans.npz 4 0 labels/L9/km50
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("feat_dir", metavar="FEAT_DIR", help="folder of the shards of one kind of features, such as features/L9")
    parser.add_argument("split", metavar="SPLIT", help="split, such as train")
    parser.add_argument("km_path", metavar="KM_PATH", help="the centroids")
    parser.add_argument("nshard", metavar="N", type=cli.positive_int, help="number of shards")
    parser.add_argument("rank", metavar="R", type=int, help="which shard, from 0")
    parser.add_argument("lab_dir", metavar="LAB_DIR", help="folder of the labels")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    from emohubert.pseudo_labels.label_in_shards import dump_labels

    print(dump_labels(args.feat_dir, args.split, args.km_path, args.nshard, args.rank, args.lab_dir, args.overwrite))


if __name__ == "__main__":
    main()
