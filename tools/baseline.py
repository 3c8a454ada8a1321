#!/usr/bin/env python3
"""The baselines that a system has to beat, on the folds of a manifest directory: majority class, eGeMAPS + SVM, plain and normalised;
or, with --checkpoint, a probe of a frozen encoder: an SVM on mean and standard deviation over time of its layers. --features
puts several side by side.

Trains on each fold's train split and predicts its test split: for every system OUT_DIR/NAME/foldK/predictions.tsv and metrics.json as
tools/evaluate.py writes them, and results.md, results.json and a picture, results.png, over the folds. *Normalised* uses each test speaker's unlabelled audio.
eGeMAPS needs the package opensmile, which is free for research only and so not installed by default: pip install 'emohubert[baseline]'.

  tools/baseline.py exp/emodb exp/emodb_baseline
  tools/baseline.py exp/emodb exp/emodb_probe --checkpoint exp/hubert/checkpoint_best.pt --layers 1 2 3
  tools/baseline.py exp/emodb exp/emodb_all --features egemaps mfcc encoder --checkpoint small
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory, with or without folds")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="output folder")
    parser.add_argument("--target", default="emo", metavar="NAME", help="emo, or the name of a column of .dim")
    parser.add_argument("--train", default="train", metavar="SPLIT", help="split to train on")
    parser.add_argument("--test", default="test", metavar="SPLIT", help="split to predict")
    parser.add_argument("--checkpoint", metavar="CKPT", help="encoder to probe")
    parser.add_argument(
        "--features", nargs="+", choices=("egemaps", "mfcc", "encoder"), help="(default: egemaps; with --checkpoint: encoder)"
    )
    parser.add_argument("--layers", type=int, nargs="+", metavar="L", help="Transformer layers of the checkpoint, from 1 (default: all)")
    parser.add_argument(
        "--speed-perturbation", type=float, nargs="+", default=[], metavar="F", help="a probe learns at these speeds too, such as 0.92 1.09"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes that extract features (default: one for each core)")
    args = parser.parse_args(argv)
    from emohubert.evaluation import baseline

    options = args.target, args.train, args.test, args.workers, args.checkpoint, args.layers, args.features, args.speed_perturbation
    print("\n".join(baseline.run(args.manifest_dir, args.out_dir, *options)))


if __name__ == "__main__":
    main()
