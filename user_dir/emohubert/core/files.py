"""Files that are whole under their final name, and the stamps that tell whether they can be reused."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path

from .errors import InputError


def make_folder(path):
    """Create a folder (and its parents); returns it as a Path.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot create this folder ({error.strerror}); choose another output folder") from error
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{path}: this folder cannot be written to ({error.strerror}); choose another output folder") from error
    return path


@contextlib.contextmanager
def atomic(path, mode="w"):
    """Open a temporary neighbour of `path` for writing and rename it on success; on an error nothing is left behind.

    Text is written as UTF-8 with "\\n" line ends. What exists under its final name is therefore always whole. Of several
    writers of one path, the last one's file stays.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # machines that share a disk share process numbers
    try:
        with open(temporary, mode, **text) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and str(error.filename) in ("None", str(temporary)):  # not of another file, read meanwhile
            raise InputError(f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder") from error
        raise


def write_lines(path, lines):
    """Write an iterable of strings, one per line, atomically."""
    with atomic(path) as f:
        f.writelines(f"{line}\n" for line in lines)


def require_space(folder, needed):
    """Raise InputError unless a folder's disk has so many bytes left."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; free some space or choose another disk"
        )


def append(source, f):
    """Write a file's bytes to the open file `f`.

    Returns:
        the source's `os.stat`.

    Raises:
        InputError: it cannot be read, or changes its size while it is.
    """
    try:
        with open(source, "rb") as old:
            before, start = os.fstat(old.fileno()), f.tell()
            shutil.copyfileobj(old, f, 1 << 20)
    except OSError as error:
        if str(error.filename) != str(source):
            raise
        raise InputError(f"{source}: cannot be read ({error.strerror}); restore it, and start again") from error
    if f.tell() - start != before.st_size:
        raise InputError(f"{source}: {f.tell() - start} bytes where there were {before.st_size}; start again when nothing is writing to it")
    return before


def copy(source, path):
    """Copy a file atomically, with its time of change.

    Raises:
        InputError: the source cannot be read, or the copy not be written.
    """
    with atomic(path, "wb") as new:
        before = append(source, new)
        new.flush()
        os.utime(new.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))


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
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error}); write it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


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
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(settings):
    """A short hash of settings (JSON values, and paths): equal settings, equal fingerprint."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Stamp:
    """Remembers with which settings a set of files was made, so that a second run can skip them.

    The stamp is written last. A reader that finds it with equal settings, and every file there, can trust the files.
    """

    def __init__(self, path, settings, files):
        self.path, self.settings, self.files = Path(path), settings, [Path(f) for f in files]

    def is_current(self):
        """True if the files exist and were made with these settings."""
        if not self.path.is_file() or not all(f.is_file() for f in self.files):
            return False
        try:
            return json.loads(self.path.read_text(encoding="utf-8")).get("fingerprint") == fingerprint(self.settings)
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
            return False

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
