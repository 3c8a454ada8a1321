#!/usr/bin/env python3
"""Manifests of any corpus of EmoBox (https://github.com/emo-box/EmoBox), in its folds.

FOLDS is EmoBox's folder of the corpus, such as EmoBox/data/cremad: fold_1/cremad_train_fold_1.jsonl and so on, and
label_map.json, which names the classes. AUDIO_DIR stands for downloads/CORPUS in its paths; a recording that is not there is
looked for by its name in all of AUDIO_DIR. Where EmoBox has no validation part, a fifth of the training part is drawn by
chance, as EmoBox does. Its files do not name speakers: for cremad, emodb, iemocap and ravdess they are read from the file
names, for others by --speaker. What training shares with the test is reported, and is EmoBox's own: its fold of CREMA-D has
its speakers on both sides.

Z. Ma et al., “EmoBox: Multilingual multi-corpus speech emotion recognition toolkit and benchmark”, Interspeech 2024.
"""

import json
import logging
import re
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import command
from emohubert.core.errors import InputError
from emohubert.core.files import natural, read_json
from emohubert.corpus import build, check
from emohubert.corpus.manifest import UNKNOWN_SPEAKER, Utterance
from emohubert.corpus.tables import read_text

FILE = re.compile(r"(?P<corpus>.+)_(?P<split>train|valid|test)_fold_\d+\.jsonl")
SPEAKERS = {
    "cremad": r"/(\d{4})_[A-Z]{3}_",
    "emodb": r"/(\d\d)[ab]\d\d[A-Z]",
    "iemocap": r"/(Ses0\d)\w+_([FM])\d+\.",
    "ravdess": r"-(\d\d)\.\w+$",
}
OURS = {"cremad": "crema_d"}  # names of corpora that our scripts call otherwise; speakers are called alike


def read_part(path):
    """(corpus, path below AUDIO_DIR, class) of each line of a file; parts of recordings are refused."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            row = json.loads(line)
            found = row["dataset"], re.sub(r"^downloads/[^/]+/", "", row["wav"]), row["emo"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f'{path}:{number}: not a line such as {{"dataset": …, "wav": …, "emo": …}}; restore the file') from None
        if "start_time" in row:
            raise InputError(f"{path}:{number}: names a part of {row['wav']}; cut the recordings, and use manifests/table.py")
        yield found


def read_folds(folder, audio_dir, pattern, left_out):
    """(name of the corpus, {path: Utterance without length}, {fold: {split: paths}})."""
    names = read_json(folder / "label_map.json") if (folder / "label_map.json").is_file() else {}
    corpus, entries, folds, by_name = "emobox", {}, {}, defaultdict(list)
    for audio in build.find_audio(audio_dir, left_out):
        by_name[Path(audio).stem].append(audio)
    for path in sorted(folder.glob("fold_*/*.jsonl"), key=lambda p: natural(str(p))):
        if not (match := FILE.fullmatch(path.name)):
            continue
        part = folds.setdefault(path.parent.name.replace("_", ""), {})[match["split"]] = []
        for corpus, listed, emotion in read_part(path):
            named = by_name[Path(listed).stem]
            if listed not in named and len(named) != 1:
                left_out["listed, but no audio" if not named else "listed, but several recordings of this name"].append(listed)
                continue
            audio = listed if listed in named else named[0]
            found = re.search(pattern or SPEAKERS.get(corpus, "$."), f"/{audio}")
            speaker = "".join(found.groups("")) if found else ""
            entries[audio] = Utterance(audio, 0, speaker or UNKNOWN_SPEAKER, names.get(emotion, emotion))
            part.append(audio)
    if not folds or not all({"train", "test"} <= parts.keys() for parts in folds.values()):
        raise InputError(
            f"{folder}: holds no fold_*/NAME_train_fold_*.jsonl with its NAME_test_…; give EmoBox's folder of the corpus as --folds"
        )
    return OURS.get(corpus, corpus), entries, folds


@command
def main(argv=None):
    import numpy as np

    parser = build.parser(__doc__, audio_help="folder of the corpus, in place of downloads/CORPUS")
    parser.add_argument("--folds", type=Path, required=True, metavar="FOLDS", help="EmoBox's folder of the corpus, with fold_1, …")
    parser.add_argument(
        "--speaker", type=build.group, metavar="REGEX", help="regular expression whose groups, in the path, are the speaker"
    )
    args = parser.parse_args(argv)
    left_out = build.LeftOut()
    corpus, entries, folds = read_folds(args.folds, args.audio_dir, args.speaker, left_out)
    build.check_found(entries, args.audio_dir, "audio that the folds list")

    def splits(measured):
        known, result = {u.id: u for u in measured}, {}
        for fold, parts in folds.items():
            own = {name: [known[entries[p].id] for p in paths if entries[p].id in known] for name, paths in parts.items()}
            if "valid" not in parts:
                drawn = np.random.default_rng([args.seed, 31]).permutation(len(own["train"])) < len(own["train"]) // 5
                placed = [(u, "valid" if v else "train") for u, v in zip(own["train"], drawn, strict=True)]
                own |= {name: [u for u, part in placed if part == name] for name in ("train", "valid")}
            result[fold] = own
        return result

    build.write(args, corpus, list(entries.values()), splits, everything=True, left_out=left_out, source=folds)
    for problem in check.check([args.out_dir], decode=False).problems:
        logging.getLogger("emohubert").warning("%s", problem)


if __name__ == "__main__":
    main()
