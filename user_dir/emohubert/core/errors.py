"""The one error that bad input raises."""

import sys


class InputError(ValueError):
    """Something the user gave is wrong: one line with the file (and line), the value found, and the remedy."""


class WriteError(InputError):
    """Something cannot be written: space, rights, quota. Never taken for a fault of what was read."""


def print_error(error):
    """Print an error as every program here does: one line on standard error."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
