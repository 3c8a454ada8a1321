#!/usr/bin/env python3
"""Write frame features of a shard of a manifest split: the first of the four stages for large corpora.

    FEAT_DIR/{mfcc|L9}/{split}_{R}_{N}.npy    frames × width, float32, recording after recording
                                     .len    frames of each recording
                                     .json   what the features are

The .npy and .len files are those of fairseq's examples/hubert/simple_kmeans; all layers come from one pass. Shards can run
on different machines. Then: tools/learn_kmeans.py, tools/dump_labels.py, tools/merge_labels.py. Where one machine is enough,
tools/make_labels.py does it all without writing features.

  tools/dump_features.py manifests/emodb train features --checkpoint hubert_base.pt --layers 6 9 --nshard 4 --rank 0
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
    parser.add_argument("split", metavar="SPLIT", help="split, such as train")
    parser.add_argument("feat_dir", metavar="FEAT_DIR", help="folder of the features")
    options.add_features(parser)
    parser.add_argument("--nshard", type=cli.positive_int, default=1, metavar="N", help="number of shards")
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="which shard, from 0")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    from emohubert.models.from_pretrained import load_encoder
    from emohubert.pseudo_labels.label_in_shards import dump_features

    features = options.features(args, load_encoder)
    for path in dump_features(args.manifest_dir, args.split, args.feat_dir, features, args.nshard, args.rank, args.overwrite):
        print(path)


if __name__ == "__main__":
    main()
