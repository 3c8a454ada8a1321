"""manifests/nemo.py against the official table, and on a small release with what is odd about it."""

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scripts import ROOT, run

from emohubert.corpus.manifest import read_corpus, read_dictionary, read_split

DATA = Path(os.environ.get("EMOHUBERT_DATA", ROOT.parent / "shared/data")) / "nemo"
CLASSES = {"angry": 749, "fearful": 736, "happy": 749, "neutral": 809, "sad": 769, "surprised": 669}
HEADER = ("file_id", "emotion", "raw_text", "normalized_text", "speaker_id", "gender", "age")
PEOPLE = {"AB0": "female", "CD0": "male", "EF0": "female", "GH0": "male", "IJ0": "female", "KL0": "male"}


def check_folds(manifest, sexes, folds):
    """Every speaker is tested once; nobody is in two splits; a woman and a man validate. Returns the tested ids."""
    tested, ids = [], []
    for k in range(1, folds + 1):
        splits = {name: read_split(manifest / f"fold{k}", name) for name in ("train", "valid", "test")}
        who = {name: set(split.speakers) for name, split in splits.items()}
        assert set.union(*who.values()) == set(sexes) and sum(map(len, who.values())) == len(sexes)
        assert sorted(sexes[s] for s in who["valid"]) == ["female", "male"]
        assert read_dictionary(manifest / f"fold{k}/dict.spk.txt") == sorted(who["train"])
        tested += who["test"]
        ids += splits["test"].ids
    assert sorted(tested) == sorted(sexes)
    return ids


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the nEMO recordings are not here (set EMOHUBERT_DATA)")
def test_the_official_metadata(tmp_path):
    with (DATA / "data.tsv").open(encoding="utf-8", newline="") as f:
        official = {row["file_id"].removesuffix(".wav"): row for row in csv.DictReader(f, delimiter="\t")}
    assert run("manifests/nemo.py", DATA, tmp_path) == 0
    everything = read_split(tmp_path, "all")
    assert len(everything) == 4481 and Counter(everything.emotions) == CLASSES
    ids = [Path(path).stem for path in everything.paths]
    assert sorted(ids) == sorted(official)
    assert Counter(everything.speakers) == Counter(row["speaker_id"].strip() for row in official.values())
    for i, name in enumerate(ids):
        assert (everything.speakers[i], everything.meta["sex"][i]) == (official[name]["speaker_id"].strip(), official[name]["gender"])
        assert name.startswith(everything.speakers[i])
    sexes = dict(zip(everything.speakers, everything.meta["sex"], strict=True))
    assert Counter(sexes.values()) == {"female": 4, "male": 5}
    assert sorted(check_folds(tmp_path, sexes, 3)) == sorted(everything.ids)
    for k in (1, 2, 3):
        assert [len(set(read_split(tmp_path / f"fold{k}", name).speakers)) for name in ("train", "valid", "test")] == [4, 2, 3]
    assert run("tools/check_manifest.py", tmp_path, "--headers-only") == 0


@pytest.fixture
def release(tmp_path):
    """Six speakers; the table lists .wav and speaker ids with spaces, the audio is Ogg."""
    rows = [
        (f"{speaker}_{emotion}_{i}.wav", emotion, "„Zdanie”.", "zdanie", f"        {speaker}", sex, 23)
        for speaker, sex in PEOPLE.items()
        for i, emotion in enumerate(("anger", "sadness", "surprised"))
    ]
    (tmp_path / "nemo/samples").mkdir(parents=True)
    for n, (name, *_) in enumerate(rows):
        wave = np.random.default_rng(n).uniform(-0.5, 0.5, 24_000)
        soundfile.write(tmp_path / f"nemo/samples/{Path(name).stem}.ogg", wave, 24_000, format="OGG", subtype="OPUS")
    with (tmp_path / "nemo/data.tsv").open("w", encoding="utf-8", newline="") as f:
        csv.writer(f, delimiter="\t").writerows([HEADER, *rows, ("AB0_fear_9.wav", "fear", "x", "x", "        AB0", "female", 23)])
    return tmp_path / "nemo"


def test_a_small_release(release, tmp_path, capsys):
    soundfile.write(release / "samples/XX0_anger_1.ogg", np.zeros(24_000), 24_000)
    assert run("manifests/nemo.py", release, tmp_path / "m") == 0
    everything = read_split(tmp_path / "m", "all")
    assert Counter(everything.emotions) == dict.fromkeys(("angry", "sad", "surprised"), 6)
    assert dict(zip(everything.speakers, everything.meta["sex"], strict=True)) == PEOPLE
    assert set(everything.meta["sentence"]) == {"„Zdanie”."} and set(everything.n_samples) == {16_000}
    left_out = read_corpus(tmp_path / "m")["left_out"]
    assert left_out == {"not in data.tsv": ["samples/XX0_anger_1.ogg"], "in data.tsv, but no audio": ["AB0_fear_9"]}
    check_folds(tmp_path / "m", PEOPLE, 3)
    assert run("manifests/nemo.py", release, tmp_path / "m", "--folds", 6) == 0 and (tmp_path / "m/fold6").is_dir()
    assert run("manifests/nemo.py", release, tmp_path / "m", "--protocol", "speaker-independent", "--classes", "angry", "sad") == 0
    assert set(read_split(tmp_path / "m", "train").emotions) == {"angry", "sad"}
    assert run("manifests/nemo.py", release, tmp_path / "m", "--folds", 7) == 2
    assert "7 folds of 6 speakers" in capsys.readouterr().err


def test_faults_name_the_table(release, tmp_path, capsys):
    table = release / "data.tsv"
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("\tsadness\t", "\tsorrow\t", 1), encoding="utf-8")
    assert run("manifests/nemo.py", release, tmp_path / "m") == 2
    assert f"error: {table}:3: emotion “sorrow” is not one of anger" in capsys.readouterr().err
    table.write_text(text.replace("speaker_id", "speaker", 1), encoding="utf-8")
    assert run("manifests/nemo.py", release, tmp_path / "m") == 2 and "has no column “speaker_id”" in capsys.readouterr().err
    table.unlink()
    assert run("manifests/nemo.py", release, tmp_path / "m") == 2 and "data.tsv: no such file" in capsys.readouterr().err
