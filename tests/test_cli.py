"""Command-line behaviour that every program shares: one-line errors, exit status 2, progress, devices."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emohubert.core import cli
from emohubert.core.device import choose_device
from emohubert.core.errors import InputError

USER_DIR = Path(__file__).resolve().parents[1] / "user_dir"


def run(function, capsys, argv=None):
    """Exit status and standard error of a command; None when it returned."""
    status = None
    try:
        cli.command(function)(argv)
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


def failing(error):
    def main(argv=None):
        raise error

    return main


# -------------------------------------------------------------------------------------------------------------- errors


def test_bad_input_is_one_line_and_status_2(capsys):
    assert run(failing(InputError("a.tsv:3: no number; correct it")), capsys) == (2, "error: a.tsv:3: no number; correct it\n")
    assert run(failing(InputError("of\nseveral \t lines\r\n")), capsys) == (2, "error: of several lines\n")


def test_other_errors_are_bugs_and_keep_their_traceback():
    for error in (ValueError("x"), KeyError("x"), FileNotFoundError("x")):
        with pytest.raises(type(error)):
            cli.command(failing(error))()


def test_interruption(capsys):
    status, err = run(failing(KeyboardInterrupt()), capsys)
    assert status == 130
    assert re.fullmatch(r"error: interrupted; .*\n", err)


def test_results_and_arguments_pass_through():
    @cli.command
    def main(argv=None):
        """Adds."""
        return sum(argv)

    assert main([1, 2]) == 3
    assert main.__doc__ == "Adds."


def test_logging_goes_to_standard_error(capsys):
    def main(argv=None):
        logging.getLogger("emohubert.x").info("counted %d", 3)
        logging.getLogger("fairseq.x").info("chatter")

    status, err = run(main, capsys)
    assert status is None
    assert re.fullmatch(r"\d\d:\d\d:\d\d \| counted 3\n", err)


@pytest.fixture
def program(tmp_path):
    """A small program as tools are written."""
    path = tmp_path / "program.py"
    path.write_text(f"""
import sys
sys.path.insert(0, {str(USER_DIR)!r})
from emohubert.core.cli import Parser, command
from emohubert.core.errors import InputError

@command
def main(argv=None):
    parser = Parser(description="Counts.")
    parser.add_argument("n", type=int)
    n = parser.parse_args(argv).n
    if n < 0:
        raise InputError(f"{{n}}: a negative number; give a positive one")
    for i in range(n):
        print(i)

if __name__ == "__main__":
    main()
""")

    def start(*arguments, environment=None):
        return subprocess.Popen(
            [sys.executable, path, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    return start


@pytest.mark.slow
def test_a_whole_program(program):
    started = [program(argument) for argument in ("3", "-2", "M\udcfcller")]
    results = [(*process.communicate(timeout=120), process.returncode) for process in started]
    assert results[0] == ("0\n1\n2\n", "", 0)
    assert results[1] == ("", "error: -2: a negative number; give a positive one\n", 2)
    out, err, status = results[2]
    assert (out, status) == ("", 2)
    assert re.fullmatch(r"error: .*M.*ller.*\n", err)


@pytest.mark.parametrize("lines", ["3", "200000"])
def test_a_reader_that_has_enough(program, lines):
    """`program | head -1` ends quietly, whether the pipe breaks while printing or at the exit."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    process = program(lines, environment=environment)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")


# -------------------------------------------------------------------------------------------------------------- parser


def parser():
    p = cli.Parser(prog="program", description="First line.\n\n  kept as it is")
    p.add_argument("folder", help="a folder")
    p.add_argument("--top-k", type=int, default=5, help="how many")
    p.add_argument("--name", help="a name")
    p.add_argument("--rate", type=float, required=True, help="a rate")
    p.add_overwrite()
    p.add_device()
    p.add_seed()
    return p


def test_help_shows_defaults_and_keeps_the_description():
    text = parser().format_help()
    assert "First line.\n\n  kept as it is" in text
    words = " ".join(text.split())
    assert "how many (default: 5)" in words
    assert words.count("(default: ") == 3  # --top-k, --device, --seed
    assert "--name NAME a name --rate RATE a rate --overwrite" in words


def test_common_options():
    values = parser().parse_args(["x", "--rate", "1"])
    assert (values.overwrite, values.device, values.seed) == (False, "auto", 1)
    assert parser().parse_args(["x", "--rate", "1", "--overwrite", "--device", "cpu", "--seed", "7"]).seed == 7


@pytest.mark.parametrize("argv", [[], ["x"], ["x", "--rate", "fast"], ["x", "--rate", "1", "--bogus"], ["x", "--rate"]])
def test_bad_usage_is_one_line_and_status_2(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(argv)
    assert stop.value.code == 2
    assert re.fullmatch(r"error: .+ \(see program --help\)\n", capsys.readouterr().err)


# ------------------------------------------------------------------------------------------------------------- devices


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "mps", "meta", "cuda:99", "cpu:cpu", "cuda:99999999999999999999"])
def test_devices_that_are_not_there(name):
    with pytest.raises(InputError, match=f"--device {name}: "):
        choose_device(name)


# ------------------------------------------------------------------------------------------------------------ progress


@pytest.mark.parametrize(("n", "lines"), [(0, 0), (1, 1), (7, 7), (10, 10), (100, 10), (105, 11)])
def test_progress_without_a_terminal_logs_tenths(caplog, monkeypatch, n, lines):
    monkeypatch.setattr(cli, "_SECONDS", 0)
    with caplog.at_level(logging.INFO, logger="emohubert"):
        assert list(cli.progress(list(range(n)), "reading", unit="files")) == list(range(n))
    assert len(caplog.messages) == lines
    if n:
        assert caplog.messages[-1] == f"reading: {n} of {n} files"


def test_short_work_logs_its_end_alone(caplog):
    with caplog.at_level(logging.INFO, logger="emohubert"):
        assert len(list(cli.progress(range(1000), "reading"))) == 1000
    assert caplog.messages == ["reading: 1000 of 1000 it"]


def test_progress_of_a_generator(caplog, monkeypatch):
    monkeypatch.setattr(cli, "_SECONDS", 0)
    with caplog.at_level(logging.INFO, logger="emohubert"):
        assert sum(cli.progress((i for i in range(250)), "reading")) == 31_125
        assert sum(cli.progress((i for i in range(20)), "reading", total=20)) == 190
    assert caplog.messages[:2] == ["reading: 100 it", "reading: 200 it"]
    assert caplog.messages[-1] == "reading: 20 of 20 it"


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch, caplog):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with caplog.at_level(logging.INFO, logger="emohubert"):
        assert list(cli.progress(range(5), "reading")) == list(range(5))
    assert "reading: 100%" in capsys.readouterr().err
    assert not caplog.messages
