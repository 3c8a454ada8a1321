#!/usr/bin/env python3
"""Manifests of IEMOCAP (https://sail.usc.edu/iemocap), licensed by the University of Southern California on request.

Five sessions of one woman and one man each, scripted and improvised dialogues, 10 039 turns. AUDIO_DIR is the folder that
holds Session1 … Session5; labels come from dialog/EmoEvaluation/*.txt. The standard four classes are angry, happy (excited
counts as happy), neutral and sad: 5 531 utterances. Dimensions are rated 1–5 and written as 0–1. The evaluators' own
categories (C-E…, not the actors' of themselves) become .votes: one vote of each, in equal parts where there are several.

C. Busso et al., “IEMOCAP: Interactive emotional dyadic motion capture database”, Language Resources and Evaluation 42, 2008.
"""

import logging
import re
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import command
from emohubert.core.errors import InputError
from emohubert.corpus import build, protocols
from emohubert.corpus.manifest import NO_EMOTION, Utterance
from emohubert.corpus.tables import Paths, read_text

logger = logging.getLogger("emohubert")

STANDARD = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
OTHERS = {"fru": "frustrated", "sur": "surprised", "fea": "fearful", "dis": "disgusted", "oth": NO_EMOTION, "xxx": NO_EMOTION}
CATEGORIES = {"anger": "angry", "happiness": "happy", "excited": "happy", "neutral": "neutral", "neutral state": "neutral"}
CATEGORIES |= {"sadness": "sad", "frustration": "frustrated", "surprise": "surprised", "fear": "fearful", "disgust": "disgusted"}
DIMENSIONS = ("valence", "arousal", "dominance")  # the order in the files, where arousal is called activation
SCALE = (1, 5)
SESSION = re.compile(r"session[ _-]?[1-5]", re.IGNORECASE)
LINE = re.compile(
    r"\[[\d.]+ *- *[\d.]+\]\s+(?P<turn>Ses0(?P<session>[1-5])[FM]_\w+_(?P<sex>[FM])\w+)\s+(?P<label>\w{3})\s+\[(?P<values>[^]]*)\]"
)
VOTE = re.compile(r"C-E\d+:\s*(?P<categories>[^(\t]*)")
PROTOCOLS = {
    "session": "five folds; each tests one session, validates on one speaker of the next session (women and men in turn), "
    "and trains on the seven other speakers",
    "speaker": "ten folds; each trains on four sessions, tests one speaker of the fifth and validates on the other "
    "(folds 1–5 test the women, 6–10 the men of sessions 1–5)",
}


def find_sessions(folder):
    """Names of the session folders, in order, in whatever capitals; InputError if there is none, or two of one session."""
    sessions = sorted((p.name for p in folder.glob("*") if SESSION.fullmatch(p.name) and p.is_dir()), key=lambda name: name[-1])
    if not sessions:
        raise InputError(f"{folder}: holds no Session1 … Session5; give the folder IEMOCAP_full_release as AUDIO_DIR")
    for one, other in pairwise(sessions):
        if one[-1] == other[-1]:
            raise InputError(f"{folder}: holds both {one} and {other}; remove one of them")
    if len(sessions) < 5:
        logger.warning("%s: holds only %s; the other sessions are not there", folder, ", ".join(sessions))
    return sessions


def read_session(paths, session, left_out):
    """Entries of one session; the labelled turns without audio and the unreadable lines go to `left_out`."""
    where = paths.folder
    labels = where / paths.spelled(f"{session}/dialog/EmoEvaluation")
    files = sorted(p for p in labels.glob("*") if re.fullmatch(r"(?i)Ses.*\.txt", p.name))
    if not files:
        raise InputError(f"{labels}: holds no Ses*.txt; complete the release, or correct AUDIO_DIR")
    for file in files:
        lines = read_text(file, errors="replace").splitlines()
        votes = read_votes(lines)
        for number, line in enumerate(lines, 1):
            if not line.startswith("["):
                continue  # header, ratings of single annotators
            match = LINE.match(line)
            if not match or match["label"] not in STANDARD | OTHERS:
                left_out["lines of EmoEvaluation that cannot be read"].append(f"{file.relative_to(where)}:{number}")
                continue
            dialogue = match["turn"].rpartition("_")[0]
            path = paths.spelled(f"{session}/sentences/wav/{dialogue}/{match['turn']}.wav")
            if (where / path).is_file():
                yield path, match, dialogue, votes[match["turn"]]
            else:
                left_out["labelled, but no audio"].append(path)


