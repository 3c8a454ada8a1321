#!/usr/bin/env python3
"""Manifests of MSP-Podcast (https://www.lab-msp.com/MSP/MSP-Podcast.html), licensed by the University of Texas at Dallas on request.

Spontaneous speech from podcasts, 16 kHz. AUDIO_DIR is the release: Audios/ and Labels/labels_consensus.csv (in versions up
to 1.10: labels_concensus.csv). The partitions are those of the release: train, valid (Development, once Validation), test1,
test2, test3. Dimensions are rated 1–7 and written as 0–1. Speakers that the release does not know are written as <unk>.
Where Labels/labels_detailed.csv is there, the annotators' primary emotions become .votes.

R. Lotfian, C. Busso, “Building naturalistic emotionally balanced speech corpus by retrieving emotional speech from existing
podcast recordings”, IEEE Transactions on Affective Computing 10(4), 2019.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import command
from emohubert.core.errors import InputError
from emohubert.corpus import build
from emohubert.corpus.manifest import NO_EMOTION, UNKNOWN_SPEAKER, Utterance
from emohubert.corpus.tables import need_columns, read_delimited

EMOTIONS = {
    "A": "angry", "C": "contempt", "D": "disgusted", "F": "fearful", "H": "happy", "N": "neutral", "S": "sad", "U": "surprised",
    "O": NO_EMOTION, "X": NO_EMOTION, "": NO_EMOTION,
}  # fmt: skip
WORDS = {"angry": "A", "contempt": "C", "disgust": "D", "fear": "F", "happy": "H", "neutral": "N", "sad": "S", "surprise": "U"}
PARTITIONS = {"train": "train", "development": "valid", "validation": "valid"} | {f"test{n}": f"test{n}" for n in ("", 1, 2, 3)}
DIMENSIONS = {"arousal": "EmoAct", "valence": "EmoVal", "dominance": "EmoDom"}
SCALE = (1, 7)
DETAILED = "labels_detailed.csv"
TABLES = ("labels_consensus.csv", "labels_concensus.csv")


def read_votes(folder):
    """File name → class → votes, of the single annotations of a release; {} where they are not there."""
    if not (table := next((p for p in (folder / "Labels" / DETAILED, folder / DETAILED) if p.is_file()), None)):
        return {}
    columns, rows = read_delimited(table)
    packed = "EmoDetail" in columns  # “WORKER00000001; Neutral; Concerned; A:4; …”, in some versions
    need_columns(table, columns, ["FileName", "EmoDetail" if packed else "EmoClass_Major"])
    votes = defaultdict(Counter)
    for line, row in rows:
        cells = row["EmoDetail"].split(";") if packed else ["", row["EmoClass_Major"]]
        if len(cells) < 2:
            raise InputError(f"{table}:{line}: EmoDetail “{row['EmoDetail']}” is not worker; emotion; …; restore the file of the release")
        votes[row["FileName"]][EMOTIONS[WORDS.get(cells[1].strip().lower(), "O")]] += 1  # any other word is one of “other”
    return votes


def find_table(args):
    """The table of consensus labels."""
    places = [args.audio_dir / folder / name for name in TABLES for folder in ("Labels", ".")]
    found = [args.labels] if args.labels else [p for p in places if p.is_file()]
    if not found:
        raise InputError(
            f"{args.audio_dir}: holds no Labels/labels_consensus.csv; complete the release, or name the table with --labels FILE"
        )
    return found[0]


def entry(row, where, path, votes, left_out):
    """One row, with its annotators' votes, as an Utterance without length."""
    if row["EmoClass"] not in EMOTIONS:
        raise InputError(f"{where}: EmoClass “{row['EmoClass']}” is not one of {' '.join(filter(None, EMOTIONS))}; correct the line")
    values = {}
    for name, column in DIMENSIONS.items():
        try:
            values[name] = build.to_unit(float(row[column]), *SCALE) if row[column] else float("nan")
        except ValueError:
            raise InputError(f"{where}: {column} is “{row[column]}”, not a number; correct the line") from None
    if any(v < 0 or v > 1 for v in values.values()):
        left_out[f"kept, but without dimensions, which are not on the scale {SCALE[0]}–{SCALE[1]}"].append(path)
        values = dict.fromkeys(values, float("nan"))
    speaker = row["SpkrID"] if row["SpkrID"].lower() not in ("", "unknown") else UNKNOWN_SPEAKER
    meta = {"sex": row["Gender"].lower() or "unknown", "partition": row["Split_Set"]}
    return Utterance(path, 0, speaker, EMOTIONS[row["EmoClass"]], {n: round(v, 6) for n, v in values.items()}, meta, votes)


@command
def main(argv=None):
    parser = build.parser(__doc__, audio_help="folder of the release")
    classes = sorted({e for e in EMOTIONS.values() if e != NO_EMOTION})
    parser.add_argument("--labels", type=Path, metavar="FILE", help="the table of consensus labels (default: the one in AUDIO_DIR/Labels)")
    parser.add_argument(
        "--classes", nargs="+", choices=classes, metavar="CLASS", help="only these (default: all, and those without agreement)"
    )
    parser.add_argument("--test", choices=("test1", "test2", "test3"), help="partition that is written as the split “test”")
    parser.add_argument(
        "--unknown-speakers", choices=("keep", "leave-out"), default="keep", help="what to do with the utterances of unknown speakers"
    )
    args = parser.parse_args(argv)
    table = find_table(args)
    columns, rows = read_delimited(table)
    need_columns(table, columns, ["FileName", "EmoClass", *DIMENSIONS.values(), "SpkrID", "Gender", "Split_Set"])
    votes = read_votes(args.audio_dir)
    left_out = build.LeftOut()
    folder = next((name for name in ("Audios", "Audio") if (args.audio_dir / name).is_dir()), "")
    audio = {Path(p).stem: p for p in build.first_copies(build.find_audio(args.audio_dir, left_out, folder), left_out)}
    entries, split_of, labelled = [], {}, set()
    for line, row in rows:
        where, name = f"{table}:{line}", Path(row["FileName"]).stem
        labelled.add(name)
        if name not in audio:
            left_out["labelled, but no audio"].append(row["FileName"])
            continue
        split = PARTITIONS.get(row["Split_Set"].lower().replace(" ", ""))
        if split is None:
            raise InputError(f"{where}: Split_Set “{row['Split_Set']}” is unknown; it must be Train, Development, Test1, Test2 or Test3")
        u = entry(row, where, audio[name], dict(votes.get(row["FileName"], {})), left_out)
        if args.classes and u.emotion not in args.classes:
            left_out["another class, or no agreement"].append(u.path)
        elif args.unknown_speakers == "leave-out" and u.speaker == UNKNOWN_SPEAKER:
            left_out["unknown speaker"].append(u.path)
        else:
            entries.append(u)
            split_of[u.id] = "test" if split == args.test else split
    for name in sorted(set(audio) - labelled):
        left_out["audio without labels"].append(audio[name])
    build.check_found(entries, args.audio_dir, "labelled utterances with audio")

    def splits(utterances):
        result = defaultdict(list)
        for u in utterances:
            result[split_of[u.id]].append(u)
        for needed in ("train", "valid"):
            if needed not in result:
                raise InputError(f"{table}: lists no utterance with audio of the partition {needed}; complete the release")
        return {"": dict(result)}

    build.write(args, "msp_podcast", entries, splits, scales={name: build.unit_scale(*SCALE) for name in DIMENSIONS}, left_out=left_out)


if __name__ == "__main__":
    main()
