#!/usr/bin/env python3
"""Fit k-means on feature shards, ours or fairseq's, and write the centroids.

KM_PATH becomes a kmeans.npz: centroids, sizes of the clusters, inertia, and what the features were. With --joblib there is
also a scikit-learn file that fairseq's dump_km_label.py reads.

  tools/learn_kmeans.py features/L9 train 4 labels/L9/km50/kmeans.npz --clusters 50
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.pseudo_labels import options


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("feat_dir", metavar="FEAT_DIR", help="folder of the shards of one kind of features, such as features/L9")
    parser.add_argument("split", metavar="SPLIT", help="split to fit on, such as train")
    parser.add_argument("nshard", metavar="N", type=cli.positive_int, help="number of shards; all must be there")
    parser.add_argument("km_path", metavar="KM_PATH", help="the centroids, a .npz file")
    parser.add_argument("--clusters", type=cli.positive_int, required=True, metavar="K", help="number of clusters")
    parser.add_argument("--joblib", metavar="PATH", help="write a scikit-learn joblib file too")
    options.add_max_memory(parser)
    parser.add_seed()
    parser.add_overwrite()
    args = parser.parse_args(argv)
    from emohubert.pseudo_labels.label_in_shards import learn_kmeans

    model = learn_kmeans(
        args.feat_dir,
        args.split,
        args.nshard,
        args.km_path,
        args.clusters,
        seed=args.seed,
        max_memory=args.max_memory,
        joblib=args.joblib,
        overwrite=args.overwrite,
    )
    print(f"{args.km_path}: {len(model)} clusters, inertia {model.fit['inertia']:.5f} a frame, {model.fit['iterations']} iterations")


if __name__ == "__main__":
    main()
