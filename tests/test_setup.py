"""Set-up: the environment script on made-up packages, the installed package, the declared dependencies, the shell code."""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from importlib.metadata import PathDistribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [ROOT / ".ci/run", *sorted(p for d in ("manifests", "recipes", "tests", "tools") for p in (ROOT / d).rglob("*.sh"))]
BASH = shutil.which("bash")
BASE_PYTHON = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
BUILD_ONLY = {"setuptools", "wheel", "cython"}
MODULES = {
    "fairseq-fixed": "fairseq",
    "hydra-core": "hydra",
    "npy-append-array": "npy_append_array",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}


def pins(name):
    """{canonical name: version} of a requirements file."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return {canonicalize_name(package): version for package, version in (line.split("==") for line in lines if line)}


PINS = pins("requirements.txt") | pins("requirements-dev.txt")


# ---------------------------------------------------------------------------------------------------------------------
# A set-up on made-up packages: real Python, venv and pip, and wheels that hold next to nothing.


BACKEND = """
import pathlib, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    info = "emohubert-0.dist-info"
    files = {
        "emohubert.pth": str(pathlib.Path("user_dir").absolute()),
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: emohubert\\nVersion: 0\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(pathlib.Path(wheel_directory, "emohubert-0-py3-none-any.whl"), "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return "emohubert-0-py3-none-any.whl"
"""


def make_wheel(folder, name, version):
    """The smallest wheel that pip installs: one empty module; the one of fairseq also brings its program."""
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    files = {
        f"{MODULES.get(name, stem)}.py": "def main():\n    print('training')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if name == "setuptools":  # enough of it to build this project
        del files["setuptools.py"]
        files["setuptools/build_meta.py"] = BACKEND
    if name == "fairseq-fixed":
        files[f"{info}/entry_points.txt"] = "[console_scripts]\nfairseq-hydra-train = fairseq:main\n"
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{stem}-{version}-py3-none-any.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)


class Project:
    """A copy of the set-up scripts with a folder of made-up wheels, and a place for the environment."""

    def __init__(self, folder):
        self.root, self.wheels, self.env = folder / "project", folder / "wheels", folder / "an environment"
        self.wheels.mkdir()
        self.path = f"{folder / 'interpreter'}{os.pathsep}{os.environ['PATH']}"
        (folder / "interpreter").mkdir()
        (folder / "interpreter/python3.11").symlink_to(BASE_PYTHON)  # looked for first, and taken for what it says it is
        for file in [
            "tools/setup_env.sh",
            "tests/run.sh",
            ".ci/run",
            "requirements.txt",
            "requirements-dev.txt",
            "setup.py",
            "pyproject.toml",
        ]:
            (self.root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, self.root / file)
        for name, version in PINS.items():
            make_wheel(self.wheels, name, version)

    def variables(self, **variables):
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull}
        return kept | pip | {"EMOHUBERT_ENV": str(self.env), "CC": "true", "CXX": "true", "PATH": self.path} | variables

    def run(self, *command, **variables):
        command = command or (BASH, str(self.root / "tools/setup_env.sh"))
        return subprocess.run(
            command,
            env=self.variables(**variables),
            cwd=self.root.parent,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )

    def foreign(self):
        """An environment that the script did not make, with all packages in it."""
        subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", self.env], check=True)
        for wheel in self.wheels.iterdir():
            zipfile.ZipFile(wheel).extractall(self.packages)
        self.program("fairseq-hydra-train", f"#!{self.env}/bin/python3\n")
        return self

    def program(self, name, text):
        (self.env / "bin" / name).write_text(text)
        (self.env / "bin" / name).chmod(0o755)

    @property
    def packages(self):
        return self.env / f"lib/python3.{sys.version_info.minor}/site-packages"

    @property
    def python(self):
        return str(self.env / "bin/python")


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture
def bare_path(tmp_path):
    """A folder of programs, for PATH: what the script needs to run at all; no Python and no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "env", "false", "find", "mkdir", "paste", "rm", "sed", "tail", "touch", "true"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def assert_error(result, *words):
    """Exit 2 and one line `error: …` with these words in it."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.slow
def test_set_up_from_nothing_to_the_next_versions(project):
    missing = next(project.wheels.glob("fairseq_fixed*"))
    aside = missing.rename(project.root / missing.name)
    failed = project.run()
    assert failed.returncode == 2 and failed.stdout == ""
    assert f"error: installing fairseq and the rest failed; the end of {project.env}/setup_env.log:" in failed.stderr
    assert "No matching distribution found for fairseq-fixed==" in failed.stderr

    # What a failed or interrupted set-up left is not trusted.
    aside.rename(missing)
    (project.packages / "left_by_an_interruption.py").touch()
    command = (BASH, str(project.root / "tools/setup_env.sh"))
    with subprocess.Popen(command, env=project.variables(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr.readline().startswith("setting up ")
        second = project.run()  # at the same time: waits, and finds it done
        out, err = first.communicate()
    assert (first.returncode, out) == (0, f"{project.python}\n"), err
    assert (second.returncode, second.stdout) == (0, f"{project.python}\n"), second.stderr
    assert [line.split(":")[0].split(" ")[0] for line in second.stderr.splitlines()] == ["waiting", "ready"]
    assert not (project.packages / "left_by_an_interruption.py").exists()
    assert subprocess.run([project.env / "bin/fairseq-hydra-train"], capture_output=True, text=True).stdout == "training\n"
    assert (project.packages / "emohubert.pth").read_text() == str(project.root / "user_dir")

    # The second run takes seconds and installs nothing.
    before = sorted(project.packages.iterdir())
    started = time.monotonic()
    again = project.run(PIP_FIND_LINKS="")
    assert time.monotonic() - started < 10
    assert (again.returncode, again.stdout) == (0, f"{project.python}\n")
    assert again.stderr.startswith("ready: Python 3.1")
    assert sorted(project.packages.iterdir()) == before

    # Another version of a tool is installed into it; another version of torch means a new environment, even in its own shell.
    witness = project.packages / "witness.py"
    witness.touch()
    for file, name in [("requirements-dev.txt", "ruff"), ("requirements.txt", "torch")]:
        text = (project.root / file).read_text()
        (project.root / file).write_text(text.replace(f"\n{name}=={PINS[name]}", f"\n{name}==99.0"))
        make_wheel(project.wheels, name, "99.0")
        assert project.run(PATH=f"{project.env}/bin:{project.path}").returncode == 0
        assert [p.name for p in project.packages.glob(f"{name}-*.dist-info")] == [f"{name}-99.0.dist-info"]
        assert witness.exists() == (name == "ruff")


def test_an_environment_made_by_others_is_adopted_when_it_matches(project):
    project.foreign()
    before = sorted(p.name for p in project.env.iterdir())
    result = project.run(PIP_FIND_LINKS="")
    assert (result.returncode, result.stdout) == (0, f"{project.python}\n")
    assert sorted(p.name for p in project.env.iterdir()) == before

    build = project.packages / f"torch-{PINS['torch']}.dist-info/METADATA"
    build.write_text(build.read_text().replace(f"Version: {PINS['torch']}", f"Version: {PINS['torch']}+cpu"))
    assert project.run().returncode == 0


def test_an_environment_made_by_others_is_never_changed(project):
    project.foreign()
    shutil.rmtree(project.packages / f"soundfile-{PINS['soundfile']}.dist-info")
    (project.packages / f"scipy-{PINS['scipy']}.dist-info/RECORD").unlink()
    metadata = project.packages / f"torch-{PINS['torch']}.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace(PINS["torch"], "2.13.0"))
    before = sorted(project.env.rglob("*"))
    result = project.run()
    assert_error(
        result,
        f"{project.env} was not made by setup_env.sh",
        f"soundfile=={PINS['soundfile']}",
        f"scipy=={PINS['scipy']} (it has a part of it)",
        f"torch=={PINS['torch']} (it has 2.13.0)",
        "EMOHUBERT_ENV",
    )
    assert sorted(project.env.rglob("*")) == before


def test_a_moved_environment_is_not_used(project):
    project.foreign()
    project.env = project.env.rename(project.env.with_name("moved"))
    assert_error(project.run(), "programs that start (it was moved here)")


def test_a_folder_of_other_things_is_left_alone(project):
    project.env.mkdir()
    (project.env / "thesis.tex").touch()
    assert_error(project.run(), str(project.env), "holds something else", "EMOHUBERT_ENV")
    assert (project.env / "thesis.tex").exists()


def test_an_unwritable_place_is_one_line(project):
    project.env.parent.joinpath("file").touch()
    assert_error(project.run(EMOHUBERT_ENV=str(project.env.parent / "file" / "env")), "file/env cannot be made or written to")


def test_no_python_is_one_line(project, bare_path):
    assert_error(project.run(PATH=str(bare_path)), "Python 3.11 or 3.12 is needed and neither is on PATH")
    assert not project.env.exists()


def test_an_interpreter_that_does_not_run_is_passed_over(project, bare_path):
    def interpreter(name, text):
        (bare_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (bare_path / name).chmod(0o755)

    interpreter("python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    assert_error(project.run(PATH=str(bare_path)), "Python 3.11 or 3.12 is needed and neither is on PATH")
    interpreter("python3.12", "echo usable true")
    result = project.run(PATH=str(bare_path))
    assert result.stderr.startswith(f"setting up {project.env} with ")  # and fails, as `true` makes no environment


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="fairseq has to be compiled on Python 3.11 alone")
def test_no_compiler_is_one_line(project, bare_path):
    (bare_path / "python3").symlink_to(BASE_PYTHON)
    assert_error(project.run(PATH=str(bare_path), CC="no-such-compiler", CXX="no-such-compiler"), "a C++ compiler is needed", "install g++")
    assert_error(project.run(PATH=str(bare_path), CC="false", CXX="false"), "a C++ compiler is needed", "install g++")
    assert not project.env.exists()


def test_unknown_option_is_one_line(project):
    assert_error(project.run(BASH, str(project.root / "tools/setup_env.sh"), "--fast"), "--fast", "--help")
    assert "EMOHUBERT_ENV" in project.run(BASH, str(project.root / "tools/setup_env.sh"), "--help").stdout


def test_active_environment_is_used_as_it_is(project):
    project.foreign()
    (project.packages / f"torch-{PINS['torch']}.dist-info/METADATA").unlink()
    active = {"EMOHUBERT_ENV": "active", "PATH": f"{project.env}/bin:{project.path}"}
    result = project.run(**active)
    assert (result.returncode, result.stdout) == (0, f"{project.python}3\n"), result

    (project.packages / "torchaudio.py").write_text("raise OSError('libcudart.so.13:\\n cannot open')\n")
    assert_error(project.run(**active), "importing torchaudio fails (OSError: libcudart.so.13: cannot open)")
    names = {MODULES.get(name, name) for name in set(pins("requirements.txt")) - BUILD_ONLY}
    for name in names:
        (project.packages / f"{name}.py").unlink()
    result = project.run(**active)
    assert_error(result, "it lacks ", "; install requirements.txt into it")
    assert set(re.search("it lacks (.*?);", result.stderr)[1].split(", ")) == names


def test_sourcing_leaves_the_shell_as_it_is_but_for_the_environment(project):
    project.foreign()
    source = f"set -- --own-option; . '{project.root}/tools/setup_env.sh' || echo \"failed $?\"; "
    result = project.run(BASH, "-c", source + 'echo "$PYTHON|$VIRTUAL_ENV|$(command -v fairseq-hydra-train)|$1|$-"; declare -F')
    assert result.stdout == f"{project.python}|{project.env}|{project.env}/bin/fairseq-hydra-train|--own-option|hBc\n"
    assert result.stderr == ""
    (project.packages / f"torch-{PINS['torch']}.dist-info/METADATA").unlink()
    result = project.run(BASH, "-c", source + "echo still here")
    assert result.stdout == "failed 2\nstill here\n"


def test_run_sh_passes_its_options_on(project):
    project.foreign()
    (project.packages / "pytest.py").write_text(
        "import os, sys\nprint(sys.argv[1:], os.getcwd(), os.environ['OMP_NUM_THREADS'])\nsys.exit(5)\n"
    )
    result = project.run(BASH, str(project.root / "tests/run.sh"), "-m", "not slow", "-q")
    processes = ["-n", str(min(2, len(os.sched_getaffinity(0)))), "--dist", "loadfile", "--no-loadscope-reorder"]
    assert (result.returncode, result.stdout) == (5, f"{[*processes, '-m', 'not slow', '-q']} {project.root} 1\n"), result.stderr
    assert project.run(BASH, str(project.root / "tests/run.sh"), OMP_NUM_THREADS="3").stdout.endswith(" 3\n")


@pytest.mark.parametrize("broken", [None, "ruff", "shellcheck", "pytest"])
def test_ci_fails_when_any_check_fails(project, broken):
    project.foreign()
    for name in ("ruff", "shellcheck"):
        project.program(name, f"#!/bin/sh\nexit {int(name == broken)}\n")
    (project.packages / "pytest.py").write_text(f"import sys\nprint('== 1 passed in 0.01s ==')\nsys.exit({int(broken == 'pytest')})\n")
    result = project.run(BASH, str(project.root / ".ci/run"), CI="true")
    assert result.returncode == (1 if broken else 0), result
    assert "== 1 passed in 0.01s ==" in result.stdout
    failed = {
        None: "",
        "ruff": "failed: ruff check\nfailed: ruff format\n",
        "shellcheck": "failed: shellcheck\n",
        "pytest": "failed: tests\n",
    }
    assert result.stdout.endswith("== 1 passed in 0.01s ==\n" + failed[broken])


# ---------------------------------------------------------------------------------------------------------------------
# The shell code, the installed package, the declared dependencies.


@pytest.mark.slow
def test_shell_code_is_clean():
    for script in SCRIPTS:
        subprocess.run([BASH, "-n", script], check=True)
        assert os.access(script, os.X_OK) or script.name in ("lib.sh", "paper.sh"), f"{script} is not executable"
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    result = subprocess.run([shellcheck, "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(source, target): a copy of the package and where `pip install .` put it; a build leaves files beside setup.py."""
    folder = tmp_path_factory.mktemp("install")
    source, target = folder / "source", folder / "site"
    for name in ("user_dir", "tools", "manifests", "config"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for file in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, source], check=True)
    return source, target


def imports(file):
    """(line, top-level module) of every absolute import in a Python file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.slow
def test_pip_install_brings_the_whole_package(installed):
    source, target = installed
    package = target / "emohubert"
    files = {p.relative_to(source / "user_dir/emohubert") for p in (source / "user_dir/emohubert").rglob("*.*") if p.suffix != ".pyc"}
    files |= {p.relative_to(source) for name in ("tools", "manifests") for p in (source / name).glob("*.py") if "bench_" not in p.name}
    files |= {p.relative_to(source) for p in (source / "config").glob("*.yaml")}
    assert {p.relative_to(package) for p in package.rglob("*.*") if p.suffix != ".pyc"} == files
    version = re.search('^__version__ = "(.+)"', (package / "__init__.py").read_text(), re.MULTILINE)[1]
    assert sorted(p.name for p in target.iterdir()) == ["bin", "emohubert", f"emohubert-{version}.dist-info", "hydra_plugins"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["check_manifest"], ["manifest", "emodb"]], ids=" ".join)
def test_the_command_runs_every_program(installed, arguments, tmp_path):
    def emohubert(*arguments):
        command = [sys.executable, installed[1] / "bin/emohubert", *arguments]
        return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(installed[1])}, cwd=tmp_path, capture_output=True, text=True)

    assert f"\n  {arguments[0]} " in emohubert("--help").stdout
    assert emohubert(*arguments, "--help").stdout.startswith(f"usage: emohubert {' '.join(arguments)} ")
    assert_error(emohubert(*arguments), f"emohubert {' '.join(arguments)} --help")
    assert_error(emohubert(*arguments[:-1], "no_such_program"), "no_such_program", arguments[-1])


@pytest.mark.slow
def test_declared_ranges_hold_the_pins_and_every_import_is_declared(installed):
    metadata = PathDistribution(next(installed[1].glob("*.dist-info")))
    assert SpecifierSet(metadata.metadata["Requires-Python"]) == SpecifierSet(">=3.11,<3.13")
    required = [Requirement(text) for text in metadata.requires]
    ranges = {canonicalize_name(r.name): r.specifier for r in required if not r.marker}
    extras = {canonicalize_name(r.name) for r in required if r.marker}
    tested = pins("requirements.txt")
    assert set(ranges) == set(tested) - BUILD_ONLY
    for name, specifier in ranges.items():
        assert tested[name] in specifier, f"{name}: setup.py says {specifier}, requirements.txt {tested[name]}"

    distributions = packages_distributions()
    for file in [*(ROOT / "user_dir").rglob("*.py"), *(ROOT / "tools").glob("*.py"), *(ROOT / "manifests").glob("*.py")]:
        for line, module in imports(file):
            if module not in sys.stdlib_module_names | {"emohubert"}:
                names = {canonicalize_name(name) for name in distributions.get(module, [module])}
                declared = set(PINS if file.name.startswith("bench_") else ranges) | extras  # benchmarks have other sides to compare with
                assert names & declared, f"{file}:{line}: {module} is not among the dependencies in setup.py"


@pytest.mark.slow
@pytest.mark.parametrize("where", ["installed", "source"])
def test_fairseq_imports_either_folder_as_emohubert(where, installed, tmp_path):
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def python(code, *arguments, **more):
        command = [sys.executable, "-c", code, *arguments]
        result = subprocess.run(command, env=variables | more, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    user_dir, package = ROOT / "user_dir", ROOT / "user_dir/emohubert"
    if where == "installed":
        user_dir = package = installed[1] / "emohubert"
        assert python("import emohubert; print(emohubert.__path__[0])", PYTHONPATH=str(installed[1])) == [str(user_dir)]
    code = (
        "import sys; from argparse import Namespace; from fairseq import tasks, utils\n"
        "utils.import_user_module(Namespace(user_dir=sys.argv[1]))\n"
        "print(sys.modules['emohubert'].__file__)\n"
        "print(tasks.TASK_REGISTRY['speaker_hubert_pretraining'].__module__)"
    )
    assert python(code, str(user_dir)) == [str(package / "__init__.py"), "emohubert.tasks.speaker_hubert_pretraining"]
