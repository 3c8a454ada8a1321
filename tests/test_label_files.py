"""The staged tools and fairseq's simple_kmeans scripts read each other's files; interrupted ones are named."""

import json

import joblib
import numpy as np
import pytest
import simple_kmeans
import soundfile
from corpus import make_corpus
from scripts import run

from emohubert.core.errors import InputError
from emohubert.corpus.manifest import read_split
from emohubert.pseudo_labels import label_in_shards
from emohubert.pseudo_labels.centroid_files import write_joblib
from emohubert.pseudo_labels.feature_shards import merge_labels, shard_range
from emohubert.pseudo_labels.kmeans import KMeans, fit

N = 3


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), seconds=(0.2, 0.9), train=13, valid=4, test=4)


@pytest.fixture(scope="module")
def features(manifest, tmp_path_factory):
    """MFCC shards by our tool."""
    folder = tmp_path_factory.mktemp("features")
    for rank in range(N):
        assert run("tools/dump_features.py", manifest, "train", folder, "--mfcc", "--nshard", N, "--rank", rank) == 0
    return folder / "mfcc"


@pytest.fixture(scope="module")
def stock_features(manifest, tmp_path_factory):
    """MFCC shards by fairseq's script."""
    folder = tmp_path_factory.mktemp("stock")
    script = simple_kmeans.load("dump_mfcc_feature")
    for rank in range(N):
        script.main(str(manifest), "train", N, rank, str(folder), 16_000)
    return folder


def copy(folder, to):
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize(("total", "shards"), [(13, 3), (7, 7), (1000, 16), (339, 10), (5, 2), (25, 10)])
def test_shard_ranges_are_fairseqs(total, shards):
    stock = simple_kmeans.load("feature_utils").get_shard_range
    assert [shard_range(total, shards, r) for r in range(shards)] == [stock(total, shards, r) for r in range(shards)]


def test_shards_that_cannot_be_are_errors():
    with pytest.raises(InputError, match="shard . is empty; use fewer"):
        [shard_range(3, 7, r) for r in range(7)]
    with pytest.raises(InputError, match="4 shards, 0 to 3"):
        shard_range(10, 4, 4)


def test_features_and_lengths_are_fairseqs_bit_for_bit(features, stock_features):
    for rank in range(N):
        name = f"train_{rank}_{N}"
        ours, theirs = np.load(features / f"{name}.npy"), np.load(stock_features / f"{name}.npy")
        assert ours.dtype == theirs.dtype == np.float32
        assert ours.tobytes() == theirs.tobytes()
        assert (features / f"{name}.len").read_bytes() == (stock_features / f"{name}.len").read_bytes()


def test_features_are_written_in_windows_of_bounded_memory(manifest, features, tmp_path, monkeypatch):
    monkeypatch.setattr(label_in_shards, "_WINDOW_BYTES", 4 * 39 * 100)
    assert run("tools/dump_features.py", manifest, "train", tmp_path, "--mfcc", "--nshard", N, "--rank", 1) == 0
    for ending in ("npy", "len"):
        name = f"train_1_{N}.{ending}"
        assert (tmp_path / "mfcc" / name).read_bytes() == (features / name).read_bytes()


def test_fairseqs_scripts_run_on_our_features(features, tmp_path):
    simple_kmeans.load("learn_kmeans").learn_kmeans(
        str(features), "train", N, str(tmp_path / "km.bin"), 8, 0, -1, "k-means++", 100, 10_000, 0.0, 2, 0.0, 100
    )
    stock = simple_kmeans.load("dump_km_label")
    for rank in range(N):
        stock.dump_label(str(features), "train", str(tmp_path / "km.bin"), N, rank, str(tmp_path / "stock"))
        assert run("tools/dump_labels.py", features, "train", tmp_path / "km.bin", N, rank, tmp_path / "ours") == 0
        name = f"train_{rank}_{N}.km"
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes()
    assert run("tools/merge_labels.py", tmp_path / "ours", "train", N) == 0
    merged = b"".join((tmp_path / "stock" / f"train_{r}_{N}.km").read_bytes() for r in range(N))
    assert (tmp_path / "ours" / "train.km").read_bytes() == merged
    assert [line.split()[0] for line in (tmp_path / "ours" / "dict.km.txt").read_text().splitlines()] == [str(i) for i in range(8)]


