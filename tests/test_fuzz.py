"""Files with random damage, through the functions behind the programs: they are read right or refused by InputError, and nothing is lost
in silence where the file itself says what should be there."""

import contextlib
import io
import json
import os
import shutil
import time

import numpy as np
import pytest
import soundfile
from corpus import make_corpus, make_labels
from scripts import load

from emohubert.core.errors import InputError
from emohubert.corpus import audio
from emohubert.corpus.check import check
from emohubert.corpus.frame_labels import read_frame_labels
from emohubert.corpus.manifest import read_corpus, read_counts, read_split
from emohubert.corpus.tables import read_delimited

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("FUZZ_SEED", 0))  # other numbers try other damage
LONGEST = 5  # seconds that a small file may take; a hang is the other thing that must not happen


def mutate(content, rng, first=0, last=None):
    """(kind, content with some bytes from `first` to `last` changed)."""
    data = bytearray(content)
    last = len(data) if last is None else min(last, len(data))
    kind = rng.choice(["flip", "cut", "remove", "double", "swap", "zero"])
    i, j = sorted(int(x) for x in rng.integers(first, last, 2))
    n = int(rng.integers(1, 200))
    if kind == "flip":
        for at in rng.integers(first, last, rng.integers(1, 4)):
            data[at] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[i:]
    elif kind == "remove":
        del data[i : i + n]
    elif kind == "double":
        data[i:i] = data[i : i + n]
    elif kind == "swap":
        data[i], data[j] = data[j], data[i]
    else:
        data[i : i + n] = bytes(len(data[i : i + n]))
    return kind, bytes(data)


def mutate_lines(content, rng):
    """(kind, content with a line removed, doubled, moved, emptied, or cut short; or as `mutate`)."""
    lines = content.splitlines(keepends=True)
    kind = rng.choice(["remove line", "double line", "swap lines", "empty line", "cut line", "bytes", "bytes"])
    i, j = (int(x) for x in rng.integers(0, len(lines), 2))
    if kind == "bytes":
        return mutate(content, rng)
    if kind == "remove line":
        del lines[i]
    elif kind == "double line":
        lines.insert(i, lines[i])
    elif kind == "swap lines":
        lines[i], lines[j] = lines[j], lines[i]
    elif kind == "empty line":
        lines[i] = b"\n"
    else:
        lines[i] = lines[i][: int(rng.integers(0, len(lines[i])))] + b"\n"
    return kind, b"".join(lines)


def outcome(function, *arguments):
    """What a function gives, or its InputError; any other exception is a failure."""
    begin = time.monotonic()
    try:
        result = function(*arguments)
    except InputError as error:
        result = error
    assert time.monotonic() - begin < LONGEST
    return result


def refused(result):
    return isinstance(result, InputError)


# (format, subtype, bytes of header: damage there may be beyond finding out, where nothing else in the file says the same)
FORMATS = {
    "pcm.wav": ("WAV", "PCM_16", 100),
    "float.wav": ("WAV", "FLOAT", 100),
    "law.wav": ("WAV", "ULAW", 100),
    "wavex.wav": ("WAVEX", "PCM_24", 120),
    "a.rf64": ("RF64", "PCM_16", 140),
    "a.aiff": ("AIFF", "PCM_16", 100),
    "a.caf": ("CAF", "PCM_16", 4200),
    "a.w64": ("W64", "PCM_16", 140),
    "a.au": ("AU", "PCM_16", 40),
    "a.sph": ("NIST", "PCM_16", 1024),
    "a.mp3": ("MP3", "MPEG_LAYER_III", 500),
    "a.flac": ("FLAC", "PCM_16", 42),
    "24.flac": ("FLAC", "PCM_24", 42),
    "a.ogg": ("OGG", "VORBIS", 0),
    "a.opus": ("OGG", "OPUS", 0),
}
CHECKED = ("FLAC", "OGG")  # every byte of the audio is under a checksum


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_audio(name, tmp_path, capfd):
    kind, subtype, header = FORMATS[name]
    rng = np.random.default_rng([SEED, *name.encode()])
    t = np.arange(9000) / 16_000
    soundfile.write(tmp_path / name, 0.3 * np.sin(1500 * t + 900 * t**2) + 0.02 * rng.standard_normal(9000), 16_000, subtype, format=kind)
    content, whole = (tmp_path / name).read_bytes(), audio.read(tmp_path / name)
    for i in range(40):
        in_header = i % 2 and header
        how, damaged = mutate(content, rng, *((0, min(header, 100)) if in_header else (header, None)))
        (tmp_path / name).write_bytes(damaged)
        length, heard, checked = (outcome(look, tmp_path / name) for look in (audio.probe, audio.read, audio.content_of))
        what = f"{name}, example {i}: {how}"
        if refused(heard):
            assert refused(checked) or in_header, what
            continue
        assert all(refused(other) or other == len(heard) for other in (length, checked if refused(checked) else checked[1])), what
        if in_header or refused(checked):
            continue
        assert len(heard) >= len(whole), f"{what}: {len(heard)} of {len(whole)} samples are left, and nobody says so"
        if kind in CHECKED or how == "cut":
            np.testing.assert_array_equal(heard, whole, err_msg=what)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for i in range(8):
        soundfile.write(folder / f"r{i}.wav", np.random.default_rng(i).uniform(-0.5, 0.5, 8000 + i), 16_000)
    return folder


