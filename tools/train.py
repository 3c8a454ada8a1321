#!/usr/bin/env python3
"""Train a configuration into a folder: fairseq-hydra-train with progress, and the reason in a few lines where it fails.

SAVE_DIR becomes checkpoint.save_dir. A finished training is skipped, an interrupted one resumes from its last checkpoint, and a folder
with other settings is refused. The log is SAVE_DIR/hydra_train.log; values with a / are paths and need no quotes for Hydra. In a job
of recipes/slurm/ with several tasks, all of them train. Exit status 75: preempted; the same command goes on.

  tools/train.py ser_classification_tiny runs/emodb task.data=exp/emodb/fold1 model.init_from=hubert/checkpoint_last.pt
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.errors import InputError
from emohubert.training.launch import OVERRIDE, Training


@cli.command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.Parser(description=__doc__, usage="%(prog)s CONFIG SAVE_DIR [options] [key=value ...]")
    parser.add_argument("config", metavar="CONFIG", help="name of a configuration, such as papt_tiny")
    parser.add_argument("save_dir", metavar="SAVE_DIR", type=Path, help="folder of the training")
    parser.add_argument("--nproc", type=int, metavar="N", help="processes, over torchrun (default: fairseq takes all GPUs)")
    parser.add_argument("--config-dir", default=Training.config_dir, metavar="DIR", type=Path, help="folder of the configuration")
    args = parser.parse_args([a for a in argv if not OVERRIDE.fullmatch(a)])
    if args.nproc is not None and args.nproc < 1:
        raise InputError(f"--nproc {args.nproc}: give 1 or more")
    overrides = tuple(a for a in argv if OVERRIDE.fullmatch(a))
    Training(args.config, args.save_dir.resolve(), overrides, args.config_dir.resolve()).run(args.nproc)


if __name__ == "__main__":
    main()
