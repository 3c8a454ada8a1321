#!/usr/bin/env python3
"""A manifest directory of any folder of speech without labels, for pretraining.

All audio files below AUDIO_DIR become the splits train and, a share of them by chance, valid. The speaker is unknown unless
--speaker names the part of the path that holds it. OUT_DIR then serves tools/make_labels.py and fairseq-hydra-train.

  manifests/folder.py LibriSpeech/train-clean-100 exp/libri --speaker '/(\\d+)-'
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import command
from emohubert.core.errors import InputError
from emohubert.corpus import build
from emohubert.corpus.manifest import NO_EMOTION, UNKNOWN_SPEAKER, Utterance


@command
def main(argv=None):
    import numpy as np

    parser = build.parser(__doc__, audio_help="folder of speech")
    parser.add_argument("--valid", type=float, default=0.02, metavar="SHARE", help="share of the files that become the split valid")
    parser.add_argument(
        "--speaker", type=build.group, metavar="REGEX", help="regular expression whose first group, in the relative path, is the speaker"
    )
    args = parser.parse_args(argv)
    if not 0 < args.valid < 1:
        raise InputError(f"--valid {args.valid}: not a share between 0 and 1")
    left_out = build.LeftOut()
    entries = []
    for path in build.first_copies(build.find_audio(args.audio_dir, left_out), left_out, build.converted_path):
        found = re.search(args.speaker or "$.", f"/{path}")
        entries.append(Utterance(path, 0, found[1] if found and found[1] else UNKNOWN_SPEAKER, NO_EMOTION, meta={}))
    build.check_found(entries, args.audio_dir, "audio files")

    def splits(measured):
        drawn = np.random.default_rng(args.seed).random(len(measured))
        chosen = (drawn < args.valid) | (drawn == drawn.min())  # one at least
        return {"": {name: [u for u, c in zip(measured, chosen, strict=True) if c == (name == "valid")] for name in ("train", "valid")}}

    build.write(args, "folder", entries, splits, left_out=left_out)


if __name__ == "__main__":
    main()
