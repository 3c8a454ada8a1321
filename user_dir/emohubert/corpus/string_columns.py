"""Memory-efficient string columns, and files whose bytes stay as they were.

Every process that looks at a list of str copies it, since references are counted inside of every str; so long columns are one buffer.
"""

import os
import weakref
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from ..core.errors import InputError

_SMALL = 1 << 20  # files of up to so many bytes are kept in memory; larger ones are kept open
_BLOCK = 1 << 20  # bytes of a text file that are handled at once
_LINES = 1 << 14  # distinct values from which on `compact` looks whether lines repeat at all


class Strings(Sequence):
    """A list of str that cannot be changed, in one buffer, from an iterable of lists of bytes (UTF-8). A slice is a list."""

    __hash__ = None

    def __init__(self, blocks):
        self._data, lengths = bytearray(), []
        for block in blocks:
            self._data += b"".join(block)
            lengths.append(np.fromiter(map(len, block), dtype=np.uint32, count=len(block)))
        self._offsets = offsets_of(lengths).astype(np.uint32 if len(self._data) < 1 << 32 else np.int64, copy=False)

    def __len__(self):
        return len(self._offsets) - 1

    def __getitem__(self, index):
        found = range(len(self))[index]
        if isinstance(index, slice):
            return [self[i] for i in found]
        return self._data[self._offsets[found] : self._offsets[found + 1]].decode()

    def __iter__(self):
        return (self._data[a:b].decode() for a, b in pairwise(memoryview(self._offsets)))

    def __eq__(self, other):
        if not isinstance(other, (list, Strings)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))


def offsets_of(lengths):
    """Where lines of these lengths start, and the end of the last: int64 array; `lengths` is a list of integer arrays."""
    offsets = np.zeros(sum(map(len, lengths)) + 1, dtype=np.int64)
    np.cumsum(np.concatenate(lengths) if lengths else [], out=offsets[1:])
    return offsets


def compact(blocks):
    """The smallest column of the lines of `blocks()`, lists of bytes: a list of shared str, or Strings where most lines are distinct."""
    shared, lines = {}, []
    for block in blocks():
        lines += [shared.get(line) or shared.setdefault(line, line.decode()) for line in block]
        if len(shared) > max(_LINES, len(lines) // 2):
            return Strings(blocks())
    return lines


class KeptFile:
    """The bytes of a file as they were when it was opened, also after another file has got its name: in memory, or kept open if large.

    Reading does not move a position, so that threads and forked processes can share one.
    """

    def __init__(self, path):
        self.path = path
        self._open()
        self._state = self._now()
        self._data = os.pread(self._fd, self.size, 0) if self.size <= _SMALL else None
        if self._data is not None:
            self._close()

    def _open(self):
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._fd)

    def _now(self):
        found = os.fstat(self._fd)
        return found.st_size, found.st_mtime_ns

    @property
    def size(self):
        """Bytes of the file."""
        return self._state[0]

    def read(self, start, stop):
        """Bytes [start, stop); InputError if the file was written to, or, in another process, replaced."""
        if self._data is not None:
            return self._data[start:stop]
        try:
            data, same = os.pread(self._fd, max(min(stop, self.size) - start, 0), start), self._now() == self._state
        except OSError as error:
            raise self._lost(error) from error
        if not same:
            raise InputError(f"{self.path}: was changed while it was in use; start again")
        return data

    def _lost(self, error):
        return InputError(f"{self.path}: cannot be read any more ({error.strerror}); restore it, and start again")

    def blocks(self, size=_BLOCK):
        """Blocks of whole lines, with their line ends; no more than one is in memory."""
        start, rest = 0, b""
        while data := self.read(start, start + size):
            start += len(data)
            cut = data.rfind(b"\n") + 1
            if cut:
                yield rest + data[:cut]
                rest = b""
            rest += data[cut:]
        if rest:
            yield rest

    def lines(self):
        """Lists of lines as bytes, without any line ends and byte order mark; UnicodeDecodeError if the file is not UTF-8 text."""
        done = 0
        for number, block in enumerate(self.blocks()):
            text = block.removeprefix(b"\xef\xbb\xbf") if number == 0 else block
            try:
                text.decode()
            except UnicodeDecodeError as error:
                raise UnicodeDecodeError("utf-8", text, done + error.start, done + error.end, error.reason) from None
            done += len(text)
            if b"\r" in text:
                text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if text:
                yield text.removesuffix(b"\n").split(b"\n")

    def __getstate__(self):
        return {"path": self.path, "_state": self._state, "_data": self._data}

    def __setstate__(self, state):
        self.__dict__.update(state)
        if self._data is None:
            try:
                self._open()
            except OSError as error:
                raise self._lost(error) from error


class Table(Mapping):
    """A TSV file with a header, {column: list of str, or Strings}: checked at once, but a column is read when it is first asked for."""

    def __init__(self, path):
        self._file, self._columns, self.names, self.rows = KeptFile(path), {}, None, 0
        for block in self._file.lines():
            if self.names is None:
                self.names = block.pop(0).decode().split("\t")
                if len(set(self.names)) != len(self.names):
                    raise InputError(f"{path}:1: a column is named twice in {self.names}; rename one")
            for number, line in enumerate(block, self.rows + 2):
                if line.count(b"\t") + 1 != len(self.names):
                    columns = line.count(b"\t") + 1
                    raise InputError(f"{path}:{number}: {columns} columns where the header has {len(self.names)}; correct the line")
            self.rows += len(block)
        if self.names is None:
            raise InputError(f"{path}: empty; the first line must name the columns")

    def lines(self):
        """Lists of lines as bytes, without the header."""
        for number, block in enumerate(self._file.lines()):
            yield block[1:] if number == 0 else block

    def __getitem__(self, name):
        if name not in self.names:
            raise KeyError(name)
        if name not in self._columns:
            column = self.names.index(name)
            self._columns[name] = compact(lambda: ([line.split(b"\t", column + 1)[column] for line in block] for block in self.lines()))
        return self._columns[name]

    def __contains__(self, name):  # without reading the column
        return name in self.names

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)
