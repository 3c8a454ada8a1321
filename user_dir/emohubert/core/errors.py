"""The one error that bad input raises."""

import contextlib
import importlib
import os
import re
import sys

_MEMORY = re.compile("can't allocate memory|out of memory", re.IGNORECASE)


class InputError(ValueError):
    """Something the user gave is wrong: one line with the file (and line), the value found, and the remedy."""


class WriteError(InputError):
    """Something cannot be written: space, rights, quota. Never taken for a fault of what was read."""


def need(module, extra, what):
    """The optional module that something needs; InputError, with the extra that installs it, where it is not there."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:  # its own name, or what it needs
        raise InputError(f"{what} needs the package {error.name}: pip install 'emohubert[{extra}]'") from None


def is_lack_of_memory(error):
    """Whether an exception is Python's or torch's for memory that is not there."""
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error)))


@contextlib.contextmanager
def taken_apart(path, kind="a checkpoint"):
    """Around code that takes the content of a file as it is: whatever a damaged or foreign one leads to is an InputError that names it.
    What no content leads to, names and modules that are not there, stays a traceback."""
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error
    except (ImportError, NameError):
        raise
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        if is_lack_of_memory(error):
            raise InputError(f"{path}: too little memory for it ({what:.120}); free some, or copy it again if it is damaged") from error
        raise InputError(f"{path}: not {kind}, or a damaged one ({what:.120}); copy or download it again") from error


def wants_traceback():
    """Whether errors that have one line are to be tracebacks all the same: Hydra's variable for that is set."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def print_error(error):
    """Print an error as every program here does: one line on standard error."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
