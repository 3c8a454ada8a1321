"""`emohubert NAME …`: every program of tools/ and, as `emohubert manifest CORPUS …`, every script of manifests/."""

import ast
import importlib.util
import runpy
import sys
from pathlib import Path

from . import cli
from .errors import print_error

_PACKAGE = Path(__file__).resolve().parents[1]


def folder_of(name):
    """tools/, manifests/ or config/: inside the installed package, or beside user_dir/ in the source tree."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parents[1] / name


def shipped(path):
    """The folder or checkpoint of a model that comes with the package, for its name (`small`, `ser_small`); any other path as it is."""
    folder = _PACKAGE / "weights" / str(path)
    if not str(path).isidentifier() or not folder.is_dir():
        return path
    return folder / "model.pt" if (folder / "model.pt").is_file() else folder


def programs(folder):
    """{name: path} of the programs in tools/ or manifests/, benchmarks left out."""
    return {path.stem: path for path in sorted(folder_of(folder).glob("*.py")) if not path.stem.startswith(("bench_", "_"))}


def load(folder, name):
    """The module of a program, for its `main(argv)`."""
    spec = importlib.util.spec_from_file_location(f"emohubert_{folder}_{name}", programs(folder)[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _usage():
    lines = ["usage: emohubert NAME …          (emohubert NAME --help tells more)", ""]
    for name, path in programs("tools").items():
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        lines.append(f"  {name:<18} {summary}")
    lines.append(f"  {'manifest CORPUS':<18} Write manifest directories of a corpus: {' '.join(programs('manifests'))}")
    return "\n".join(lines)


@cli.command
def main(argv=None):
    """Run the program that the command line names, as if it had been called by its path."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    folder, name = ("manifests", " ".join(arguments[1:2])) if arguments[0] == "manifest" else ("tools", arguments[0])
    found = programs(folder).get(name)
    if found is None:
        print_error(f"“{name}” is not one of {' '.join(programs(folder))}; see emohubert --help")
        raise SystemExit(2)
    cli.Parser.called = f"emohubert {'manifest ' if folder == 'manifests' else ''}{name}"
    sys.argv[1:] = arguments[2 if folder == "manifests" else 1 :]
    runpy.run_path(str(found), run_name="__main__")
