#!/usr/bin/env python3
"""Measure tools/make_labels.py against fairseq's simple_kmeans scripts on the same audio and checkpoint.

Runs the grid of FLEA (layers 6, 9, 11 × 50, 100, 150 clusters), and every single step of both sides; prints seconds and
their ratios, bytes written, peak memory, the ratio of the inertias, and how many labels are the same for the same
centroids. Everything is in --out: bench.json, and what both sides wrote. Steps that are measured are not run again.

--stock is a script that runs fairseq's scripts on this machine, called as
    SCRIPT dump   TSV_DIR SPLIT CKPT LAYER FEAT_DIR
    SCRIPT kmeans FEAT_DIR SPLIT KM_PATH K
    SCRIPT label  FEAT_DIR SPLIT KM_PATH LAB_DIR

  tools/bench_labels.py manifests/emodb all --stock stock_simple_kmeans.py --random-base --out bench
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.files import make_folder
from emohubert.pseudo_labels import options
from emohubert.pseudo_labels.benchmark import Benchmark, report, write_random_hubert


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory")
    parser.add_argument("split", metavar="SPLIT", help="split, such as train")
    parser.add_argument("--stock", required=True, metavar="SCRIPT", help="script that runs fairseq's side")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", metavar="CKPT", help="HuBERT checkpoint that fairseq can load")
    model.add_argument("--random-base", action="store_true", help="make a HuBERT base with random weights: good for timing")
    parser.add_argument("--layers", type=options.positive_int, nargs="+", metavar="L", default=[6, 9, 11], help="layers of the grid")
    parser.add_argument(
        "--clusters", type=options.positive_int, nargs="+", metavar="K", default=[50, 100, 150], help="clusters of the grid"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for everything")
    parser.add_seed()
    parser.add_overwrite()
    args = parser.parse_args(argv)
    checkpoint = args.checkpoint
    if args.random_base:
        checkpoint = make_folder(args.out) / f"random_base_{args.seed}.pt"
        if args.overwrite or not checkpoint.is_file():
            write_random_hubert(checkpoint, args.seed)
    tools = Path(__file__).resolve().parent
    benchmark = Benchmark(
        args.manifest_dir, args.split, checkpoint, args.stock, tools, args.layers, args.clusters, args.out, args.overwrite
    )
    print("\n".join(report(benchmark.run())))


if __name__ == "__main__":
    main()
