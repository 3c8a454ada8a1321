#!/usr/bin/env bash
# Runs the tests: bash tests/run.sh [pytest options], such as -m "not slow" or tests/test_metrics.py -k ccc.
# Sets up the environment first if it is not there (see tools/setup_env.sh). Paths are relative to the project's folder.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../tools/setup_env.sh
. "$root/tools/setup_env.sh"
cd "$root"

# Small models and tests of several processes: more than two threads each cost more than they bring.
threads=$(nproc 2>/dev/null || echo 2)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads < 2 ? threads : 2))}
export MPLBACKEND=Agg HF_HUB_OFFLINE=1

exec "$PYTHON" -m pytest "$@"
