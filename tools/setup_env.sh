#!/usr/bin/env bash
# Sets up the Python environment that everything here runs in; takes seconds where it is there already.
#
#   bash tools/setup_env.sh [--quiet]   set up, and print the path of the environment's interpreter
#   . tools/setup_env.sh                the same, then use it in this shell: sets PYTHON, puts its programs first on PATH
#
# EMOHUBERT_ENV says where. Without it: .venv in the project's folder. A path: that folder, made if it is not there;
# an environment that something else made is used as it is when it holds the versions of the requirements files, and
# is never changed. `active`: the environment that is active now, if torch, torchaudio and fairseq work in it.
#
# Needed: Python 3.11 or 3.12 on PATH, and a C++ compiler where fairseq has to be compiled (everywhere but with
# Python 3.12 on 64-bit x86 Linux); about 6 GB of disk; pip's ordinary settings decide where packages come from.
# The environment holds emohubert itself, from this source tree (`import emohubert`, `emohubert --help` work in any folder).
# An interrupted set-up is begun again by the next one; two at a time wait for each other.
# Exit 0: ready. Exit 2: `error: …` in one line, after a failed installation followed by the end of its log.

if [[ ${BASH_SOURCE[0]} != "$0" ]]; then # sourced: the work is done in a process of its own
    PYTHON=$(bash "${BASH_SOURCE[0]}" --quiet) || return 2
    export PYTHON PATH="${PYTHON%/*}:$PATH"
    if [[ -e ${PYTHON%/*}/../pyvenv.cfg ]]; then
        VIRTUAL_ENV=${PYTHON%/bin/*}
        export VIRTUAL_ENV
    fi
    return 0
fi

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
packages=(torch torchaudio fairseq hydra jinja2 joblib matplotlib npy_append_array numpy omegaconf pandas safetensors scipy sentencepiece sklearn
    soundfile tensorboard threadpoolctl tqdm yaml)

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "error: $*"
    exit 2
}

# ready PYTHON: the last words, and what a calling script reads.
ready() {
    [[ -n $quiet ]] || say "ready: $("$1" -V) in $("$1" -c 'import sys; print(sys.prefix)')"
    printf '%s\n' "$1"
    exit 0
}

# use_active: the active environment as it is, or one line that says what does not work in it.
use_active() {
    local python problem
    python=$(command -v python3 || command -v python) || fail "EMOHUBERT_ENV=active, but there is no Python on PATH; activate an environment"
    python=$("$python" -c 'import sys; print(sys.executable)') || fail "$python does not run; activate an environment"
    problem=$("$python" - "${packages[@]}" 2>&1 <<'PYTHON'
import importlib, importlib.util, sys

if sys.version_info[:2] not in ((3, 11), (3, 12)):
    sys.exit("it is Python %d.%d; 3.11 or 3.12 is needed" % sys.version_info[:2])
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
if missing:
    sys.exit("it lacks " + ", ".join(missing) + "; install requirements.txt into it")
for name in ("torch", "torchaudio", "fairseq"):
    try:
        importlib.import_module(name)
    except Exception as error:
        sys.exit("importing %s fails (%s: %s)" % (name, type(error).__name__, " ".join(str(error).split())))
PYTHON
    ) || fail "the active environment ($python) cannot be used: $(tail -n 1 <<<"$problem"); or unset EMOHUBERT_ENV to get one made"
    ready "$python"
}

# works: whether the environment's interpreter runs, is of the right version and belongs to the environment.
works() {
    "$env/bin/python" - "$env" 2>/dev/null <<'PYTHON'
import os, sys

sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)) or not os.path.samefile(sys.prefix, sys.argv[1]))
PYTHON
}

# holds_package: whether the package itself, with its plug-in for Hydra, is installed from a source tree that is still there (another
# checkout may share the environment).
holds_package() {
    "$env/bin/python" - 2>/dev/null <<'PYTHON'
import json, os, sys
from importlib.metadata import distribution
from importlib.util import find_spec
from urllib.parse import unquote, urlparse

tree = unquote(urlparse(json.loads(distribution("emohubert").read_text("direct_url.json"))["url"]).path)
plugin = os.path.exists(os.path.join(tree, "user_dir/hydra_plugins"))
sys.exit(not os.path.exists(os.path.join(tree, "setup.py")) or (plugin and find_spec("hydra_plugins.emohubert_errors") is None))
PYTHON
}

# lacking FILE …: what the environment lacks of the versions that the requirements files name; nothing when it is whole.
lacking() {
    "$env/bin/python" - "$@" <<'PYTHON'
import os, re, sys
from importlib.metadata import PackageNotFoundError, distribution

for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as lines:
        pins = [line.split("#")[0].strip() for line in lines]
    for pin in filter(None, pins):
        name, version = pin.split("==")
        try:
            found = distribution(name)
        except PackageNotFoundError:
            print(pin)
            continue
        if found.version.split("+")[0] != version:  # 2.11.0+cpu is a build of 2.11.0
            print(f"{pin} (it has {found.version})")
        elif found.files is None:  # pip writes the list of files last
            print(f"{pin} (it has a part of it)")

# Programs name their interpreter by its path: in an environment that was moved they do not start, or start another one.
program = os.path.join(sys.prefix, "bin", "fairseq-hydra-train")
if os.path.exists(program):
    with open(program, encoding="utf-8") as lines:
        places = re.findall("(/.*)/bin/python", lines.read(1000))
    if not any(os.path.exists(place) and os.path.samefile(place, sys.prefix) for place in places):
        print("programs that start (it was moved here)")
PYTHON
}

# whole: whether the environment is there, of the right versions and not left unfinished.
whole() {
    local missing
    [[ ! -e $unfinished ]] && works && missing=$(lacking "$root"/requirements{,-dev}.txt) && [[ -z $missing ]] || return 1
    [[ ! -e $made ]] || holds_package
}

# find_python: sets `python` to the first interpreter on PATH that can make the environment and build what has to be built.
# pyenv's shims are on PATH even when they cannot run, so each one is tried.
find_python() {
    local candidate answer problem=""
    for candidate in python3.11 python3.12 python3 python; do
        answer=$("$candidate" - 2>/dev/null <<'PYTHON'
import sys

if sys.version_info[:2] not in ((3, 11), (3, 12)):
    sys.exit(1)

import importlib.util, os, platform, shlex, subprocess, sysconfig

version = "%d.%d" % sys.version_info[:2]
if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
    sys.exit(print(f"Python {version} ({sys.executable}) cannot make environments; install python{version}-venv"))


def compiles(variable, language, source):
    command = os.environ.get(variable) or sysconfig.get_config_var(variable) or "c++"
    options = ["-x", language, "-fsyntax-only", "-I", sysconfig.get_path("include"), "-"]
    try:
        return subprocess.run([*shlex.split(command), *options], input=source.encode(), capture_output=True).returncode == 0
    except OSError:
        return False


# fairseq-fixed comes compiled for this one alone.
if (version, platform.system(), platform.machine()) != ("3.12", "Linux", "x86_64"):
    if not (compiles("CC", "c", "") and compiles("CXX", "c++", "#include <vector>\n")):
        sys.exit(print(f"a C++ compiler is needed to build fairseq for Python {version}; install g++"))
    if not compiles("CXX", "c++", "#include <Python.h>\n"):
        sys.exit(print(f"Python {version} ({sys.executable}) has no header files to build fairseq; install python{version}-dev"))
print("usable", os.path.realpath(sys.executable))  # not a link in an environment that may be about to go
PYTHON
        ) || continue
        if [[ $answer == "usable "* ]]; then
            python=${answer#usable }
            return
        fi
        problem=${problem:-$answer}
    done
    fail "${problem:-Python 3.11 or 3.12 is needed and neither is on PATH; install one (Debian, Ubuntu: python3.11, python3.11-venv and python3.11-dev)}"
}

# logged WHAT COMMAND …: run it with its output in the log; on failure show the end of that.
logged() {
    local what=$1
    shift
    printf '\n== %s\n' "$what" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null && return
    say "error: $what failed; the end of $log:"
    tail -n 15 "$log" >&2
    exit 2
}

# shellcheck disable=SC2329 # it is run through `logged`
# CUDA_HOME would make fairseq compile CUDA code that nothing here uses, against whichever CUDA it names.
pip() { env -u CUDA_HOME PIP_USER=0 "$env/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

install_runtime() {
    touch "$unfinished"
    find "$env" -mindepth 1 -maxdepth 1 ! -name 'setup_env.*' -exec rm -rf {} +
    : >"$log"
    say "setting up $env with $("$python" -V): a few minutes, once; log: $log"
    logged "making the environment" "$python" -m venv "$env"
    say "1/3 PyTorch"
    logged "installing PyTorch" pip install --prefer-binary -c "$root/requirements.txt" setuptools wheel Cython numpy torch torchaudio
    say "2/3 fairseq and the rest"
    logged "installing fairseq and the rest" pip install --prefer-binary --no-build-isolation -r "$root/requirements.txt"
    logged "importing torch, torchaudio and fairseq" "$env/bin/python" -c "import torch, torchaudio, fairseq"
}

# In a subshell, so that shellcheck, which follows this file from those that source it, does not take its exits for theirs.
main() (
    quiet=
    case ${1:-} in
    "") ;;
    --quiet) quiet=yes ;;
    -h | --help)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    *) fail "$1 is no option of ${0##*/}; see --help" ;;
    esac

    [[ ${EMOHUBERT_ENV:-} != active ]] || use_active
    env=${EMOHUBERT_ENV:-$root/.venv}
    [[ $env == /* ]] || env=$PWD/$env
    made=$env/setup_env.made             # this script made the environment, and may make it anew
    unfinished=$env/setup_env.unfinished # … and has not finished
    lock=$env/setup_env.lock
    log=$env/setup_env.log

    ! whole || ready "$env/bin/python"

    if [[ -d $env && ! -e $made && -n $(find "$env" -mindepth 1 -maxdepth 1 ! -name 'setup_env.*') ]]; then
        works || fail "$env holds something else than an environment of Python 3.11 or 3.12; remove it or name another folder with EMOHUBERT_ENV"
        fail "$env was not made by ${0##*/} and lacks $(lacking "$root"/requirements{,-dev}.txt | paste -sd , | sed 's/,/, /g'); install the requirements files into it, remove it, or name another folder with EMOHUBERT_ENV"
    fi

    find_python
    { mkdir -p "$env" && touch "$made"; } 2>/dev/null || fail "$env cannot be made or written to; name another folder with EMOHUBERT_ENV"
    exec 9>>"$lock"
    if command -v flock >/dev/null && ! flock -n 9; then
        say "waiting for another set-up of $env to finish"
        flock 9 || say "$lock cannot be locked; going on"
        ! whole || ready "$env/bin/python"
    fi

    # A change of the tools for development is installed into what is there; any other change means a new environment, since
    # fairseq's extensions are compiled against one version of torch.
    if [[ -e $unfinished ]] || ! works || [[ -n $(lacking "$root/requirements.txt") ]]; then
        install_runtime
    else
        touch "$unfinished"
    fi
    say "3/3 what the tests need, and emohubert itself"
    logged "installing what the tests need" pip install --prefer-binary -c "$root/requirements.txt" -r "$root/requirements-dev.txt"
    logged "installing emohubert" pip install --no-deps --no-build-isolation --editable "$root"
    missing=$(lacking "$root"/requirements{,-dev}.txt)
    [[ -z $missing ]] || fail "after the installation $env still lacks ${missing//$'\n'/, }; see $log"
    rm "$unfinished"
    ready "$env/bin/python"
)

main "$@"
