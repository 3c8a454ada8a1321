"""Centroids from any file: ours, or scikit-learn's k-means as joblib writes it, read without running anything in it.

A joblib file is a pickle with the bytes of arrays in between. Unpickling can run code, so it is not unpickled: its
instructions are read one by one (`pickletools.genops`) and carried out on inert records. Names of classes and functions
stay names, nothing is imported or called, and a name that such a file has no use for is refused.
"""

import bz2
import gzip
import io
import lzma
import math
import pickletools
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.files import atomic
from .kmeans import KMeans

_MOST_BYTES = 4 << 30
"""A file that unpacks to more than this is no file of centroids."""
_KMEANS = frozenset(
    f"sklearn.cluster.{module}.{name}" for module in ("k_means_", "_kmeans") for name in ("KMeans", "MiniBatchKMeans", "BisectingKMeans")
)
_ARRAY = frozenset({"joblib.numpy_pickle.NumpyArrayWrapper", "sklearn.externals.joblib.numpy_pickle.NumpyArrayWrapper"})
_KNOWN = (
    _KMEANS
    | _ARRAY
    | {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")}
    | {
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.random.__RandomState_ctor",
        "numpy.random._pickle.__randomstate_ctor",
        "numpy.random._pickle.__bit_generator_ctor",
        "numpy.random._mt19937.MT19937",
        "numpy.random.mtrand.RandomState",
        "_codecs.encode",  # how protocol 2 writes bytes
    }
)
_COMPRESSIONS = (
    (b"\x1f\x8b", gzip.GzipFile),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ", lzma.LZMAFile),
    (b"\x5d\x00", lzma.LZMAFile),
)


def load_centroids(path):
    """Read centroids: `kmeans.npz`, or a joblib file of a scikit-learn k-means.

    Returns:
        KMeans; from joblib files without `features`, because they do not say.

    Raises:
        InputError: missing, damaged, or holding anything else; nothing in it was run.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of centroids; correct the path")
    with path.open("rb") as f:
        head = f.read(8)
    return KMeans.load(path) if head.startswith(b"PK") else _load_joblib(path)


def write_joblib(model, path):
    """Write the centroids as a scikit-learn MiniBatchKMeans that fairseq's scripts (and scikit-learn) can use."""
    import joblib
    from sklearn.cluster import MiniBatchKMeans

    estimator = MiniBatchKMeans(n_clusters=len(model), init="k-means++", n_init=1, random_state=model.fit.get("seed"))
    estimator.cluster_centers_ = np.ascontiguousarray(model.centroids)
    estimator.n_features_in_ = model.width
    estimator.n_iter_ = model.fit.get("iterations", 0)
    estimator.inertia_ = model.fit.get("inertia", math.nan) * model.fit.get("frames", 0)
    estimator._n_threads = 1
    with atomic(path, "wb") as f:
        joblib.dump(estimator, f)


def _load_joblib(path):
    try:
        root = _Reader(_unpacked(path)).read()
        if not (isinstance(root, _Record) and root.name in _KMEANS and isinstance(root.state, dict)):
            raise _RefusedError(f"it holds {getattr(root, 'name', type(root).__name__)}, not a k-means of scikit-learn")
        centroids = root.state.get("cluster_centers_")
        if not isinstance(centroids, np.ndarray) or centroids.ndim != 2 or not centroids.size or centroids.dtype.kind != "f":
            raise _RefusedError("it holds no cluster_centers_ (a k-means that was not fitted?)")
    except _RefusedError as error:
        raise InputError(
            f"{path}: refused: {error}; nothing in it was run. Use a kmeans.npz, or a joblib file of a fitted k-means"
        ) from None
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        EOFError,
        OSError,
        OverflowError,
        MemoryError,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            f"{path}: neither a kmeans.npz nor a joblib file of a k-means, or a damaged one ({reason}); copy it again"
        ) from error
    centroids = np.array(centroids, dtype=np.float32, order="C")
    if not np.isfinite(centroids).all():
        raise InputError(f"{path}: its centroids are not finite numbers; fit them again")
    return KMeans(centroids)


class _RefusedError(Exception):
    """The file holds something that a file of centroids does not need."""


@dataclass
class _Record:
    """What a class or function of the pickle would have made: its name, arguments and state, nothing that lives."""

    name: str
    arguments: object = ()
    state: object = field(default_factory=dict)


@dataclass(frozen=True)
class _Name:
    """A class or function, by name only."""

    name: str


