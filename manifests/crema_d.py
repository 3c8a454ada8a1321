#!/usr/bin/env python3
"""Manifests of CREMA-D (https://github.com/CheyneyComputerScience/CREMA-D), Open Database License.

91 actors speak twelve sentences in six emotions, some at three levels of intensity; 7 442 clips, 16 kHz. AUDIO_DIR is the
release: AudioWAV/, SentenceFilenames.csv, VideoDemographics.csv, processedResults/tabulatedVotes.csv (the CSV files may lie
anywhere below AUDIO_DIR or --metadata). File names: actor, sentence, intended emotion, intended intensity.

The crowd that only heard the clips gives: the class of --labels crowd; its votes (.votes, and their shares as dimensions
soft_CLASS); and the mean level it perceived, 0–100, as the dimension intensity, 0–1.

H. Cao, D. G. Cooper, M. K. Keutmann, R. C. Gur, A. Nenkova, R. Verma, “CREMA-D: Crowd-sourced Emotional Multimodal Actors
Dataset”, IEEE Transactions on Affective Computing 5(4), 2014.
"""

import re
import sys
from math import isfinite
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import command
from emohubert.core.errors import InputError
from emohubert.corpus import build
from emohubert.corpus.manifest import NO_EMOTION, Utterance, as_number
from emohubert.corpus.protocols import balanced_folds, protocol_splits
from emohubert.corpus.tables import need_columns, read_delimited

