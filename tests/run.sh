#!/usr/bin/env bash
# Runs the tests: bash tests/run.sh [pytest options], such as -m "not slow" or tests/test_metrics.py -k ccc.
# Sets up the environment first if it is not there (see tools/setup_env.sh). Paths are relative to the project's folder.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=/dev/null
. "$root/tools/setup_env.sh"
cd "$root"

# One process for each of two cores, and one thread in each: small models gain nothing from more.
processes=$(nproc 2>/dev/null || echo 2)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
export MPLBACKEND=Agg HF_HUB_OFFLINE=1

exec "$PYTHON" -m pytest -n $((processes < 2 ? 1 : 2)) --dist loadfile --no-loadscope-reorder "$@"
