"""What all command-line programs share: errors in one line, exit codes, progress, and the choice of a device."""

import argparse
import functools
import logging
import os
import sys
import time

from .errors import InputError, print_error, wants_traceback

logger = logging.getLogger("emohubert")
_SECONDS = 10  # between two lines of progress, or more
_SHOWN = 50  # problems that are printed


def command(main):
    """Decorator of a program's `main(argv=None)`: log to standard error, and turn bad input into `error: …`, exit 2."""

    @functools.wraps(main)
    def wrapped(argv=None):
        logging.basicConfig(force=True, level=logging.INFO, format="%(asctime)s | %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
        logging.getLogger("fairseq").setLevel(logging.WARNING)
        try:
            result = main(argv)
            sys.stdout.flush()
            return result
        except InputError as error:
            if wants_traceback():
                raise
            print_error(error)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("error: interrupted; what exists under its final name is whole, run again to continue", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of our output, such as `head`, has enough; Python would complain of it at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None

    return wrapped


def positive_float(text, kind=float):
    """A finite number above 0, for argparse."""
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"“{text}” is not a {'whole number of at least 1' if kind is int else 'number above 0'}")
    return value


def positive_int(text):
    """An int of at least 1, for argparse."""
    return positive_float(text, int)


def whole_number(text):
    """An int of 0 or more, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"“{text}” is not a whole number of 0 or more")
    return int(text)


class Parser(argparse.ArgumentParser):
    """An argument parser that shows defaults and says `error: …` in one line, with exit status 2, on bad usage."""

    called = None  # how the program was called, where that is not by its path

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"prog": self.called, "formatter_class": _Help, **kwargs})

    def error(self, message):
        """Say what is wrong with the usage, and exit."""
        print(f"error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def add_evaluated(self):
        """CKPT MANIFEST_DIR SPLIT OUT_DIR: what is evaluated, and where the results go; and how."""
        self.add_argument("checkpoint", metavar="CKPT", help="checkpoint of the task emotion_finetuning")
        self.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory")
        self.add_argument("split", metavar="SPLIT", help="split to evaluate, such as test")
        self.add_argument("out_dir", metavar="OUT_DIR", help="output folder")
        self.add_argument("--repeats", type=int, default=2000, metavar="N", help="bootstrap samples")
        self.add_seed()
        self.add_running()
        self.add_overwrite()

    def add_running(self):
        """--batch-seconds, --workers, --device, --precision: how a model runs."""
        text = "most audio in the model at once; changes no result"
        self.add_argument("--batch-seconds", type=positive_float, default=100.0, metavar="S", help=text)
        text = "threads that read audio, and on a CPU run the model; 0: one a core"
        self.add_argument("--workers", type=whole_number, default=0, help=text)
        self.add_device()
        self.add_precision()

    def add_feature_cache(self):
        """--feature-cache."""
        text = "keep the features of a frozen encoder there, for other models with the same one"
        self.add_argument("--feature-cache", metavar="DIR", help=text)

    def add_overwrite(self):
        """--overwrite, with its one meaning."""
        text = "make everything again, even what is whole and made with the same settings"
        self.add_argument("--overwrite", action="store_true", help=text)

    def add_device(self):
        """--device auto|cpu|cuda[:N]."""
        self.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto: a GPU when there is one)")

    def add_precision(self):
        """--precision float32|bf16."""
        text = "of the encoder; bf16, faster and less exact, only where the hardware has it"
        self.add_argument("--precision", choices=("float32", "bf16"), default="float32", help=text)

    def add_seed(self):
        """--seed."""
        self.add_argument("--seed", type=int, default=1, help="seed of everything random: same seed, same result")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default in (None, False) or action.required else super()._get_help_string(action)


def print_problems(report, complete):
    """Print the end of a check (CheckReport, AuditReport); InputError if it has problems. `complete`: where all are, if too many."""
    allowed = {}
    for leak in report.leaks:
        if leak.allowed:
            allowed.setdefault((leak.kind, leak.between.get("role")), []).append(leak.message)
    lines = [of[0] + (f" (and {len(of) - 1} more of this kind: {complete})" if len(of) > 1 else "") for of in allowed.values()]
    for line in (*(f"note: {note}" for note in report.notes), *(f"allowed: {line}" for line in lines)):
        print(line)
    problems = report.problems
    if len(problems) > 1:
        more = [f"… and {len(problems) - _SHOWN} more ({complete})"] if len(problems) > _SHOWN else []
        print(*(f"problem: {problem}" for problem in problems[:_SHOWN]), *more, sep="\n", file=sys.stderr)
    if problems:
        raise InputError(problems[0] + (f" ({len(problems)} problems in all)" if len(problems) > 1 else ""))


def progress(iterable, description, total=None, unit="it"):
    """A progress bar on a terminal; otherwise log lines: at tenths of the way, ten seconds or more apart, and at the end."""
    total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, desc=description, total=total, unit=unit, dynamic_ncols=True)
        return
    step, told = max(1, (total or 1000) // 10), time.monotonic()
    for done, item in enumerate(iterable, 1):
        yield item
        if done == total or done % step == 0 and time.monotonic() - told >= _SECONDS:
            told = time.monotonic()
            logger.info("%s: %d%s %s", description, done, f" of {total}" if total else "", unit)
