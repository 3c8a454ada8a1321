#!/usr/bin/env python3
"""Frame-level pseudo-labels of a manifest directory: k-means clusters of MFCCs or of an encoder's layers.

All layers and all numbers of clusters come from one pass over the audio; no features are written. Centroids are fitted
on the fitting split only (on as many of its recordings as --max-memory allows) and label every split:

    OUT_DIR/{mfcc|prosody|prosody_absolute|L9}/km50/{split}.km     a line of labels for each line of the manifest
                                   dict.km.txt    the labels, with their frames in the fit
                                   frames.km.json   the samples between two labels
                                   kmeans.npz     the centroids, what they were fitted on, inertia, sizes of the clusters
                                   kmeans.npz.seen  the recordings that they were fitted on, for tools/audit_run.py

With --pieces N there is also OUT_DIR/L9/km50-pieces{N}/: acoustic pieces, SentencePiece units over the clusters.

  tools/make_labels.py manifests/emodb labels --mfcc --clusters 100
  tools/make_labels.py manifests/emodb labels --checkpoint hubert_base.pt --layers 6 9 11 --clusters 50 100 150
  tools/make_labels.py manifests/emodb labels --checkpoint hubert_base.pt --layers 9 --centroids hubert_base_ls960_L9_km500.bin
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.pseudo_labels import options


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="folder of the labels")
    options.add_features(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--clusters", type=cli.positive_int, nargs="+", metavar="K", help="numbers of clusters: a set of labels for each")
    what.add_argument("--centroids", metavar="FILE", help="apply these centroids (kmeans.npz or scikit-learn joblib file) and fit nothing")
    parser.add_argument("--fit-split", default="train", metavar="SPLIT", help="split that centroids are fitted on")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="splits to label (default: those that exist of train, valid and test)")
    options.add_max_memory(parser)
    parser.add_argument(
        "--pieces",
        type=cli.positive_int,
        nargs="+",
        metavar="N",
        help="numbers of acoustic pieces (SentencePiece over the clusters): a set of labels for each",
    )
    parser.add_seed()
    parser.add_overwrite()
    args = parser.parse_args(argv)
    from emohubert.models.from_pretrained import load_encoder
    from emohubert.pseudo_labels.label_frames import LabelMaker

    LabelMaker(
        args.manifest_dir,
        args.out_dir,
        options.features(args, load_encoder),
        args.clusters or (),
        args.fit_split,
        args.splits,
        seed=args.seed,
        max_memory=args.max_memory,
        centroids=args.centroids,
        pieces=args.pieces or (),
        overwrite=args.overwrite,
    ).run()


if __name__ == "__main__":
    main()