@pytest.mark.parametrize("timed", [False, True])
def test_damaged_tables(timed, recordings, tmp_path):
    rng, table, program = np.random.default_rng([SEED, timed]), tmp_path / "t.csv", load("manifests/table.py")
    lines = ["path,speaker,split,emotion,arousal,note" + ",start,end" * timed]
    for i, split in enumerate(("train", "Train", "train", "dev", "val", "test", "evaluation", "test_b")):
        lines.append(f'r{i}.wav,p{i // 2},{split},{"sad" if i % 2 else "happy"},{i / 8},"a, ""b""é"' + f",0.0{i},0.4" * timed)
    content = "\n".join([*lines, ""]).encode()
    passed = 0
    for i in range(50):
        kind, damaged = mutate_lines(content, rng)
        table.write_bytes(damaged)
        rows = outcome(read_delimited, table)
        out, log = tmp_path / f"m{i}", io.StringIO()
        with contextlib.redirect_stderr(log):
            try:
                status = program.main([str(recordings), str(out), "--table", str(table), "--workers", "1"]) or 0
            except SystemExit as end:
                status = end.code
        what = f"example {i}, {kind}: {log.getvalue()}"
        if status:
            assert status == 2 and log.getvalue().splitlines()[-1].startswith("error: "), what
            assert not list(out.glob("*.*")), what
            continue
        passed += 1
        facts = json.loads((out / "corpus.json").read_text())
        assert facts["utterances"] + sum(map(len, facts["left_out"].values())) == len(rows[1]), what
        problems = [p for p in check([out], decode=False).errors if "is not in " not in p]  # a class of one split alone may be so
        assert not problems, f"{what}: {problems}"
        shutil.rmtree(out)
    assert passed > 10


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest")
    manifest = make_corpus(folder, seconds=(0.1, 0.3), train=8, valid=2, test=2)
    make_labels(manifest, folder / "labels")
    return manifest


def everything(manifest):
    """All that is read of a manifest directory, and what a check of it says."""
    split = read_split(manifest, "train")
    columns = [split.paths[:], split.n_samples.tolist(), split.speakers[:], split.emotions[:], split.ids[:]]
    columns += (
        [{n: v.tolist() for n, v in split.dimensions.items()}, {n: list(v) for n, v in split.meta.items()}] if split.dimensions else []
    )
    counts = [read_counts(manifest / f"dict.{kind}.txt") for kind in ("emo", "spk")]
    return [columns, counts, read_corpus(manifest)], check([manifest], decode=False).errors


@pytest.mark.parametrize(
    "name", ["train.tsv", "train.spk", "train.emo", "train.dim", "train.meta.tsv", "dict.emo.txt", "dict.spk.txt", "corpus.json"]
)
def test_damaged_manifests(name, manifest):
    rng, path = np.random.default_rng([SEED, *name.encode()]), manifest / name
    content, (whole, _) = path.read_bytes(), everything(manifest)
    try:
        for i in range(25):
            kind, damaged = mutate_lines(content, rng)
            path.write_bytes(damaged)
            result = outcome(everything, manifest)
            if refused(result) or result[1] or name.startswith(("dict", "corpus")):
                continue
            lines = [len(column) for column in result[0][0][:5]]
            assert lines == [len(whole[0][0])] * 5, f"example {i}: {kind}"  # no line is lost or there twice
            if name == "train.tsv":
                assert sorted(zip(*result[0][0][:2], strict=True)) == sorted(zip(*whole[0][:2], strict=True)), f"example {i}: {kind}"
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("facts", ["[]", "3", '{"label_scales": [1]}', '{"label_scales": {"arousal": 1}}', '"x"', "null"])
def test_facts_of_another_shape(facts, manifest):
    content = (manifest / "corpus.json").read_bytes()
    try:
        (manifest / "corpus.json").write_text(facts)
        with pytest.raises(InputError, match="corpus.json: is not what a corpus script writes"):
            read_corpus(manifest)
    finally:
        (manifest / "corpus.json").write_bytes(content)


@pytest.mark.parametrize("name", ["train.km", "dict.km.txt"])
def test_damaged_labels(name, manifest):
    labels = manifest.parent / "labels"
    rng, path = np.random.default_rng([SEED, *name.encode()]), labels / name
    content, n_samples = path.read_bytes(), read_split(manifest, "train").n_samples

    def read():
        found = read_frame_labels(labels / "train.km", list(read_counts(labels / "dict.km.txt")), n_samples)
        return [found.targets(i, 0, 5).tolist() for i in range(len(found))], len(found.labels)

    _, frames = read()
    try:
        for i in range(50):
            kind, damaged = mutate_lines(content, rng)
            path.write_bytes(damaged)
            result = outcome(read)
            if not refused(result):
                assert len(result[0]) == len(n_samples) and abs(result[1] - frames) <= 2 * len(n_samples), f"example {i}: {kind}"
    finally:
        path.write_bytes(content)
