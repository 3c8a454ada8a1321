#!/usr/bin/env python3
"""A generated corpus: source-filter speech of known speakers in four classes with known arousal, valence and dominance.

The audio is made in AUDIO_DIR (skipped when it is there already with the same settings); nothing is downloaded. File
names: speaker, class, number. Use it to try the whole pipeline, and for experiments in which the truth has to be known.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

import numpy as np

from emohubert.core.cli import command
from emohubert.core.errors import InputError
from emohubert.core.files import Stamp, make_folder
from emohubert.core.parallel import in_threads
from emohubert.corpus import build, synthetic
from emohubert.corpus.manifest import Utterance
from emohubert.corpus.protocols import balanced_folds

DIMENSIONS = ("arousal", "valence", "dominance")
CENTRES = {"angry": (0.80, 0.20, 0.75), "happy": (0.72, 0.80, 0.60), "neutral": (0.45, 0.52, 0.50), "sad": (0.22, 0.25, 0.28)}
"""Class → its typical (arousal, valence, dominance). An emotion belongs to the class of the nearest centre."""
CLASSES = tuple(CENTRES)


def traits(voice):
    """Pitch and vocal-tract length on scales of about ±1 over adult voices: what listeners hear first."""
    return np.array([np.log2(voice.f0 / 155) / 0.55, (voice.tract - 1.085) / 0.085])


def class_of(emotion):
    """The class whose centre is nearest to an (arousal, valence, dominance) triple."""
    return min(CLASSES, key=lambda name: np.sum((np.asarray(emotion) - CENTRES[name]) ** 2))


def draw_emotion(name, rng, spread=0.09):
    """A random (arousal, valence, dominance) within the region of a class."""
    while True:
        emotion = np.clip(rng.normal(CENTRES[name], spread), 0.02, 0.98)
        if class_of(emotion) == name:
            return emotion


def listener_bias(voices, seed):
    """How far ratings of each voice lie from what it shows: (speakers, 3), within ±1; similar voices are misjudged in similar ways."""
    angles = np.random.default_rng([seed, 1]).uniform(0, 2 * np.pi, len(DIMENSIONS))
    directions = np.stack([np.cos(angles), np.sin(angles)])  # (traits, dimensions)
    return np.tanh(1.5 * np.stack([traits(v) for v in voices]) @ directions)


def plan(args):
    """What will be said: list of (path, voice, class, emotion, seconds, random stream)."""
    utterances = []
    for i, voice in enumerate(synthetic.draw_voices(args.speakers, args.seed)):
        rng = np.random.default_rng([args.seed, 3, i])
        for j in range(args.utterances):
            name = CLASSES[j % len(CLASSES)]
            emotion = np.round(draw_emotion(name, rng), 6)
            seconds = round(float(rng.uniform(*args.seconds)), 3)
            utterances.append((f"{voice.id}/{voice.id}_{name}_{j + 1:03d}.flac", voice, name, emotion, seconds, [args.seed, 4, i, j]))
    return utterances


def generate(args, utterances):
    """Write the audio, unless it is there with the same settings."""
    for folder in sorted({(args.audio_dir / path).parent for path, *_ in utterances}):
        make_folder(folder)
    settings = {k: getattr(args, k) for k in ("speakers", "utterances", "seconds", "seed")} | {"synthesiser": synthetic.VERSION}
    stamp = Stamp(args.audio_dir / ".synthesis.json", settings, [args.audio_dir / path for path, *_ in utterances])
    if stamp.is_current() and not args.overwrite:
        return
    stamp.clear()
    lexicon = synthetic.draw_lexicon(args.seed)

    def make(utterance):
        path, voice, _, emotion, seconds, stream = utterance
        wave = synthetic.synthesise(voice, emotion, seconds, lexicon, np.random.default_rng(stream))
        build.write_audio(args.audio_dir / path, wave)

    for _ in in_threads(make, utterances, "synthesis", "utterances", min(args.workers, os.cpu_count() or 1)):
        pass
    stamp.write()


@command
def main(argv=None):
    protocols = ("speaker-independent", "seen", "both", "folds", "leave-one-speaker-out")
    parser = build.parser(__doc__, protocols, audio_help="folder in which the audio is generated")
    parser.add_argument("--speakers", type=int, default=12, help="women and men in turn, 8 or more")
    parser.add_argument("--utterances", type=int, default=40, help="per speaker, the classes in turn")
    parser.add_argument("--seconds", type=float, nargs=2, default=[1.2, 3.2], metavar=("MIN", "MAX"), help="length of an utterance")
    parser.add_argument("--folds", type=int, default=4, metavar="K", help="number of folds of --protocol folds")
    parser.add_argument(
        "--label-shift",
        type=float,
        default=0,
        metavar="S",
        help="add to each speaker's dimensions a bias of up to ±S that depends smoothly on the voice, as listeners do who "
        "misjudge it (values are cut to 0..1; the emotions shown stay in .meta.tsv)",
    )
    args = parser.parse_args(argv)
    if args.speakers < 8:
        raise InputError(f"--speakers {args.speakers}: give 8 or more")
    if args.utterances < len(CLASSES):
        raise InputError(f"--utterances {args.utterances}: give {len(CLASSES)} or more, so that every class is spoken")
    if not 0.3 <= args.seconds[0] <= args.seconds[1] <= 60:
        raise InputError(f"--seconds {args.seconds[0]} {args.seconds[1]}: give MIN and MAX with 0.3 <= MIN <= MAX <= 60")
    if not 0 <= args.label_shift <= 1:
        raise InputError(f"--label-shift {args.label_shift}: give a value from 0 to 1")

    utterances = plan(args)
    generate(args, utterances)
    voices = list({u[1].id: u[1] for u in utterances}.values())
    bias = dict(zip([v.id for v in voices], args.label_shift * listener_bias(voices, args.seed), strict=True))
    entries = []
    for path, voice, name, emotion, _, _ in utterances:
        rated = np.clip(emotion + bias[voice.id], 0, 1)
        meta = {"sex": voice.sex, **{f"shown_{d}": f"{x:.6g}" for d, x in zip(DIMENSIONS, emotion, strict=True)}}
        dimensions = {d: round(float(x), 6) for d, x in zip(DIMENSIONS, rated, strict=True)}
        entries.append(Utterance(path, 0, voice.id, name, dimensions, meta if args.label_shift else {"sex": voice.sex}))
    folds = None
    if args.protocol == "folds":
        folds = balanced_folds({v.id: v.sex for v in voices}, args.folds, args.seed)
    build.write_protocol(args, "synthetic", entries, folds, scales={d: {"min": 0, "max": 1} for d in DIMENSIONS})


if __name__ == "__main__":
    main()
