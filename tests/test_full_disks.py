"""A disk that is full, for a while: one line, nothing half-written, and the same files once there is space and the same command is given."""

import contextlib
import io
import os
import resource

import pytest
from corpus import make_corpus
from scripts import load
from training import ROOT

pytestmark = pytest.mark.slow
PROGRAMS = {  # name: (arguments before the output folder, after it, sizes that files cannot exceed)
    "make_labels": (["{corpus}/manifest"], ["--mfcc", "--clusters", "9"], (40, 1000, 3000)),
    "evaluate": (
        [f"{ROOT}/user_dir/emohubert/weights/ser_small/model.pt", "{corpus}/manifest", "test"],
        ["--repeats", "20", "--workers", "1"],
        (600, 1500, 30_000),
    ),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, seconds=(0.3, 0.8), train=30, valid=4, test=16)
    return folder


def run(program, arguments, most=resource.RLIM_INFINITY):
    """(exit status, lines of errors) of a program that can write no file larger than `most` bytes, which stands for a full disk."""
    before, printed, status = resource.getrlimit(resource.RLIMIT_FSIZE), io.StringIO(), 0
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
            load(f"tools/{program}.py").main(arguments)
        except SystemExit as end:
            status = end.code
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return status, [line for line in printed.getvalue().splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_full_disk(corpus, tmp_path, program):
    first, last, sizes = PROGRAMS[program]
    out = tmp_path / "out"
    arguments = [*(a.format(corpus=corpus) for a in first), str(out), *last]
    assert run(program, arguments)[0] == 0
    whole = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    out.rename(tmp_path / "whole")
    (out / "figures").mkdir(parents=True)
    for size in sizes:
        status, errors = run(program, arguments, size)
        assert status == 2 and len(errors) == 1 and "cannot be written (File too large); free some space" in errors[0]
        assert not list(out.rglob("*.tmp"))
        for path in out.rglob("*"):
            assert path.is_dir() or path.read_bytes() == whole[path.relative_to(out)], "what has its name is whole"
    if program == "evaluate":
        (unfinished := out / "figures" / ".a.png.01234567.tmp").touch()  # of an evaluation that was killed
        os.utime(unfinished, (0, 0))  # long enough ago that it is nobody's who is about to lock it
    assert run(program, arguments)[0] == 0
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole
