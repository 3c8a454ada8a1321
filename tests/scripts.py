"""Runs the programs of tools/ and manifests/ inside the test process: importing torch anew for each would take seconds."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(program):
    """The module of a program such as "manifests/emodb.py"."""
    path = ROOT / program
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(program, *arguments):
    """Run a program; returns its exit status."""
    try:
        load(program).main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code
    return 0


def mostly_slow(cases, fast=2):
    """Cases of a test, of which the first few run without `slow` too."""
    return [pytest.param(case, marks=[pytest.mark.slow] * (number >= fast), id=str(case)) for number, case in enumerate(cases)]