def read_votes(lines):
    """Turn → class → the evaluators' votes, which stand below the turn."""
    votes, turn = defaultdict(Counter), None
    for line in lines:
        if line.startswith("["):
            match = LINE.match(line)
            turn = match and match["turn"]
        elif vote := VOTE.match(line):
            chosen = [c.strip().lower() for c in vote["categories"].split(";") if c.strip()]
            for category in chosen:
                votes[turn][CATEGORIES.get(category, NO_EMOTION)] += 1 / len(chosen)
    return votes


def dimensions(path, text, left_out):
    """The dimensions of a line, on 0..1; none (NaN) where they are off the scale."""
    try:
        values = [float(v) for v in text.split(",")]
    except ValueError:
        values = []
    if len(values) != len(DIMENSIONS) or not all(SCALE[0] <= v <= SCALE[1] for v in values):
        left_out[f"kept, but without dimensions, which are not on the scale {SCALE[0]}–{SCALE[1]}"].append(path)
        values = [float("nan")] * len(DIMENSIONS)
    rated = dict(zip(DIMENSIONS, (build.to_unit(v, *SCALE) for v in values), strict=True))
    return {name: round(rated[name], 6) for name in ("arousal", "valence", "dominance")}


def folds_of(utterances, protocol):
    """The folds of a protocol; sessions that are not there are passed over."""
    sessions = sorted({u.meta["session"] for u in utterances})
    if len(sessions) < 3:
        raise InputError(f"AUDIO_DIR holds {len(sessions)} sessions; cross-validation needs three or more")
    if protocol == "speaker":
        return protocols.folds_of(utterances, [([s + sex], [s + other]) for sex, other in ("FM", "MF") for s in sessions])
    chosen = [s + "FM"[k % 2] for k, s in enumerate(sessions[1:] + sessions[:1])]
    return protocols.folds_of(utterances, [([s + "F", s + "M"], [valid]) for s, valid in zip(sessions, chosen, strict=True)])


@command
def main(argv=None):
    parser = build.parser(__doc__, tuple(PROTOCOLS), "folder that holds Session1 … Session5", PROTOCOLS)
    parser.add_argument(
        "--utterances",
        choices=("standard", "all"),
        default="standard",
        help="standard: the 5 531 of the four classes; all: every turn, with more classes, and - where annotators did not agree",
    )
    args = parser.parse_args(argv)
    sessions, paths = find_sessions(args.audio_dir), Paths(args.audio_dir)
    classes = STANDARD if args.utterances == "standard" else STANDARD | OTHERS
    left_out = build.LeftOut()
    entries = []
    for name in sessions:
        for path, match, dialogue, votes in read_session(paths, name, left_out):
            if match["label"] not in classes:
                left_out[f"another class: {match['label']}"].append(path)
                continue
            session = f"Ses0{match['session']}"
            meta = {
                "sex": "female" if match["sex"] == "F" else "male",
                "session": session,
                "dialogue": dialogue,
                "scenario": "improvised" if "_impro" in dialogue else "scripted",
                "label": match["label"],
            }
            values = dimensions(path, match["values"], left_out)
            entries.append(Utterance(path, 0, session + match["sex"], classes[match["label"]], values, meta, dict(votes)))
    build.check_found(entries, args.audio_dir, "labelled turns with audio")
    scales = {name: build.unit_scale(*SCALE) for name in DIMENSIONS}
    build.write(args, "iemocap", entries, lambda us: folds_of(us, args.protocol), everything=True, scales=scales, left_out=left_out)


if __name__ == "__main__":
    main()
