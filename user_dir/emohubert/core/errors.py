"""The one error that bad input raises."""

import contextlib
import importlib
import sys


class InputError(ValueError):
    """Something the user gave is wrong: one line with the file (and line), the value found, and the remedy."""


class WriteError(InputError):
    """Something cannot be written: space, rights, quota. Never taken for a fault of what was read."""


def need(module, extra, what):
    """The optional module that something needs; InputError, with the extra that installs it, where it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{what} needs the package {module}: pip install 'emohubert[{extra}]'") from None


@contextlib.contextmanager
def taken_apart(path, kind="a checkpoint"):
    """Around code that takes the content of a file as it is: whatever a damaged or foreign one leads to is an InputError that names it."""
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path}: not {kind}, or a damaged one ({what:.120}); copy or download it again") from error


def print_error(error):
    """Print an error as every program here does: one line on standard error."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
