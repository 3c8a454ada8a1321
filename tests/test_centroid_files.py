"""Centroids from scikit-learn's joblib files and from .npz: read whole, and nothing in them runs."""

import gzip
import io
import pickle
import struct
import zipfile

import joblib
import numpy as np
import pytest
import sklearn
from hostile import Hostile
from scripts import run
from sklearn.cluster import KMeans as StockKMeans
from sklearn.cluster import MiniBatchKMeans

from emohubert.core.errors import InputError
from emohubert.pseudo_labels.centroid_files import load_centroids, write_joblib
from emohubert.pseudo_labels.kmeans import KMeans


@pytest.fixture
def frames():
    return np.random.default_rng(0).normal(size=(400, 7)).astype(np.float32)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)], ids=str)
@pytest.mark.parametrize("estimator", [StockKMeans, MiniBatchKMeans])
def test_every_kind_of_joblib_file_is_read(tmp_path, frames, estimator, compress, protocol):
    model = estimator(5, n_init=1, random_state=np.random.RandomState(3)).fit(frames)
    joblib.dump(model, tmp_path / "km.bin", compress=compress, protocol=protocol)
    assert np.array_equal(load_centroids(tmp_path / "km.bin").centroids, model.cluster_centers_.astype(np.float32))


def test_fortran_order_and_float64_survive(tmp_path, frames):
    model = StockKMeans(5, n_init=1).fit(frames.astype(np.float64))
    model.cluster_centers_ = np.asfortranarray(model.cluster_centers_)
    joblib.dump(model, tmp_path / "km.bin")
    assert np.array_equal(load_centroids(tmp_path / "km.bin").centroids, model.cluster_centers_.astype(np.float32))