def test_our_stages_run_on_fairseqs_features(stock_features, tmp_path):
    arguments = (stock_features, "train", N, tmp_path / "km.npz", "--clusters", 8, "--joblib", tmp_path / "km.bin")
    assert run("tools/learn_kmeans.py", *arguments) == 0
    stock = simple_kmeans.load("dump_km_label")
    for rank in range(N):
        assert run("tools/dump_labels.py", stock_features, "train", tmp_path / "km.npz", N, rank, tmp_path / "ours") == 0
        stock.dump_label(str(stock_features), "train", str(tmp_path / "km.bin"), N, rank, str(tmp_path / "stock"))
        assert not (tmp_path / "ours" / "frames.km.json").exists()  # fairseq's features do not say their hop
        name = f"train_{rank}_{N}.km"
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes()


def test_the_joblib_file_is_a_working_scikit_learn_model(features, tmp_path):
    frames = np.load(features / f"train_0_{N}.npy")
    model = fit(frames, 6)
    write_joblib(model, tmp_path / "km.bin")
    assert np.array_equal(np.bincount(joblib.load(tmp_path / "km.bin").predict(frames), minlength=6), model.sizes)


def test_stages_give_the_labels_of_make_labels(manifest, features, tmp_path):
    assert run("tools/make_labels.py", manifest, tmp_path / "all", "--mfcc", "--clusters", 8, "--splits", "train") == 0
    whole = tmp_path / "all" / "mfcc" / "km8"
    for rank in range(N):
        assert run("tools/dump_labels.py", features, "train", whole / "kmeans.npz", N, rank, tmp_path / "lab") == 0
    path, lines = merge_labels(tmp_path / "lab", "train", N, 13)
    assert lines == 13
    assert path.read_bytes() == (whole / "train.km").read_bytes()
    for name in ("dict.km.txt", "frames.km.json"):
        assert (tmp_path / "lab" / name).read_bytes() == (whole / name).read_bytes()
    assert json.loads((whole / "frames.km.json").read_text()) == {"sample_rate": 16_000, "hop": 160}


def test_missing_shards_are_named(features, tmp_path, capsys):
    folder = copy(features, tmp_path / "f")
    (folder / f"train_2_{N}.len").unlink()
    (folder / f"train_0_{N}.npy").unlink()
    assert run("tools/learn_kmeans.py", folder, "train", N, tmp_path / "km.npz", "--clusters", 4) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {folder}: 2 of {N} shards of “train” are missing or interrupted: 0 2;")
    fit(np.load(features / f"train_0_{N}.npy"), 4).save(tmp_path / "km.npz")
    assert run("tools/dump_labels.py", folder, "train", tmp_path / "km.npz", N, 2, tmp_path / "lab") == 2
    assert f"train_2_{N}.len: shard 2 of {N} is missing" in capsys.readouterr().err.splitlines()[-1]


def interruptions():
    def cut_array(path):
        path.with_suffix(".npy").write_bytes(path.with_suffix(".npy").read_bytes()[:-100])

    def cut_header(path):
        path.with_suffix(".npy").write_bytes(b"\x93NUMPY\x01\x00")

    def cut_lengths(path):
        path.with_suffix(".len").write_text("".join(path.with_suffix(".len").read_text().splitlines(True)[:-1]))

    def garbage(path):
        path.with_suffix(".len").write_text("12\nx\n")

    def objects(path):
        np.save(path.with_suffix(".npy"), np.array([{"a": 1}], dtype=object), allow_pickle=True)

    return [cut_array, cut_header, cut_lengths, garbage, objects]


@pytest.mark.parametrize("interrupt", interruptions(), ids=lambda f: f.__name__)
def test_interrupted_shards_are_named(features, tmp_path, capsys, interrupt):
    folder = copy(features, tmp_path / "f")
    interrupt(folder / f"train_1_{N}.npy")
    assert run("tools/learn_kmeans.py", folder, "train", N, tmp_path / "km.npz", "--clusters", 4) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {folder}/train_1_{N}.")
    assert f"--nshard {N} --rank 1" in error


def test_shards_of_different_kinds_are_refused(features, tmp_path, capsys):
    folder = copy(features, tmp_path / "f")
    stamp = folder / f"train_1_{N}.json"
    content = json.loads(stamp.read_text())
    content["settings"]["features"]["kind"] = "other"
    stamp.write_text(json.dumps(content))
    assert run("tools/learn_kmeans.py", folder, "train", N, tmp_path / "km.npz", "--clusters", 4) == 2
    assert "another kind of features" in capsys.readouterr().err


