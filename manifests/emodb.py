#!/usr/bin/env python3
"""Manifests of EmoDB, the Berlin Database of Emotional Speech (http://emodb.bilderbar.info), freely available for research.

Ten actors (five women, five men) speak ten German sentences in seven emotions; 535 utterances, 16 kHz. AUDIO_DIR is the
release (its folder wav/ or the one above) or any folder with files of those names, such as 03a01Wa.wav: speaker, text,
emotion letter, version. Subsets work. Five speaker-independent folds of one woman and one man each.

F. Burkhardt, A. Paeschke, M. Rolfes, W. Sendlmeier, B. Weiss, “A database of German emotional speech”, Interspeech 2005.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import command
from emohubert.corpus import build
from emohubert.corpus.manifest import Utterance
from emohubert.corpus.protocols import PROTOCOLS

NAME = re.compile(r"(?P<speaker>03|08|09|1[0-6])(?P<text>[ab]\d\d)(?P<emotion>[WLEAFTN])(?P<version>[a-z])?")
EMOTIONS = {"W": "angry", "L": "bored", "E": "disgusted", "A": "fearful", "F": "happy", "N": "neutral", "T": "sad"}
MEN, WOMEN = ("03", "10", "11", "12", "15"), ("08", "09", "13", "14", "16")


def entry(path, match):
    meta = {"sex": "male" if match["speaker"] in MEN else "female", "text": match["text"], "version": match["version"] or ""}
    return Utterance(path, 0, match["speaker"], EMOTIONS[match["emotion"]], meta=meta)


@command
def main(argv=None):
    args = build.parser(__doc__, tuple(PROTOCOLS), classes=EMOTIONS.values()).parse_args(argv)
    left_out = build.LeftOut()
    entries = build.entries_by_name(args, "EmoDB", NAME, entry, left_out, like="03a01Wa.wav")
    build.write_protocol(args, "emodb", entries, list(zip(MEN, WOMEN, strict=True)), left_out=left_out)


if __name__ == "__main__":
    main()
