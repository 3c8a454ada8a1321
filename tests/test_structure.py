"""The rooms of the package: imports point from the reader of results down to `core`, and no module imports itself round about."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "user_dir" / "emohubert"
ROOMS = [  # lowest first
    *("core", "corpus", "provenance", "pseudo_labels", "pretrained", "data", "models", "training"),
    *("evaluation", "criterions", "tasks", "speakers", "export", "report"),
]


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(module):
    """Modules of the package that a module imports, lazily or not."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            absolute = [*base, *(node.module or "").split(".")] if node.module else base
            if not node.level:
                if absolute[:1] != ["emohubert"]:
                    continue
                absolute = absolute[1:]
            for alias in node.names:
                whole = ".".join([*absolute, alias.name])
                yield whole if whole in MODULES else ".".join(absolute)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    room = module.split(".")[0]
    wrong = [other for other in imported(module) if other and ROOMS.index(other.split(".")[0]) > ROOMS.index(room)] if room else []
    assert not wrong


def test_no_module_imports_itself_round_about():
    graph = {module: {other for other in imported(module) if other != module} for module in MODULES}
    done, path = set(), []

    def visit(module):
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for other in sorted(graph[module]):
                visit(other)
            done.add(path.pop())

    for module in sorted(graph):
        visit(module)
