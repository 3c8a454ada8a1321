"""Tables that come with a corpus: text, CSV and TSV files as people write them."""

import csv
import io
from collections import Counter
from pathlib import Path

from ..core.errors import InputError
from ..core.files import reading_text


def read_text(path, errors="strict"):
    """A text file of a corpus, UTF-8; `errors="replace"` where only the ASCII part matters. InputError if it is missing or no such text."""
    with reading_text(path, "give its place in the options, or complete the corpus folder"):
        return Path(path).read_bytes().decode("utf-8-sig", errors)


def read_delimited(path):
    """A CSV or TSV file: (column names, list of (line number, {column: text})), texts stripped, empty lines skipped. The delimiter (tab,
    comma, semicolon or |) is the one that the header has most of. InputError if the file is malformed or empty."""
    text = read_text(path)
    header = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max("\t,;|", key=header.count), strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}; correct the quotes or the delimiter") from error
    if len(lines) < 2:
        raise InputError(f"{path}: lists nothing; the first line must name the columns, one line per utterance must follow")
    columns = lines[0][1]
    if (twice := next((name for name, n in Counter(columns).items() if n > 1), None)) is not None:
        raise InputError(f"{path}:1: the column “{twice}” is there twice; rename one")
    for number, row in lines[1:]:
        if len(row) != len(columns):
            raise InputError(f"{path}:{number}: {len(row)} columns where the header has {len(columns)}; correct the line")
    return columns, [(number, dict(zip(columns, row, strict=True))) for number, row in lines[1:]]


def need_columns(path, columns, needed):
    """InputError that names what a table lacks, if one of `needed` is not among its columns."""
    for name in needed:
        if name not in columns:
            raise InputError(f"{path}:1: has no column “{name}” (it has {', '.join(columns)}); use the file of the release")
