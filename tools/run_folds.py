#!/usr/bin/env python3
"""Cross-validation: train a configuration on every fold with every seed, evaluate each, and collect one table.

    OUT_DIR/foldK/seedS/       a training, and its evaluation in a folder named as the split
            pooled/seedS/      predictions of a seed pooled over folds, with scores
            results.md, .json  per fold, mean ± std over folds and seeds, pooled; with setting and protocol

MANIFEST_DIR holds a folder foldK for each fold. `{fold}` and `{seed}` in a value of key=value are replaced. Finished runs are
skipped, an interrupted one resumes where it stopped, and a folder with other settings is refused. The checkpoint evaluated is
the best on the split `valid`; where a fold has none, the last epoch is, and the table says so.

As a Slurm array of one job for each run (fold by fold, seeds within, counted from 0), then the table:

  sbatch --array=0-14 --wrap 'tools/run_folds.py … --index $SLURM_ARRAY_TASK_ID'
  tools/run_folds.py … --collect

  tools/run_folds.py ser_classification_tiny manifests/emodb exp/emodb --folds 1 2 3 4 5 --seeds 1 2 3 \\
      'model.init_from=exp/fold{fold}/hubert/checkpoint_last.pt'
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli, programs
from emohubert.core.errors import InputError
from emohubert.training.launch import OVERRIDE, Training


def evaluate(arguments):
    """tools/evaluate.py in this process."""
    programs.load("tools", "evaluate").main.__wrapped__(arguments)


@cli.command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    overrides = [a for a in argv if OVERRIDE.fullmatch(a)]
    parser = cli.Parser(description=__doc__, usage="%(prog)s CONFIG MANIFEST_DIR OUT_DIR [options] [key=value ...]")
    parser.add_argument("config", metavar="CONFIG", help="name of a configuration, such as ser_classification_tiny")
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="folder with a manifest directory foldK for each fold")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="output folder")
    parser.add_argument("--folds", nargs="+", metavar="K", help="folds (default: all that there are)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="S", help="seeds")
    parser.add_argument("--split", default="test", help="split to score")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at the same time, among which cores and GPUs are divided")
    parser.add_argument(
        "--nproc", type=int, metavar="N", help="processes of each training, over torchrun (default: fairseq takes all GPUs)"
    )
    parser.add_argument("--repeats", type=int, default=2000, metavar="N", help="bootstrap samples for the scores of pooled predictions")
    parser.add_argument("--config-dir", default=Training.config_dir, metavar="DIR", type=Path, help="folder of the configuration")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--index", type=int, metavar="I", help="only the I-th run, from 0; no table")
    only.add_argument("--collect", action="store_true", help="only the table; missing runs are named, exit status 2")
    parser.add_device()
    parser.add_overwrite()
    args = parser.parse_args([a for a in argv if not OVERRIDE.fullmatch(a)])
    for name in ("jobs", "nproc"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: give 1 or more")
    if args.device != "auto":
        from emohubert.core.device import choose_device

        choose_device(args.device)
    from emohubert.evaluation import cross_validation

    config_dir = args.config_dir.resolve()
    runs = cross_validation.plan(
        args.config, args.manifest_dir, args.out_dir, args.seeds, args.folds, args.split, overrides, config_dir=config_dir
    )
    if args.index is not None and not 0 <= args.index < len(runs):
        raise InputError(f"--index {args.index}: there are {len(runs)} runs, 0 to {len(runs) - 1}")
    if not args.collect:
        chosen = runs if args.index is None else [runs[args.index]]
        cross_validation.execute(chosen, evaluate, args.jobs, args.device, args.overwrite, args.nproc)
    if args.index is None:
        print("\n".join(cross_validation.collect(runs, args.out_dir, args.repeats)))
        print(f"written to {args.out_dir}: results.md, results.json")


if __name__ == "__main__":
    main()
