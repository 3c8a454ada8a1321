"""Centroids from any file: ours (`kmeans.npz`), or scikit-learn's k-means as joblib writes it.

A joblib file is a pickle with the bytes of arrays in between, and unpickling can run code. So joblib's unpickler gets inert records
here in place of every class and function that a file names, and names that a k-means has no use for are refused.
"""

import bz2
import gzip
import io
import lzma
import math
import pickle
from pathlib import Path

import joblib
import numpy as np
from joblib.compressor import BinaryZlibFile
from joblib.numpy_pickle import NumpyArrayWrapper, NumpyUnpickler

from ..core.errors import InputError
from ..core.files import atomic
from .centroids import KMeans, first_line

_MOST_BYTES = 4 << 30  # a file that unpacks to more is no file of centroids
_KMEANS = {f"sklearn.cluster.{module}.{name}KMeans" for module in ("k_means_", "_kmeans") for name in ("", "MiniBatch", "Bisecting")}
_ARRAY = {"joblib.numpy_pickle.NumpyArrayWrapper", "sklearn.externals.joblib.numpy_pickle.NumpyArrayWrapper"}
_OTHERS = {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")} | {
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.random.__RandomState_ctor",
    "numpy.random._pickle.__randomstate_ctor",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._mt19937.MT19937",
    "numpy.random.mtrand.RandomState",
    "_codecs.encode",  # how protocol 2 writes bytes
}
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open, b"\x5d\x00": lzma.open, b"\x78": BinaryZlibFile}
_WITHHELD = {code[0] for code in (pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4)}
"""Instructions that allocate as much as they claim, or name a class by number."""


def load_centroids(path):
    """Read centroids: `kmeans.npz`, or a joblib file of a scikit-learn k-means (whose KMeans has no `features`). InputError: missing,
    damaged, or holding anything else; nothing in it was run."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of centroids; correct the path")
    with path.open("rb") as f:
        ours = f.read(2) == b"PK"
    return KMeans.load(path) if ours else _load_joblib(path)


def write_joblib(model, path):
    """Write the centroids as a scikit-learn MiniBatchKMeans that fairseq's scripts (and scikit-learn) can use."""
    from sklearn.cluster import MiniBatchKMeans

    estimator = MiniBatchKMeans(n_clusters=len(model), init="k-means++", n_init=1, random_state=model.fit.get("seed"))
    estimator.cluster_centers_ = np.ascontiguousarray(model.centroids)
    estimator.n_features_in_ = model.centroids.shape[1]
    estimator.n_iter_ = model.fit.get("iterations", 0)
    estimator.inertia_ = model.fit.get("inertia", math.nan) * model.fit.get("frames", 0)
    estimator._n_threads = 1
    with atomic(path, "wb") as f:
        joblib.dump(estimator, f)


def _load_joblib(path):
    try:
        content = _Unpickler(path, _unpacked(path)).load()
        if not isinstance(content, _Record) or content.name not in _KMEANS or not isinstance(content.state, dict):
            raise _RefusedError(f"it holds {getattr(content, 'name', type(content).__name__)}, not a k-means of scikit-learn")
        centroids = content.state.get("cluster_centers_")
        if not isinstance(centroids, np.ndarray) or centroids.ndim != 2 or not centroids.size or centroids.dtype.kind != "f":
            raise _RefusedError("it holds no cluster_centers_ (a k-means that was not fitted?)")
        if not np.isfinite(centroids).all():
            raise _RefusedError("its centroids are not finite numbers")
    except _RefusedError as error:
        remedy = "nothing in it was run. Use a kmeans.npz, or a joblib file of a fitted k-means"
        raise InputError(f"{path}: refused: {error}; {remedy}") from None
    except Exception as error:  # whatever the instructions of a damaged file lead to
        what = f"neither a kmeans.npz nor a joblib file of a k-means, or a damaged one ({first_line(error)})"
        raise InputError(f"{path}: {what}; copy it again") from error
    return KMeans(np.array(centroids, dtype=np.float32, order="C"))


def _unpacked(path):
    with open(path, "rb") as f:
        head = f.read(6)
    opener = next((opener for magic, opener in _COMPRESSIONS.items() if head.startswith(magic)), open)
    with opener(str(path), "rb") as f:
        data = f.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise _RefusedError("it unpacks to more than a file of centroids can hold")
    return io.BytesIO(data)


class _RefusedError(Exception):
    """The file holds something that a file of centroids does not need."""


class _Unpickler(NumpyUnpickler):
    dispatch = {code: action for code, action in NumpyUnpickler.dispatch.items() if code not in _WITHHELD}

    def __init__(self, path, file):
        super().__init__(str(path), file, ensure_native_byte_order=False)

    def find_class(self, module, name):
        name = f"{module}.{name}"
        if name not in _KMEANS | _ARRAY | _OTHERS:
            raise _RefusedError(f"it names {name[:100]}, which a k-means has no use for and which could run code")
        return type(name, (_Array if name in _ARRAY else _Record,), {"name": name})


class _Record:
    """What a class or function of the file would have made: its name, arguments and state, nothing that runs."""

    state = None

    def __new__(cls, *arguments, **_):
        record = object.__new__(cls)
        record.arguments = arguments
        return record

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        self.state = state


class _Array(_Record, NumpyArrayWrapper):
    """An array, whose bytes follow in the file."""

    def read(self, unpickler, ensure_native_byte_order):
        """The array, after checking that the file can hold it: memory is taken for what is there, not for what is claimed."""
        state, file = self.state, unpickler.file_handle
        self.dtype, self.shape, self.order = _dtype(state["dtype"]), state["shape"], state["order"]
        self.numpy_array_alignment_bytes = state.get("numpy_array_alignment_bytes")
        if not isinstance(self.shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in self.shape):
            raise _RefusedError(f"it holds an array of the shape {str(self.shape)[:60]}")
        if math.prod(self.shape) * self.dtype.itemsize > file.getbuffer().nbytes - file.tell():
            raise EOFError("cut off within an array")
        return self.read_array(unpickler, ensure_native_byte_order)


def _dtype(record):
    """The dtype that a pickled `numpy.dtype` stands for; numbers only."""
    code = record.arguments[0] if isinstance(record, _Record) and record.name == "numpy.dtype" and record.arguments else None
    if code not in _NUMBERS:
        raise _RefusedError(f"it holds an array of {str(code)[:60]}, not of numbers")
    return np.dtype(code).newbyteorder(record.state[1] if record.state else "=")
