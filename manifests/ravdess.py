#!/usr/bin/env python3
"""Manifests of RAVDESS speech (https://zenodo.org/records/1188976), CC BY-NC-SA 4.0.

24 actors (odd numbers men, even numbers women) speak two sentences in eight emotions at two intensities, twice; 1 440
clips. AUDIO_DIR is the release (Actor_NN/*.wav, 48 kHz) or any folder with files of those names, such as
03-01-05-02-01-01-24.wav: modality, channel, emotion, intensity, statement, repetition, actor. Only audio-only speech
(03-01) is taken: songs and videos are left out. Six folds of four actors, two women and two men each.

S. R. Livingstone, F. A. Russo, “The Ryerson Audio-Visual Database of Emotional Speech and Song”, PLoS ONE 13(5), 2018.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import command
from emohubert.corpus import build
from emohubert.corpus.manifest import Utterance
from emohubert.corpus.protocols import PROTOCOLS

NAME = re.compile(r"(0[1-3])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1\d|2[0-4])")
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
INTENSITIES = ("normal", "strong")
SENTENCES = ("kids", "dogs")
FOLDS = [[f"{actor:02d}" for actor in range(first, first + 4)] for first in range(1, 25, 4)]


def entry(path, match):
    modality, channel, emotion, intensity, sentence, repetition, actor = match.groups()
    if (modality, channel) != ("03", "01"):
        return "not audio-only" if modality != "03" else "song"
    meta = {
        "sex": "male" if int(actor) % 2 else "female",
        "intensity": INTENSITIES[int(intensity) - 1],
        "sentence": SENTENCES[int(sentence) - 1],
        "repetition": int(repetition),
    }
    return Utterance(path, 0, actor, EMOTIONS[int(emotion) - 1], meta=meta)


@command
def main(argv=None):
    args = build.parser(__doc__, tuple(PROTOCOLS), classes=EMOTIONS).parse_args(argv)
    left_out = build.LeftOut()
    entries = build.entries_by_name(args, "RAVDESS", NAME, entry, left_out, like="03-01-05-02-01-01-24.wav")
    build.write_protocol(args, "ravdess", entries, FOLDS, left_out=left_out)


if __name__ == "__main__":
    main()
