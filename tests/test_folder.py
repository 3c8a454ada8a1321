"""The manifest of a folder of speech without labels."""

import pytest
import soundfile
from scripts import run

from emohubert.corpus.audio import SAMPLE_RATE
from emohubert.corpus.manifest import UNKNOWN_SPEAKER, read_split


@pytest.fixture
def folder(tmp_path):
    for speaker in ("f1", "m2"):
        (tmp_path / "speech" / speaker).mkdir(parents=True)
        for i in range(50):
            soundfile.write(tmp_path / "speech" / speaker / f"{i:02}.wav", [0.1] * (SAMPLE_RATE // 4 + i), SAMPLE_RATE)
    return tmp_path / "speech"


def test_every_file_is_in_one_split_with_its_speaker(folder, tmp_path):
    assert run("manifests/folder.py", folder, tmp_path / "m", "--valid", 0.2, "--speaker", "/([^/]+)/", "--seed", 3) == 0
    parts = [read_split(tmp_path / "m", name) for name in ("train", "valid")]
    paths = [path for part in parts for path in part.paths]
    assert sorted(paths) == [f"{s}/{i:02}.wav" for s in ("f1", "m2") for i in range(50)]
    assert [s for part in parts for s in part.speakers] == [path.split("/")[0] for path in paths]
    assert 10 < len(parts[1]) < 35
    before = (tmp_path / "m" / "valid.tsv").read_bytes()
    assert run("manifests/folder.py", folder, tmp_path / "m", "--valid", 0.2, "--speaker", "/([^/]+)/", "--seed", 3, "--overwrite") == 0
    assert (tmp_path / "m" / "valid.tsv").read_bytes() == before


def test_without_a_pattern_speakers_are_unknown(folder, tmp_path):
    assert run("manifests/folder.py", folder, tmp_path / "m") == 0
    assert set(read_split(tmp_path / "m", "train").speakers) == {UNKNOWN_SPEAKER}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--valid", "0"), "--valid 0.0: not a share"),
        (("--speaker", "f1"), "has no group"),
        (("--speaker", "(f1"), "not a regular expression"),
    ],
)
def test_bad_options_are_one_line(folder, tmp_path, capsys, options, message):
    assert run("manifests/folder.py", folder, tmp_path / "m", *options) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and message in error[-1]