def test_centroids_of_other_features_are_refused(features, tmp_path, capsys):
    model = KMeans(np.zeros((4, 39), np.float32), features={"kind": "encoder", "layer": 3})
    model.save(tmp_path / "km.npz")
    assert run("tools/dump_labels.py", features, "train", tmp_path / "km.npz", N, 0, tmp_path / "lab") == 2
    assert "fitted on features with kind = encoder, but these have kind = mfcc" in capsys.readouterr().err


def test_label_shards_missing_or_interrupted_are_named(features, manifest, tmp_path, capsys):
    fit(np.load(features / f"train_0_{N}.npy"), 4).save(tmp_path / "km.npz")
    lab = tmp_path / "lab"
    for rank in (0, 2):
        assert run("tools/dump_labels.py", features, "train", tmp_path / "km.npz", N, rank, lab) == 0
    assert run("tools/merge_labels.py", lab, "train", N) == 2
    assert "1 of 3 label shards of “train” are missing: 1;" in capsys.readouterr().err
    assert run("tools/dump_labels.py", features, "train", tmp_path / "km.npz", N, 1, lab) == 0
    path = lab / f"train_1_{N}.km"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(True)[:-1]))
    assert run("tools/merge_labels.py", lab, "train", N) == 2
    assert f"train_1_{N}.km: 4 lines of 5, interrupted" in capsys.readouterr().err
    path.with_suffix(".km.json").unlink()  # as fairseq leaves it
    assert run("tools/merge_labels.py", lab, "train", N, "--manifest-dir", manifest) == 2
    assert f"train_1_{N}.km: 4 lines of 5, interrupted" in capsys.readouterr().err
    path.write_text(whole[:-5])
    assert run("tools/merge_labels.py", lab, "train", N) == 2
    path.write_text(whole)
    assert run("tools/merge_labels.py", lab, "train", N, "--manifest-dir", manifest) == 0


def test_a_second_run_skips_what_is_whole(manifest, features, tmp_path, capsys):
    folder = copy(features, tmp_path / "mfcc")
    times = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert run("tools/dump_features.py", manifest, "train", tmp_path, "--mfcc", "--nshard", N, "--rank", 0) == 0
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == times
    assert "whole and made with these settings" in capsys.readouterr().err
    (folder / f"train_0_{N}.len").unlink()
    assert run("tools/dump_features.py", manifest, "train", tmp_path, "--mfcc", "--nshard", N, "--rank", 0) == 0
    assert (folder / f"train_0_{N}.npy").read_bytes() == (features / f"train_0_{N}.npy").read_bytes()


def test_the_fit_reads_as_many_recordings_as_memory_allows(features, tmp_path):
    budget = 4 * 39 * 200
    assert run("tools/learn_kmeans.py", features, "train", N, tmp_path / "a.npz", "--clusters", 4, "--max-memory", budget) == 0
    model = KMeans.load(tmp_path / "a.npz")
    assert 120 < model.fit["frames"] <= 200
    assert model.fit["recordings"] < 13


def test_a_recording_under_one_frame_has_an_empty_line(tmp_path, capsys):
    manifest = make_corpus(tmp_path / "c", seconds=(0.2, 0.5), train=5, valid=1, test=1)
    split = read_split(manifest, "train")
    soundfile.write(split.audio(2), np.zeros(399, np.float32), 16_000)
    lines = (manifest / "train.tsv").read_text().splitlines()
    lines[3] = lines[3].split("\t")[0] + "\t399"
    (manifest / "train.tsv").write_text("\n".join(lines) + "\n")
    assert run("tools/dump_features.py", manifest, "train", tmp_path / "f", "--mfcc") == 0
    assert "1 recordings are shorter than one frame (400 samples) and get an empty line, such as train002.wav" in capsys.readouterr().err
    assert (tmp_path / "f" / "mfcc" / "train_0_1.len").read_text().splitlines()[2] == "0"
    assert run("tools/learn_kmeans.py", tmp_path / "f" / "mfcc", "train", 1, tmp_path / "km.npz", "--clusters", 3) == 0
    assert run("tools/dump_labels.py", tmp_path / "f" / "mfcc", "train", tmp_path / "km.npz", 1, 0, tmp_path / "l") == 0
    assert run("tools/merge_labels.py", tmp_path / "l", "train", 1, "--manifest-dir", manifest) == 0
    staged = (tmp_path / "l" / "train.km").read_text()
    assert staged.splitlines()[2] == ""
    assert run("tools/make_labels.py", manifest, tmp_path / "all", "--mfcc", "--clusters", 3) == 0
    assert (tmp_path / "all" / "mfcc" / "km3" / "train.km").read_text().splitlines()[2] == ""
