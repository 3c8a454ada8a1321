#!/usr/bin/env python3
"""Copy the audio that a manifest directory lists, plain files or tar shards, to a local disk, once for all processes of a machine.

Prints the manifest directory that lists the copies, LOCAL_DIR/manifest, for use in place of MANIFEST_DIR:

  fairseq-hydra-train … task.data=$(tools/stage_audio.py manifests/emodb /scratch/$USER/emodb --splits train valid)

What is there with the same size and time of change is not copied again. Processes that copy to the same folder at the same
time wait for the first. Frame labels stay where they are, unless they are in MANIFEST_DIR itself (task.label_dir).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.corpus.derived_manifests import stage


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory, or a corpus folder with fold*/ in it")
    parser.add_argument("local_dir", metavar="LOCAL_DIR", help="folder on the local disk")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="splits that are wanted (default: all)")
    parser.add_argument("--name", default="manifest", help="name of the manifest directory in LOCAL_DIR")
    parser.add_argument("--jobs", type=cli.positive_int, default=8, help="files that are copied at once")
    args = parser.parse_args(argv)
    out, files, copied = stage(args.manifest_dir, args.local_dir, args.splits, args.name, args.jobs)
    cli.logger.info("%s: %d files, %d of them copied now", out, files, copied)
    print(out)


if __name__ == "__main__":
    main()
