# shellcheck shell=bash
# What recipes share: the environment, stages, training that can be run again. Source it: . "$(dirname "$0")/lib.sh"
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=/dev/null
. "$ROOT/tools/setup_env.sh"
# Threads that wait for each other without spinning: on a shared machine the difference is severalfold.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
export EMOHUBERT_USER_DIR="$ROOT/user_dir" PYTHONWARNINGS=${PYTHONWARNINGS:-ignore} MPLBACKEND=Agg

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# stage NUMBER TITLE: says what comes; false outside of --stage … --stop-stage (FIRST and LAST), so: if stage 2 "labels"; then …
stage() {
    (($1 >= ${FIRST:-0} && $1 <= ${LAST:-99})) || return 1
    printf '\n[%s] stage %s: %s\n' "$(date +%H:%M:%S)" "$1" "$2"
}

# tool NAME …: one of this project's programs, tools/NAME.py or manifests/NAME.py.
tool() {
    local name=$1
    shift
    "$PYTHON" "$ROOT/$name.py" "$@"
}

# each FUNCTION ARGUMENT…: FUNCTION for every argument, JOBS (default: all) at the same time, each on its share of the cores; fails if
# one fails, after those that run have ended.
each() {
    local function=$1 argument jobs running=0 status=0
    shift
    jobs=${JOBS:-$#}
    ((jobs <= $#)) || jobs=$#
    for argument in "$@"; do
        if ((running == jobs)); then
            wait -n || status=$?
            running=$((running - 1))
        fi
        ((status == 0)) || break
        OMP_NUM_THREADS=$(share_of_cores "$jobs") "$function" "$argument" &
        running=$((running + 1))
    done
    while ((running > 0)); do
        wait -n || status=$?
        running=$((running - 1))
    done
    ((status == 0)) || exit "$status"
}

# share_of_cores JOBS: threads for each of so many jobs.
share_of_cores() {
    local threads=$(($(nproc 2>/dev/null || echo 2) / $1))
    echo $((threads > 0 ? threads : 1))
}

# train CONFIG DIR key=value …: fairseq-hydra-train into DIR. Done already: skipped. Interrupted: goes on where it stopped.
train() {
    local config=$1 dir=$2 wanted log
    shift 2
    wanted=$(printf '%s\n' "$config" "$@")
    mkdir -p "$dir" || fail "$dir: cannot be made; choose another folder"
    if [[ -e $dir/settings.txt && $(<"$dir/settings.txt") != "$wanted" ]]; then
        fail "$dir: holds a training with other settings (see settings.txt in it); remove it, or choose another folder"
    fi
    if [[ -e $dir/finished ]]; then
        echo "$dir: trained already"
        return
    fi
    printf '%s\n' "$wanted" >"$dir/settings.txt"
    log=$dir/output.log
    echo "$dir: training $config (log: $dir/hydra_train.log)"
    if ! fairseq-hydra-train --config-dir "$ROOT/config" --config-name "$config" checkpoint.save_dir="$dir" "$@" >>"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" | cut -c1-400 >&2
        fail "$dir: training failed; the end of $log is above, and the same command goes on from the last checkpoint"
    fi
    touch "$dir/finished"
    grep -oE '"(valid_)(loss|ua|ccc)": "[^"]*"' "$dir/hydra_train.log" | tail -n 2 | paste -sd ' ' | sed "s|^|$dir: |" || true
}
