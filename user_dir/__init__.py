"""The fairseq user-dir: `common.user_dir=…/user_dir` makes the package `emohubert` importable and registers everything with fairseq."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import emohubert.tasks  # noqa: F401
