#!/usr/bin/env python3
"""Manifests of nEMO (Christop 2024, https://github.com/amu-cai/nEMO), CC BY-NC-SA 4.0.

Nine actors (four women, five men) speak 90 Polish sentences in six emotions; 4 481 clips, 24 kHz. AUDIO_DIR is the release:
data.tsv, and below it, in samples/ or elsewhere, audio of any format with the names that data.tsv lists. Three
speaker-independent folds of three speakers each (--folds: another number); one woman and one man of the training speakers
are validation.

I. Christop, “nEMO: Dataset of Emotional Speech in Polish”, LREC-COLING 2024.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import command
from emohubert.core.errors import InputError
from emohubert.corpus import build, protocols
from emohubert.corpus.manifest import Utterance
from emohubert.corpus.protocols import PROTOCOLS, balanced_folds, protocol_splits
from emohubert.corpus.tables import need_columns, read_delimited

NAME = re.compile(r"[A-Z]{2}\d_[a-z]+_\d+")
EMOTIONS = {"anger": "angry", "fear": "fearful", "happiness": "happy", "neutral": "neutral", "sadness": "sad", "surprised": "surprised"}
FOLDS = {"folds": "speaker-independent folds, each sex alike, one woman and one man of the other speakers for validation, and all.*"}


def folds_of(utterances, k, seed):
    """Fold i tests the i-th group of speakers, validates on the first woman and man of the next, and trains on the rest."""
    sex = {u.speaker: u.meta["sex"] for u in utterances}
    groups = balanced_folds(sex, k, seed)
    valid = [{sex[s]: s for s in reversed(group)}.values() for group in groups[1:] + groups[:1]]
    return protocols.folds_of(utterances, zip(groups, valid, strict=True))


@command
def main(argv=None):
    parser = build.parser(__doc__, tuple(PROTOCOLS), "folder of the release", FOLDS, EMOTIONS.values())
    parser.add_argument("--folds", type=int, default=3, metavar="K", help="number of folds of --protocol folds, 3 to 9")
    args = parser.parse_args(argv)
    table = args.audio_dir / "data.tsv"
    columns, rows = read_delimited(table)
    need_columns(table, columns, ["file_id", "emotion", "raw_text", "speaker_id", "gender", "age"])
    listed = {Path(row["file_id"]).stem: (line, row) for line, row in rows}

    def entry(path, match):
        if match.string not in listed:
            return "not in data.tsv"
        line, row = listed[match.string]
        if row["emotion"] not in EMOTIONS:
            raise InputError(
                f"{table}:{line}: emotion “{row['emotion']}” is not one of {' '.join(EMOTIONS)}; restore the file of the release"
            )
        meta = {"sex": row["gender"], "age": row["age"], "sentence": row["raw_text"]}
        return Utterance(path, 0, row["speaker_id"], EMOTIONS[row["emotion"]], meta=meta)

    left_out = build.LeftOut()
    entries = build.entries_by_name(args, "nEMO", NAME, entry, left_out, like="EB0_anger_1.wav")
    missing = sorted(listed.keys() - {Path(u.path).stem for u in entries})
    if missing and not args.classes:
        left_out["in data.tsv, but no audio"] = missing

    def splits(utterances):
        if args.protocol == "folds":
            return folds_of(utterances, args.folds, args.seed)
        return protocol_splits(utterances, args.protocol, args.seed)

    build.write(args, "nemo", entries, splits, everything=args.protocol in ("folds", "leave-one-speaker-out"), left_out=left_out)


if __name__ == "__main__":
    main()
