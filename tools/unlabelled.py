#!/usr/bin/env python3
"""A manifest directory for pretraining: the audio and speakers of some splits, without labels.

Writes OUT_DIR/train.* and OUT_DIR/valid.*, as far as they are asked for: audio lists, speakers and sessions. `--train train` is the
inductive setting; `--train train test` the transductive one: the unlabelled audio of the test speakers takes part in pretraining, which
every result has to state.

  tools/unlabelled.py exp/emodb/fold1 exp/fold1/unlabelled --train train --valid valid
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.errors import InputError
from emohubert.corpus.derived_manifests import write_unlabelled


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="output folder")
    parser.add_argument("--train", nargs="*", default=[], metavar="SPLIT", help="splits that are pretrained on")
    parser.add_argument("--valid", nargs="*", default=[], metavar="SPLIT", help="splits that the loss is watched on")
    args = parser.parse_args(argv)
    parts = {name: getattr(args, name) for name in ("train", "valid")}
    if not any(parts.values()):
        raise InputError(f"{args.out_dir}: nothing to write; give --train or --valid")
    counts = write_unlabelled(args.manifest_dir, args.out_dir, parts)
    print(f"{args.out_dir}: " + ", ".join(f"{n} utterances in {split}" for split, n in counts.items()))


if __name__ == "__main__":
    main()
