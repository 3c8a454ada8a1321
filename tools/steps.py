#!/usr/bin/env python3
"""Run several programs of tools/ and manifests/ one after another in one process, up to the first that fails; -- stands between them.

tools/steps.py evaluate CKPT exp/emodb/fold1 test results/test --embeddings -- evaluate CKPT exp/emodb/fold1 train results/train
"""

import sys
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli, programs
from emohubert.core.errors import InputError


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__, usage="%(prog)s NAME ARGUMENT … [-- NAME ARGUMENT …] …")
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] in ([], ["-h"], ["--help"]):
        parser.parse_args(argv or ["--help"])
    for divider, words in groupby(argv, lambda word: word == "--"):
        if divider:
            continue
        name, *arguments = words
        folder = "manifests" if name in programs.programs("manifests") else "tools"
        if name not in programs.programs(folder):
            raise InputError(f"{name}: not a program of tools/ or manifests/")
        cli.Parser.called = name
        programs.load(folder, name).main(arguments)


if __name__ == "__main__":
    main()
