"""Long tables in little memory: columns that read like lists of str and take a few bytes a line, and files that stay as they were.

A list of a million str takes a hundred megabytes, and each process that only looks at one gets its own copy of it, since
Python counts references inside of every str. These columns are a handful of objects each, which forked processes share.
"""

import os
import weakref
from collections.abc import Mapping, Sequence
from operator import index as as_integer

import numpy as np

from ..core.errors import InputError

_SMALL = 1 << 20
"""Files of up to so many bytes are kept in memory; larger ones are kept open."""
_BLOCK = 1 << 20
"""Bytes of a text file that are handled at once."""
_MOST_ALIKE = 1 << 14
"""Distinct values that a column may have before it is looked at whether most of its lines are distinct."""


class Column(Sequence):
    """A list of str that cannot be changed; equal to a list or a column of the same str. A slice is a list."""

    __hash__ = None

    def __eq__(self, other):
        if not isinstance(other, (list, Column)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        i = as_integer(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"{i}: there are {len(self)} lines")
        return self._at(i % len(self))

    def __repr__(self):
        return f"<{type(self).__name__} of {len(self)}: {self[:3]}…>"


class Strings(Column):
    """Any str, one after the other in one buffer.

    Args:
        data: bytes-like, UTF-8.
        offsets: n + 1 integers; line i is `data[offsets[i]:offsets[i + 1]]`.
    """

    def __init__(self, data, offsets):
        self._data = data
        self._offsets = np.asarray(offsets, dtype=np.uint32 if len(data) < 1 << 32 else np.int64)

    @classmethod
    def of(cls, blocks):
        """From an iterable of lists of bytes."""
        data, lengths = bytearray(), []
        for block in blocks:
            data += b"".join(block)
            lengths.append(np.fromiter(map(len, block), dtype=np.uint32, count=len(block)))
        return cls(data, offsets_of(lengths))

    def __len__(self):
        return len(self._offsets) - 1

    def _at(self, i):
        return self._data[self._offsets[i] : self._offsets[i + 1]].decode()

    def __iter__(self):
        for first in range(0, len(self), 1 << 14):
            bounds = self._offsets[first : first + (1 << 14) + 1].tolist()
            for a, b in zip(bounds[:-1], bounds[1:], strict=True):
                yield self._data[a:b].decode()


class Codes(Column):
    """Few distinct str.

    Attributes:
        codes: int32 array: what each line holds, as an index into the symbols.
        symbols: list of distinct str, in the order of their first lines.
    """

    def __init__(self, codes, symbols):
        self.codes, self.symbols = codes, symbols

    def __len__(self):
        return len(self.codes)

    def _at(self, i):
        return self.symbols[self.codes[i]]

    def __iter__(self):
        for first in range(0, len(self), 1 << 14):
            for code in self.codes[first : first + (1 << 14)].tolist():
                yield self.symbols[code]

    def __contains__(self, value):
        return value in self.symbols

    def count(self, value):
        """How many lines hold a value."""
        return int((self.codes == self.symbols.index(value)).sum()) if value in self.symbols else 0

    def index(self, value, *bounds):
        """The first line that holds a value."""
        if bounds or value not in self.symbols:
            return super().index(value, *bounds)
        return int(np.argmax(self.codes == self.symbols.index(value)))


def offsets_of(lengths):
    """Where lines of these lengths start, and the end of the last: int64 array; `lengths` is a list of integer arrays."""
    offsets = np.zeros(sum(map(len, lengths)) + 1, dtype=np.int64)
    np.cumsum(np.concatenate(lengths) if lengths else [], out=offsets[1:])
    return offsets


def compact(blocks):
    """The smallest column of lines.

    Args:
        blocks: a function that gives an iterable of lists of bytes; it is called again if most lines are distinct.

    Returns:
        Codes, or Strings where most lines are distinct.
    """
    table, codes, seen = {}, [], 0
    for block in blocks():
        codes.append(np.fromiter((table.setdefault(line, len(table)) for line in block), dtype=np.int32, count=len(block)))
        seen += len(block)
        if len(table) > max(_MOST_ALIKE, seen // 2):
            return Strings.of(blocks())
    return Codes(np.concatenate(codes) if codes else np.zeros(0, dtype=np.int32), [symbol.decode() for symbol in table])


class KeptFile:
    """The bytes of a file as they were when it was opened, also after another file has got its name.

    A small file is in memory, a large one is kept open, and opened again where this is pickled. Reading does not move a
    position, so that threads and forked processes can share one.

    Raises:
        OSError: the file cannot be opened.
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
        """Bytes [start, stop).

        Raises:
            InputError: the file was written to, or, in another process, replaced.
        """
        if self._data is not None:
            return self._data[start:stop]
        try:
            data = os.pread(self._fd, stop - start, start)
            while len(data) < min(stop, self.size) - start and (more := os.pread(self._fd, stop - start - len(data), start + len(data))):
                data += more
            same = self._now() == self._state
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read any more ({error.strerror}); restore it, and start again") from error
        if not same:
            raise InputError(f"{self.path}: was changed while it was in use; start again")
        return data

    def blocks(self, size=_BLOCK):
        """Blocks of whole lines, with their line ends; no more than one is in memory."""
        start, rest = 0, []
        while data := self.read(start, start + size):
            start += len(data)
            cut = data.rfind(b"\n") + 1
            if not cut:
                rest.append(data)
                continue
            yield b"".join([*rest, data[:cut]])
            rest = [data[cut:]] if cut < len(data) else []
        if rest:
            yield b"".join(rest)

    def lines(self):
        """Lists of lines as bytes, without line ends (Windows ones included) and without the byte order mark of Windows editors.

        Raises:
            UnicodeDecodeError: the file is not UTF-8 text.
        """
        done = 0
        for number, block in enumerate(self.blocks()):
            text = block.removeprefix(b"\xef\xbb\xbf") if number == 0 else block
            if not text.isascii():
                try:
                    text.decode()
                except UnicodeDecodeError as error:
                    raise UnicodeDecodeError("utf-8", text, done + error.start, done + error.end, error.reason) from None
            done += len(text)
            if b"\r" in text:
                text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if text:
                yield (text[:-1] if text.endswith(b"\n") else text).split(b"\n")

    def __getstate__(self):
        return {"path": self.path, "_state": self._state, "_data": self._data}

    def __setstate__(self, state):
        self.__dict__.update(state)
        if self._data is None:
            try:
                self._open()
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read any more ({error.strerror}); restore it, and start again") from error


class Table(Mapping):
    """A TSV file with a header, {column: Column}: checked at once, but a column is read when it is first asked for.

    Args:
        path: of the file.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read, or is not UTF-8 text.
        InputError: no header, duplicate columns, or a line with another number of columns.
    """

    def __init__(self, path):
        self._file, self._columns = KeptFile(path), {}
        self.names, self.rows, tabs = None, 0, 0
        for block in self._file.lines():
            if self.names is None:
                self.names = block.pop(0).decode().split("\t")
                tabs = len(self.names) - 1
                if len(set(self.names)) != len(self.names):
                    raise InputError(f"{path}:1: a column is named twice in {self.names}; rename one")
            for number, line in enumerate(block, self.rows + 2):
                if line.count(b"\t") != tabs:
                    columns = line.count(b"\t") + 1
                    raise InputError(f"{path}:{number}: {columns} columns where the header has {len(self.names)}; correct the line")
            self.rows += len(block)
        if self.names is None:
            raise InputError(f"{path}: empty; the first line must name the columns")

    def read(self, name):
        """A column, read anew."""
        return compact(lambda: self._cells(self.names.index(name)))

    def lines(self):
        """Lists of lines as bytes, without the header."""
        header = 1
        for block in self._file.lines():
            yield block[header:]
            header = 0

    def _cells(self, column):
        for lines in self.lines():
            yield [line.split(b"\t", column + 1)[column] for line in lines]

    def __getitem__(self, name):
        if name not in self._columns:
            if name not in self.names:
                raise KeyError(name)
            self._columns[name] = self.read(name)
        return self._columns[name]

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)

    def __contains__(self, name):
        return name in self.names