NAME = re.compile(r"(?P<actor>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)_(?P<level>LO|MD|HI|XX|X)")
EMOTIONS = {"ANG": "angry", "DIS": "disgusted", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
VOTES = {"A": "angry", "D": "disgusted", "F": "fearful", "H": "happy", "N": "neutral", "S": "sad"}
LEVELS = {word[0]: f"mean{word}Resp" for word in ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad")}
INTENSITIES = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified", "X": "unspecified"}
SCALE = (0, 100)
OWN_PROTOCOLS = {
    "speaker-independent": "one train/valid/test, no speaker in two of them (60/20/20 of the speakers, each sex and race alike)",
    "random": "60/20/20 of the clips by chance, as in the first report on personalised HuBERT with this corpus; speakers are shared",
    "folds": "five speaker-independent folds, each sex and race alike, and all.*",
}


def read_release(folders, name, needed):
    """(path, rows) of a CSV file of the release, wherever it lies below the folders."""
    path = next((p for folder in folders for p in sorted(folder.rglob(name)) if not p.name.startswith(".")), None)
    if path is None:
        raise InputError(f"{folders[0]}: holds no {name}; put the file of the release there, or name its folder with --metadata")
    columns, rows = read_delimited(path)
    need_columns(path, columns, needed)
    return path, rows


def number(row, column, where):
    """A cell as a number."""
    if not isfinite(value := as_number(row[column])):
        raise InputError(f"{where}: {column} is “{row[column]}”, not a number; restore the file of the release")
    return value


def read_votes(path, rows):
    """Clip → what those who only heard it said: {"class", "votes", "dimensions", "meta"}."""
    votes = {}
    for line, row in rows:
        stimulus = next(iter(row.values()))
        if not re.fullmatch(r"[123]\d{5}", stimulus):
            raise InputError(f"{path}:{line}: “{stimulus}” is not a stimulus number such as 100001; restore the file of the release")
        if stimulus[0] != "1":
            continue  # 2…: face alone, 3…: face and voice
        if row["fileName"] in votes:
            raise InputError(f"{path}:{line}: a second voice-only row of {row['fileName']}; remove one")
        votes[row["fileName"]] = crowd_of(row, f"{path}:{line}")
    return votes


def crowd_of(row, where):
    """What the listeners of a clip said, from its row."""
    counts = {name: number(row, letter, where) for letter, name in VOTES.items()}
    total = sum(counts.values())
    if total <= 0 or min(counts.values()) < 0:
        raise InputError(f"{where}: nobody voted; restore the file of the release")
    level = number(row, "meanEmoResp", where)
    if not SCALE[0] <= level <= SCALE[1]:
        raise InputError(f"{where}: meanEmoResp {level:g} is not in 0–100; restore the file of the release")
    winners = row["emoVote"].split(":")
    if not set(winners) <= set(VOTES):
        raise InputError(f"{where}: emoVote “{row['emoVote']}” is not made of {' '.join(VOTES)}; restore the file of the release")
    levels = {letter: number(row, column, where) for letter, column in LEVELS.items()}
    dimensions = {"intensity": round(build.to_unit(level, *SCALE), 6)}
    dimensions |= {f"soft_{name}": round(count / total, 6) for name, count in counts.items()}
    meta = {"crowd": ":".join(VOTES[w] for w in winners), "responses": row["numResponses"]}
    meta |= {f"votes_{name}": f"{count:g}" for name, count in counts.items()}
    meta |= {f"level_{name}": f"{levels[letter]:.6g}" if levels[letter] >= 0 else "" for letter, name in VOTES.items()}  # -1: nobody
    return {"class": VOTES[winners[0]] if len(winners) == 1 else NO_EMOTION, "votes": counts, "dimensions": dimensions, "meta": meta}


def random_split(utterances, seed):
    """60/20/20 of the clips, by chance alone."""
    import numpy as np

    where = np.random.default_rng([seed, 21]).permutation(len(utterances)) / len(utterances)
    bounds = {"train": (0, 0.6), "valid": (0.6, 0.8), "test": (0.8, 1)}
    return {"": {name: [u for u, x in zip(utterances, where, strict=True) if low <= x < high] for name, (low, high) in bounds.items()}}


@command
def main(argv=None):
    protocols = ("speaker-independent", "random", "both", "folds")
    parser = build.parser(__doc__, protocols, "folder of the release", OWN_PROTOCOLS)
    parser.add_argument("--metadata", type=Path, metavar="DIR", help="folder of the CSV files (default: AUDIO_DIR)")
    parser.add_argument(
        "--labels",
        choices=("intended", "crowd"),
        default="intended",
        help="intended: the emotion in the file name; crowd: what most listeners of the voice alone heard, - where two emotions tie",
    )
    args = parser.parse_args(argv)
    left_out = build.LeftOut()
    folders = [args.metadata or args.audio_dir, args.audio_dir]
    official_path, rows = read_release(folders, "SentenceFilenames.csv", ["Filename"])
    official = {row["Filename"] for _, row in rows}
    people_path, rows = read_release(folders, "VideoDemographics.csv", ["ActorID", "Age", "Sex", "Race", "Ethnicity"])
    people = {row["ActorID"]: row for _, row in rows}
    needed = ["fileName", "numResponses", "emoVote", "meanEmoResp", *VOTES, *LEVELS.values()]
    votes_path, rows = read_release(folders, "tabulatedVotes.csv", needed)
    votes = read_votes(votes_path, rows)

    def entry(path, match):
        clip = match.string
        if clip not in official:
            return f"not in {official_path.name}"
        for table, file, what in ((people, people_path, match["actor"]), (votes, votes_path, clip)):
            if what not in table:
                raise InputError(f"{file}: has no row of {what}; restore the file of the release")
        person, crowd, intended = people[match["actor"]], votes[clip], EMOTIONS[match["emotion"]]
        meta = {"sex": person["Sex"].lower(), "age": person["Age"], "race": person["Race"], "ethnicity": person["Ethnicity"]}
        meta |= {"sentence": match["sentence"], "intended": intended, "intensity": INTENSITIES[match["level"]], **crowd["meta"]}
        emotion = intended if args.labels == "intended" else crowd["class"]
        return Utterance(path, 0, match["actor"], emotion, crowd["dimensions"], meta, crowd["votes"])

    under = "AudioWAV" if (args.audio_dir / "AudioWAV").is_dir() else ""  # the release has MP3 and video as well
    entries = build.entries_by_name(args, "CREMA-D", NAME, entry, left_out, like="1001_IEO_ANG_HI.wav", under=under)
    missing = official - {Path(u.path).stem for u in entries}
    if missing:
        left_out[f"in {official_path.name}, but no audio"] = sorted(missing)

    def group(u):
        return u.meta["sex"], u.meta["race"]

    def splits(utterances):
        if args.protocol == "random":
            return random_split(utterances, args.seed)
        folds = balanced_folds({u.speaker: group(u) for u in utterances}, 5, args.seed) if args.protocol == "folds" else None
        return protocol_splits(utterances, args.protocol, args.seed, folds, group)

    scales = {"intensity": build.unit_scale(*SCALE), **{f"soft_{name}": {"min": 0, "max": 1} for name in VOTES.values()}}
    build.write(args, "crema_d", entries, splits, everything=args.protocol == "folds", scales=scales, left_out=left_out)


if __name__ == "__main__":
    main()
