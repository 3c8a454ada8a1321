"""manifests/emobox.py: EmoBox's folds of a corpus, and what they share."""

import json

import numpy as np
import pytest
import soundfile
from scripts import run

from emohubert.corpus.manifest import read_corpus, read_dictionary, read_split, splits_of


def fold(folder, k, corpus, **parts):
    (folder / f"fold_{k}").mkdir(parents=True)
    for split, files in parts.items():
        rows = [{"key": f, "dataset": corpus, "wav": f"downloads/{corpus}/{f}", "emo": f.split("_")[2], "length": 0.3} for f in files]
        (folder / f"fold_{k}" / f"{corpus}_{split}_fold_{k}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (folder / f"fold_{k}" / f"{corpus}_{split}_fold_{k}.json").write_text("{}")
    (folder / "label_map.json").write_text('{"ANG": "Angry", "SAD": "Sad"}')


@pytest.fixture
def clips(tmp_path):
    names = [
        f"AudioWAV/10{actor:02}_{sentence}_{emotion}_XX.wav"
        for actor in range(1, 6)
        for sentence in ("IEO", "TSI")
        for emotion in ("ANG", "SAD")
    ]
    (tmp_path / "audio/AudioWAV").mkdir(parents=True)
    for i, name in enumerate(names):
        soundfile.write(tmp_path / "audio" / name, np.random.default_rng(i).uniform(-0.5, 0.5, 4800), 16000)
    return names


def test_folds_as_published_with_what_they_share(clips, tmp_path, capsys):
    train, test = [c for c in clips if "_IEO_" in c], [c for c in clips if "_TSI_" in c]
    fold(tmp_path / "cremad", 1, "cremad", train=[*train, "AudioWAV/1099_IEO_ANG_XX.wav"], test=test)
    fold(tmp_path / "cremad", 2, "cremad", train=clips[:12], valid=clips[12:16], test=clips[16:])
    out = tmp_path / "m"
    assert run("manifests/emobox.py", tmp_path / "audio", out, "--folds", tmp_path / "cremad") == 0
    shared = [line for line in capsys.readouterr().err.splitlines() if "leak of speaker" in line]
    assert len(shared) == 2 and all("/fold1/" in line for line in shared), "valid and test of the first fold have training's speakers"
    first = {name: read_split(out / "fold1", name) for name in splits_of(out / "fold1")}
    assert {name: len(s) for name, s in first.items()} == {"train": 8, "valid": 2, "test": 10} and first["test"].paths == test
    assert sorted([*first["train"].paths, *first["valid"].paths]) == sorted(train)
    assert first["test"].speakers == [c[9:13] for c in test] and set(first["test"].emotions) == {"Angry", "Sad"}
    assert [read_split(out / "fold2", name).paths for name in ("train", "valid", "test")] == [clips[:12], clips[12:16], clips[16:]]
    assert len(read_split(out, "all")) == 20 and read_dictionary(out / "fold2" / "dict.spk.txt") == ["1001", "1002", "1003"]
    assert read_corpus(out)["corpus"] == "crema_d", "its speakers are those of manifests/crema_d.py"
    assert read_corpus(out)["left_out"] == {"listed, but no audio": ["AudioWAV/1099_IEO_ANG_XX.wav"]}
    assert run("tools/check_manifest.py", out) == 2 and run("tools/check_manifest.py", out, "--allow", "speaker") == 0


def test_other_corpora_and_bad_files(clips, tmp_path, capsys):
    folds, arguments = tmp_path / "other", ("manifests/emobox.py", tmp_path / "audio", tmp_path / "m", "--folds", tmp_path / "other")
    assert run(*arguments) == 2 and "holds no fold_*/NAME_train_fold_*.jsonl" in capsys.readouterr().err.splitlines()[-1]
    fold(folds, 1, "other", train=[f"speech/{c}" for c in clips[:8]], test=clips[8:])
    assert run(*arguments) == 0 and set(read_split(tmp_path / "m", "all").speakers) == {"<unk>"}
    assert run(*arguments, "--speaker", r"10(\d)(x)?(\d)_") == 0
    assert set(read_split(tmp_path / "m", "all").speakers) == {f"0{actor}" for actor in range(1, 6)}
    path = folds / "fold_1" / "other_test_fold_1.jsonl"
    for text, message in (
        ('{"wav": 1}\n', "jsonl:1: not a line such as"),
        ('{"dataset": "x", "wav": "a", "emo": "b", "start_time": 1}', "names a part of a"),
    ):
        path.write_text(text)
        assert run(*arguments) == 2 and message in capsys.readouterr().err.splitlines()[-1]
