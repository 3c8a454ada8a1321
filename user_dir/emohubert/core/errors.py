"""The one error that bad input raises, and how a training run ends on it."""

import functools
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


def print_error(error):
    """Print an error as every program here does: one line on standard error."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)


def exit_on_input_error(function):
    """Under `fairseq-hydra-train`, turn bad input into one line `error: …` and exit status 2; elsewhere raise it as it is."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except InputError as error:
            from hydra.core.hydra_config import HydraConfig  # slow to import, and loaded already where a training runs

            if not HydraConfig.initialized():
                raise
            print_error(error)
            raise SystemExit(2) from None

    return wrapped
