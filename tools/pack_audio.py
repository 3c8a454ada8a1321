#!/usr/bin/env python3
"""Pack the audio of a manifest directory into tar shards, and write the manifest directory that lists it.

The shards are plain tars as WebDataset reads them, in OUT_DIR/shards; they hold the original files byte for byte, each once.
OUT_DIR lists them as shards/000003.tar:OFFSET:SIZE, with all sidecars and the same ids, and takes the place of MANIFEST_DIR
everywhere. The lengths of all recordings are compared with the manifest. A second run makes only what is missing or changed.

  tools/pack_audio.py manifests/msp_podcast packed/msp_podcast --shard-mb 1000
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.corpus.shards import pack


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory, or a corpus folder with fold*/ in it")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="folder for the shards and the manifest that lists them")
    parser.add_argument("--shard-mb", type=cli.positive_int, default=1000, metavar="MB", help="most megabytes (10⁶ bytes) of a shard")
    parser.add_argument("--jobs", type=cli.positive_int, default=4, help="shards that are written at once")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    recordings, shards, written = pack(args.manifest_dir, args.out_dir, args.shard_mb * 1_000_000, args.jobs, args.overwrite)
    print(f"{args.out_dir}: {recordings} recordings in {shards} shards, {written} of them written now")


if __name__ == "__main__":
    main()
