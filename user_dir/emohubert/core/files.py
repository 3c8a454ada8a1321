"""Files that are whole under their final name, and the stamps that tell whether they can be reused."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from pathlib import Path

from .errors import InputError, WriteError

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)
"""Names of files that `atomic` is writing."""


def make_folder(path):
    """Create a folder (and its parents), and remove what killed programs left unfinished in it; returns it as a Path. InputError if it cannot
    be made or written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for unfinished in filter(_UNFINISHED.fullmatch, os.listdir(path)):
            _remove_abandoned(path / unfinished)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise WriteError(f"{path}: cannot create this folder, or write to it ({error.strerror}); choose another output folder") from error


def _remove_abandoned(temporary):
    """Remove a temporary of `atomic`, unless a program is at work on it, here or on another machine: it holds a lock."""
    with contextlib.suppress(OSError), open(temporary, "r+b") as f:
        if time.time() - os.fstat(f.fileno()).st_mtime > 0.5:  # or about to lock it
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


@contextlib.contextmanager
def atomic(path, mode="w", remedy="free some space or choose another folder"):
    """Open a temporary neighbour of `path` for writing and rename it on success; on an error nothing is left behind. Text is UTF-8 with
    "\\n" line ends. Of several writers of one path, the last one's file stays. InputError, with the remedy, if it cannot be written."""
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # machines that share a disk share process numbers
    try:
        with open(temporary, mode, **text) as f:
            with contextlib.suppress(OSError):  # where the disk has no locks
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and str(error.filename) in ("None", str(temporary)):  # not of another file, read meanwhile
            raise WriteError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error
        raise


def write_lines(path, lines):
    """Write an iterable of strings, one per line, atomically."""
    with atomic(path) as f:
        f.writelines(f"{line}\n" for line in lines)


def require_space(folder, needed):
    """Raise InputError unless a folder's disk has so many bytes left."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WriteError(f"{folder}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; free space or choose another disk")


def write_json(path, value):
    """Write `value` as indented JSON, atomically. NaN is written as null, since JSON has no NaN."""
    with atomic(path) as f:
        json.dump(_without_nan(value), f, indent=2, ensure_ascii=False, allow_nan=False)
        f.write("\n")


def _without_nan(value):
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")  # file names need not be UTF-8
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {_without_nan(str(k)): _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return value


def read_json(path):
    """Read a JSON file; InputError if it is missing or not JSON."""
    try:
        with reading_text(path, "make it again"):
            return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not a JSON file ({error}); write it again") from error


@contextlib.contextmanager
def reading_text(path, remedy):
    """Turn the errors of reading a UTF-8 text file into InputError; `remedy` is for where there is no such file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {remedy}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def sha256(path):
    """SHA-256 of a file's content, as hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fingerprint(settings):
    """A short hash of settings (JSON values, and paths): equal settings, equal fingerprint."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Stamp:
    """Remembers with which settings a set of files was made, so that a second run can skip them: written last, so that a reader who
    finds equal settings, and every file there, can trust the files."""

    def __init__(self, path, settings, files):
        self.path, self.settings, self.files = Path(path), settings, [Path(f) for f in files]

    def is_current(self):
        """True if the files exist and were made with these settings."""
        try:
            same = read_json(self.path)["fingerprint"] == fingerprint(self.settings)
        except (InputError, KeyError, TypeError):
            return False
        return same and all(f.is_file() for f in self.files)

    def clear(self):
        """Forget the stamp: call before the files are written again."""
        self.path.unlink(missing_ok=True)

    def write(self):
        """Declare the files whole and made with the settings."""
        settings = json.loads(json.dumps(self.settings, default=str))
        write_json(self.path, {"fingerprint": fingerprint(self.settings), "settings": settings})


def natural(text):
    """Sorting key: numbers in a text by their value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
