"""Programs start at once: nothing heavy is imported before it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = sorted(str(p.relative_to(ROOT)) for folder in ("tools", "manifests") for p in (ROOT / folder).glob("*.py"))
HEAVY = ("torch", "torchaudio", "fairseq", "sklearn", "scipy", "matplotlib", "pandas", "transformers")


def imported(code, *arguments):
    """Which of `HEAVY` a piece of code imports."""
    code += f"\nprint('imported:', *(m for m in {HEAVY} if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split()[1:]


def test_importing_the_package_loads_neither_torch_nor_fairseq():
    assert imported("import sys; sys.path.insert(0, 'user_dir'); import emohubert") == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_loads_nothing_heavy(program):
    code = (
        "import runpy, sys\nsys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
    )
    assert imported(code, program, "--help") == []