def _unpacked(path):
    with path.open("rb") as f:
        head = f.read(6)
    for magic, opener in _COMPRESSIONS:
        if head.startswith(magic):
            with opener(path, "rb") as f:
                data = f.read(_MOST_BYTES + 1)
            break
    else:
        if path.stat().st_size > _MOST_BYTES:
            raise _RefusedError("it is too large for a file of centroids")
        data = path.read_bytes()
        if head[:1] == b"\x78":
            data = zlib.decompressobj().decompress(data, _MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise _RefusedError("it unpacks to more than a file of centroids can hold")
    return io.BytesIO(data)


class _Reader:
    """A stack machine for the part of pickle that data needs. No instruction imports or calls anything."""

    def __init__(self, f):
        self._file, self._stack, self._marks, self._memo = f, [], [], {}

    def read(self):
        for opcode, argument, _ in pickletools.genops(self._file):
            if opcode.name == "STOP":
                return self._stack.pop()
            action = getattr(self, f"_{opcode.name.lower()}", None)
            if opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _VALUES:
                self._stack.append(argument)
            elif action is None:
                raise _RefusedError(f"it uses the pickle instruction {opcode.name}")
            else:
                action(argument)
        raise EOFError("cut off")

    def _since_mark(self):
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _proto(self, argument):
        pass

    def _frame(self, argument):
        pass

    def _mark(self, argument):
        self._marks.append(len(self._stack))

    def _pop(self, argument):
        self._stack.pop()

    def _dup(self, argument):
        self._stack.append(self._stack[-1])

    def _memoize(self, argument):
        self._memo[len(self._memo)] = self._stack[-1]

    def _put(self, argument):
        self._memo[argument] = self._stack[-1]

    _binput = _long_binput = _put

    def _get(self, argument):
        self._stack.append(self._memo[argument])

    _binget = _long_binget = _get

    def _empty_dict(self, argument):
        self._stack.append({})

    def _empty_list(self, argument):
        self._stack.append([])

    def _dict(self, argument):
        items = self._since_mark()
        self._stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _list(self, argument):
        self._stack.append(self._since_mark())

    def _tuple(self, argument):
        self._stack.append(tuple(self._since_mark()))

    def _take(self, n):
        items = tuple(self._stack[-n:])
        del self._stack[-n:]
        self._stack.append(items)

    def _tuple1(self, argument):
        self._take(1)

    def _tuple2(self, argument):
        self._take(2)

    def _tuple3(self, argument):
        self._take(3)

    def _append(self, argument):
        item = self._stack.pop()
        self._of(list).append(item)

    def _appends(self, argument):
        items = self._since_mark()
        self._of(list).extend(items)

    def _setitem(self, argument):
        key, value = self._stack[-2:]
        del self._stack[-2:]
        self._of(dict)[key] = value

    def _setitems(self, argument):
        items = self._since_mark()
        self._of(dict).update(zip(items[::2], items[1::2], strict=True))

    def _of(self, kind):
        """The top of the stack, which must be a plain list or dict."""
        if type(self._stack[-1]) is not kind:
            raise _RefusedError(f"it fills a {type(self._stack[-1]).__name__} where a {kind.__name__} must be")
        return self._stack[-1]

    def _global(self, argument):
        self._name(".".join(argument.split(" ")))

    def _stack_global(self, argument):
        module, name = self._stack[-2:]
        del self._stack[-2:]
        self._name(f"{module}.{name}")

    def _name(self, name):
        if name not in _KNOWN:
            raise _RefusedError(f"it names {name[:100]}, which a k-means has no use for and which could run code")
        self._stack.append(_Name(name))

    def _reduce(self, argument):
        function, arguments = self._stack[-2:]
        del self._stack[-2:]
        if not isinstance(function, _Name):
            raise _RefusedError("it calls something that is not a name")
        self._stack.append(_Record(function.name, arguments))

    _newobj = _reduce

    def _build(self, argument):
        record, state = self._stack[-2:]
        del self._stack[-1:]
        if not isinstance(record, _Record):
            raise _RefusedError(f"it sets the state of a {type(record).__name__}")
        record.state = state
        if record.name in _ARRAY:  # the bytes of the array follow
            self._stack[-1] = self._array(state)

    def _array(self, state):
        if not isinstance(state, dict) or not isinstance(state.get("shape"), tuple):
            raise _RefusedError("it holds an array without a shape")
        dtype, shape = _dtype(state.get("dtype")), state["shape"]
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise _RefusedError(f"it holds an array of the shape {str(shape)[:60]}")
        if state.get("numpy_array_alignment_bytes"):
            self._file.seek(self._file.read(1)[0], io.SEEK_CUR)
        size = math.prod(shape) * dtype.itemsize
        if size > _MOST_BYTES:
            raise _RefusedError(f"it holds an array of the shape {str(shape)[:60]}")
        data = self._file.read(size)
        if len(data) != size:
            raise EOFError("cut off within an array")
        order = "F" if state.get("order") == "F" else "C"
        return np.frombuffer(data, dtype).reshape(shape, order=order)


def _dtype(record):
    """The dtype that a pickled `numpy.dtype` stands for; numbers only."""
    code = record.arguments[0] if isinstance(record, _Record) and record.name == "numpy.dtype" and record.arguments else None
    if not isinstance(code, str) or code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
        raise _RefusedError(f"it holds an array of {str(code)[:60]}, not of numbers")
    order = record.state[1] if isinstance(record.state, tuple) and len(record.state) > 1 else "="
    if order not in ("<", ">", "=", "|"):
        raise _RefusedError("it holds an array of unknown byte order")
    return np.dtype(code).newbyteorder(order)


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
