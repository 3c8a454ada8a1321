"""Tables that come with a corpus: text, CSV and TSV files as people write them, and the paths in them."""

import contextlib
import csv
import functools
import io
import os
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter, defaultdict
from pathlib import Path, PureWindowsPath

from ..core.errors import InputError
from ..core.files import reading_text


def read_text(path, errors="strict"):
    """A text file of a corpus, UTF-8, or UTF-16 with its mark; `errors="replace"` where only the ASCII part matters. InputError if it is
    missing or no such text."""
    with reading_text(path, "give its place in the options, or complete the corpus folder"):
        content = Path(path).read_bytes()
        return content.decode("utf-16" if content.startswith((BOM_UTF16_BE, BOM_UTF16_LE)) else "utf-8-sig", errors)


def read_delimited(path):
    """A CSV or TSV file: (column names, list of (line number, {column: text})), texts stripped, empty lines skipped. The delimiter (tab,
    comma, semicolon or |) is the one that the header has most of. Empty cells after the last column, and columns without a name that hold
    nothing, are passed over. InputError if the file is malformed or empty."""
    text = read_text(path)
    if "\0" in text:
        raise InputError(f"{path}: holds zero bytes, so it is no plain text; save it as CSV, in UTF-8")
    header = next(filter(str.strip, text.splitlines()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max("\t,;|", key=header.count), strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}; correct the quotes or the delimiter") from error
    if len(lines) < 2:
        raise InputError(f"{path}: lists nothing; the first line must name the columns, one line per utterance must follow")
    (first, columns), *rows = lines
    named = [i for i, name in enumerate(columns) if name or any(any(row[i : i + 1]) for _, row in rows)]
    columns = [name or f"column {i}" for i, name in enumerate(columns, 1)]
    if (twice := next((name for name, n in Counter(columns[i] for i in named).items() if n > 1), None)) is not None:
        raise InputError(f"{path}:{first}: the column “{twice}” is there twice; rename one")
    for number, row in rows:
        if len(row) <= max(named) or any(row[len(columns) :]):
            raise InputError(f"{path}:{number}: {len(row)} columns where the header has {len(columns)}; correct the line")
    return [columns[i] for i in named], [(number, {columns[i]: row[i] for i in named}) for number, row in rows]


def need_columns(path, columns, needed):
    """InputError that names what a table lacks, if one of `needed` is not among its columns."""
    for name in needed:
        if name not in columns:
            raise InputError(f"{path}:1: has no column “{name}” (it has {', '.join(columns)}); use the file of the release")


class Paths:
    """Paths of files below a folder, as tables write them and as the disk spells them."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self._names = functools.cache(self._read_names)
        self._is_folder = functools.cache(lambda path: os.path.exists(path) and os.path.samefile(path, self.folder))

    def relative(self, text):
        """A path of a table, absolute or not, with slashes or Windows' backslashes, as one relative to the folder, as `spelled`; None if it
        leads out of the folder, or to itself."""
        windows = "\\" in text and not os.path.lexists(self.folder / text)
        path = Path(PureWindowsPath(text).as_posix() if windows else text)
        if path.is_absolute():
            above = next(filter(self._is_folder, path.parents), None)  # also where one of the two is by way of a link
            if above is None:
                return None
            path = path.relative_to(above)
        if ".." in path.parts:
            straight = Path(os.path.normpath(path))
            if ".." in straight.parts or os.path.realpath(self.folder / straight) != os.path.realpath(self.folder / path):
                return None
            path = straight
        return self.spelled(path.as_posix()) if path.parts else None

    def spelled(self, path):
        """A relative path as the disk spells it, where that differs in capitals or in how accents are encoded (Unicode's normal forms); the
        path itself if nothing there is like it, or several names are."""
        if os.path.lexists(self.folder / path):
            return path
        found = Path()
        for part in Path(path).parts:
            like = self._names(found).get(_alike(part), []) if not os.path.lexists(self.folder / found / part) else [part]
            if len(like) != 1:
                return path
            found /= like[0]
        return found.as_posix()

    def _read_names(self, where):
        found = defaultdict(list)
        with contextlib.suppress(OSError):
            for name in os.listdir(self.folder / where):
                found[_alike(name)].append(name)
        return found


def _alike(name):
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