def file_of_2020(centroids):
    """The instructions that scikit-learn 0.22 and joblib 0.14 wrote (protocol 3): old names, no alignment bytes."""
    out = io.BytesIO()

    def text(string):
        out.write(b"X" + struct.pack("<I", len(string)) + string.encode())

    out.write(b"\x80\x03csklearn.cluster.k_means_\nMiniBatchKMeans\nq\x00)\x81q\x01}q\x02(")
    text("n_clusters")
    out.write(b"K" + bytes([len(centroids)]))
    text("verbose")
    out.write(b"\x88")
    text("tol")
    out.write(b"G" + struct.pack(">d", 0.0))
    text("random_state")
    out.write(b"N")
    text("cluster_centers_")
    out.write(b"cjoblib.numpy_pickle\nNumpyArrayWrapper\nq\x03)\x81q\x04}q\x05(")
    text("subclass")
    out.write(b"cnumpy\nndarray\nq\x06")
    text("shape")
    out.write(b"K" + bytes([centroids.shape[0]]) + b"K" + bytes([centroids.shape[1]]) + b"\x86q\x07")
    text("order")
    text("C")
    text("dtype")
    out.write(b"cnumpy\ndtype\nq\x08")
    text("f4")
    out.write(b"K\x00K\x01\x87q\tRq\n(K\x03")
    text("<")
    out.write(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0bb")
    text("allow_mmap")
    out.write(b"\x88ub")
    out.write(centroids.astype("<f4").tobytes())
    text("inertia_")
    out.write(b"cnumpy.core.multiarray\nscalar\nq\x0ch\nC\x04" + struct.pack("<f", 12.5) + b"q\r\x86q\x0eRq\x0f")
    text("_sklearn_version")
    text("0.22.1")
    out.write(b"ub.")
    return out.getvalue()


def test_files_of_scikit_learn_0_22_are_read(tmp_path, frames):
    (tmp_path / "km.bin").write_bytes(file_of_2020(frames[:9]))
    model = load_centroids(tmp_path / "km.bin")
    assert np.array_equal(model.centroids, frames[:9])
    assert (model.features, model.sizes) == (None, None)


def fitted(frames, **values):
    model = MiniBatchKMeans(5, n_init=1, random_state=0).fit(frames)
    for name, value in values.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize("compress", [0, 3])
@pytest.mark.parametrize("place", ["alone", "centroids", "beside", "in a list", "in an object array"])
def test_a_hostile_joblib_file_runs_nothing(tmp_path, frames, place, compress, capsys):
    marker, path = tmp_path / "it ran", tmp_path / "km.bin"
    bomb = Hostile(marker)
    content = {
        "alone": lambda: bomb,
        "centroids": lambda: fitted(frames, cluster_centers_=bomb),
        "beside": lambda: fitted(frames, note=bomb),
        "in a list": lambda: fitted(frames, note=[[1, {"a": bomb}]]),
        "in an object array": lambda: fitted(frames, note=np.array([bomb, 1], dtype=object)),
    }[place]()
    joblib.dump(content, path, compress=compress)
    with pytest.raises(InputError, match=r"refused: .*nothing in it was run"):
        load_centroids(path)
    assert run("tools/dump_labels.py", tmp_path, "train", path, 1, 0, tmp_path / "lab") == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not marker.exists()
    joblib.load(path)  # the file is a real one
    assert marker.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(X\x04\x00\x00\x00true\x85R.",
        b"(X\x04\x00\x00\x00trueios\nsystem\n.",  # INST
        b"cbuiltins\neval\n(X\x01\x00\x00\x001\x85R.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"csklearn.cluster._kmeans\nMiniBatchKMeans\n(X\x01\x00\x00\x00xo.",  # OBJ
        b"\x82\x01.",  # EXT1
        b"Pwhatever\n.",  # PERSID
        b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81cnumpy\nndarray\nb.",
        b"}\x94(K\x01K\x02u}b.",  # BUILD on a dict
        b"cnumpy\ndtype\n]K\x01a.",
        b"K\x01K\x02a.",
        b"cnumpy\nload\n.",
        b"cnumpy\ndtype.base\n.",
        b"\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # BYTEARRAY8 of a terabyte
        b"cnumpy\nndarray\n(N}X\x04\x00\x00\x00nameK\x01stb.",  # BUILD that sets an attribute of a class
    ],
)
def test_hostile_instructions_are_refused(tmp_path, program):
    (tmp_path / "km.bin").write_bytes(program)
    with pytest.raises(InputError, match=r"km\.bin: (refused|neither)"):
        load_centroids(tmp_path / "km.bin")


def test_memory_is_taken_for_what_is_there_not_for_what_is_claimed(tmp_path, frames):
    whole = file_of_2020(frames[:9])
    huge = whole.replace(b"K\x09K\x07\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86")  # 2³¹ × 2³¹ floats
    assert huge != whole
    (tmp_path / "km.bin").write_bytes(huge)
    with pytest.raises(InputError, match="cut off within an array"):
        load_centroids(tmp_path / "km.bin")


def test_nothing_is_imported_or_called(tmp_path, frames, monkeypatch):
    """Even the names that are allowed stay names."""
    joblib.dump(fitted(frames), tmp_path / "km.bin")
    for owner, name in ((pickle, "Unpickler"), (pickle, "_Unpickler"), (pickle, "load"), (pickle, "loads"), (joblib, "load")):
        monkeypatch.setattr(owner, name, None)
    monkeypatch.setattr(sklearn.cluster.MiniBatchKMeans, "__setstate__", None)
    assert load_centroids(tmp_path / "km.bin").centroids.shape == (5, 7)


def damaged(whole):
    yield "cut", whole[: len(whole) // 2]
    yield "cut in the array", whole[:-400]
    yield "empty", b""
    yield "text", b"hello, world\n"
    yield "zip", b"PK\x03\x04 not a zip"
    yield "zlib", b"\x78\x9cxxxx"
    yield "gzip", b"\x1f\x8bxxxx"
    yield "xz", b"\xfd7zXZxxxx"


@pytest.mark.parametrize("index", range(8))
def test_damaged_files_are_one_line_errors(tmp_path, frames, index, capsys):
    joblib.dump(fitted(frames), tmp_path / "whole.bin")
    _, content = list(damaged((tmp_path / "whole.bin").read_bytes()))[index]
    path = tmp_path / "km.bin"
    path.write_bytes(content)
    assert run("tools/dump_labels.py", tmp_path, "train", path, 1, 0, tmp_path / "lab") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {path}: ")


@pytest.mark.parametrize("cut", [10, 100, 300])
def test_no_cut_of_a_file_is_taken_for_whole(tmp_path, frames, cut):
    whole = file_of_2020(frames[:9])
    (tmp_path / "km.bin").write_bytes(whole[:-cut])
    with pytest.raises(InputError):
        load_centroids(tmp_path / "km.bin")


def test_a_compressed_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("emohubert.pseudo_labels.centroid_files._MOST_BYTES", 1 << 20)
    (tmp_path / "km.bin").write_bytes(gzip.compress(bytes(1 << 22)))
    with pytest.raises(InputError, match="unpacks to more"):
        load_centroids(tmp_path / "km.bin")


def test_unfitted_and_other_models_are_refused(tmp_path, frames):
    for content, reason in (
        (MiniBatchKMeans(3), "no cluster_centers_"),
        ({"cluster_centers_": frames}, "not a k-means"),
        (frames, "not a k-means"),
        (fitted(frames, cluster_centers_=frames[:0]), "no cluster_centers_"),
        (fitted(frames, cluster_centers_=np.full((2, 3), np.nan)), "not finite"),
    ):
        joblib.dump(content, tmp_path / "km.bin")
        with pytest.raises(InputError, match=reason):
            load_centroids(tmp_path / "km.bin")


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_a_hostile_npz_runs_nothing(tmp_path):
    marker = tmp_path / "it ran"
    bomb = np.array([Hostile(marker)], dtype=object)
    good = {"centroids": np.zeros((2, 3), np.float32), "sizes": np.zeros(2, np.int64), "info": np.array('{"features": null}')}
    for name in good:
        path = npz(tmp_path / f"{name}.npz", **{**good, name: bomb})
        with pytest.raises(InputError, match="not a kmeans.npz"):
            load_centroids(path)
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as archive:
        archive.writestr("centroids.npy", pickle.dumps(Hostile(marker)))
    with pytest.raises(InputError):
        load_centroids(tmp_path / "raw.npz")
    assert not marker.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"centroids": np.zeros((2, 3))},
        {"centroids": np.zeros(3, np.float32)},
        {"centroids": np.full((2, 3), np.inf, np.float32)},
        {"sizes": np.zeros(5, np.int64)},
        {"info": np.array("{}")},
        {"info": np.array("[1, 2]")},
        {"info": np.array('{"features": 3, "fit": {}}')},
    ],
)
def test_a_wrong_npz_is_an_error(tmp_path, change):
    info = np.array('{"features": null, "fit": {}}')
    good = {"centroids": np.zeros((2, 3), np.float32), "sizes": np.zeros(2, np.int64), "info": info}
    assert len(load_centroids(npz(tmp_path / "good.npz", **good))) == 2
    with pytest.raises(InputError):
        load_centroids(npz(tmp_path / "bad.npz", **{**good, **change}))


def test_what_we_write_for_fairseq_comes_back(tmp_path, frames):
    model = KMeans(frames[:6].copy(), fit={"seed": 1, "iterations": 9, "inertia": 2.0, "frames": 400})
    write_joblib(model, tmp_path / "km.bin")
    assert np.array_equal(load_centroids(tmp_path / "km.bin").centroids, model.centroids)
    stock = joblib.load(tmp_path / "km.bin")
    assert np.array_equal(stock.cluster_centers_, model.centroids)
    assert stock.predict(frames).shape == (400,)
