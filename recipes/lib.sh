# shellcheck shell=bash
# What recipes share: options, the environment, stages, training that can be run again. Source it: . "$(dirname "$0")/lib.sh"
set -euo pipefail

# --help: the comment that the recipe begins with, and OPTIONS_HELP.
for option in "$@"; do
    [[ $option == -h || $option == --help ]] || continue
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0"
    [[ -z ${OPTIONS_HELP:-} ]] || printf '%s\n' "$OPTIONS_HELP"
    exit 0
done

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

# options "NAME …" ARGUMENT…: reads --name VALUE into NAME, for each name of the list, --stop-times 3 into STOP_TIMES; a name that ends
# with ! has no value, its variable becomes 1. --stage and --stop-stage, which every recipe has, become FIRST and LAST.
options() {
    local known=" stage stop-stage $1 " option name value
    FIRST=0 LAST=99
    shift
    while (($#)); do
        option=$1 name=${1#--} value=1
        shift
        [[ $option == --* ]] || fail "$option: unexpected argument (see --help)"
        if [[ $known != *" $name! "* ]]; then
            [[ -n $name && $known == *" $name "* ]] || fail "$option: unknown option (see --help)"
            (($#)) || fail "$option: needs a value (see --help)"
            value=$1
            shift
        fi
        case $name in
            stage) FIRST=$value ;;
            stop-stage) LAST=$value ;;
            *)
                name=${name^^}
                printf -v "${name//-/_}" '%s' "$value"
                ;;
        esac
    done
    numbers FIRST LAST
}

# option_of NAME: the option that is read into NAME.
option_of() {
    local name=${1,,}
    case $name in
        first) echo --stage ;;
        last) echo --stop-stage ;;
        *) echo "--${name//_/-}" ;;
    esac
}

# needed NAME…: fails where one is empty.
needed() {
    local name
    for name in "$@"; do
        [[ -n ${!name:-} ]] || fail "$(option_of "$name") is missing (see --help)"
    done
}

# numbers NAME…: fails where one is not a whole number.
numbers() {
    local name
    for name in "$@"; do
        [[ ${!name} =~ ^[0-9]+$ ]] || fail "$(option_of "$name") ${!name}: not a number (see --help)"
    done
}

# counts NAME…: fails where one is not a whole number, 1 or more.
counts() {
    local name
    numbers "$@"
    for name in "$@"; do
        [[ ${!name} =~ [1-9] ]] || fail "$(option_of "$name") ${!name}: give 1 or more"
    done
}

# stage NUMBER TITLE [UNIT] [CLASS]: says what comes; false outside of --stage … --stop-stage (FIRST and LAST), so:
# if stage 2 "labels" fold gpu; then …
# What recipes/slurm/submit.sh makes of it: an array of a job for each UNIT, fold, run (fold × seed) or shard, or one job (one, the
# default); CLASS cpu (default), gpu or train (a training that may take several GPUs) says which resources it gets.
stage() {
    (($1 >= ${FIRST:-0} && $1 <= ${LAST:-99})) || return 1
    if [[ -n ${LIST_STAGES:-} ]]; then
        printf '%s\t%s\t%s\t%s\n' "$1" "${3:-one}" "${4:-cpu}" "$2"
        return 1
    fi
    printf '\n[%s] stage %s: %s\n' "$(date +%H:%M:%S)" "$1" "$2"
}

# tool NAME …: one of this project's programs, tools/NAME.py or manifests/NAME.py.
tool() {
    local name=$1
    shift
    "$PYTHON" "$ROOT/$name.py" "$@"
}

# each FUNCTION ARGUMENT…: FUNCTION for every argument, JOBS (default: all) at the same time, each on its share of the cores, and on a
# GPU of its own where there are several; fails if one fails, after those that run have ended.
each() {
    local function=$1 argument jobs running=0 status=0 number=0 gpus=0
    shift
    jobs=${JOBS:-$#}
    ((jobs <= $#)) || jobs=$#
    if ((jobs > 1)) && [[ -z ${CUDA_VISIBLE_DEVICES:-} ]]; then
        gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)
    fi
    for argument in "$@"; do
        if ((running == jobs)); then
            wait -n || status=$?
            running=$((running - 1))
        fi
        ((status == 0)) || break
        (
            ((gpus < 2)) || export CUDA_VISIBLE_DEVICES=$((number % gpus))
            OMP_NUM_THREADS=$(share_of_cores "$jobs") "$function" "$argument"
        ) &
        running=$((running + 1)) number=$((number + 1))
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

# launcher: sets LAUNCHER, what a training is started by: in a job of recipes/slurm that has several tasks, srun, a process for each, or
# torchrun on every node (EMOHUBERT_LAUNCH); with --nproc, torchrun; else nothing: fairseq takes the GPUs that there are.
launcher() {
    LAUNCHER=()
    if [[ -n ${EMOHUBERT_LAUNCH:-} && ${SLURM_NTASKS:-1} -gt 1 ]]; then
        LAUNCHER=(srun --kill-on-bad-exit=1 --unbuffered)
        [[ $EMOHUBERT_LAUNCH == srun ]] || LAUNCHER=(env EMOHUBERT_TASKS="$SLURM_NTASKS" "${LAUNCHER[@]}" --ntasks-per-node=1 --ntasks="$SLURM_NNODES" bash "$ROOT/recipes/slurm/torchrun.sh")
    elif ((${NPROC:-1} > 1)); then
        LAUNCHER=("$PYTHON" -m torch.distributed.run --standalone --local-addr=127.0.0.1 --nproc-per-node="$NPROC" --no-python)
    fi
}

# show_failure DIR LOG: why a training failed: the process that failed first, where there were several, or the end of the log.
show_failure() {
    local first
    # shellcheck disable=SC2012  # our own file names
    first=$(ls -tr "$1"/failed/rank*.log 2>/dev/null | head -n 1)
    if [[ -n $first ]]; then
        echo "$first:" >&2
        tail -n 30 "$first" | cut -c1-400 >&2
    elif ! grep -a '^error: ' "$2" | tail -n 1 | cut -c1-400 >&2; then
        tail -n 20 "$2" | cut -c1-400 >&2
    fi
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
    launcher
    if ! "${LAUNCHER[@]}" fairseq-hydra-train --config-dir "$ROOT/config" --config-name "$config" checkpoint.save_dir="$dir" "$@" \
        >>"$log" 2>&1 </dev/null; then
        if [[ -e $dir/stopped ]]; then
            echo "$dir: told to stop, after $(<"$dir/stopped"); the same command goes on from there" >&2
            exit 75
        fi
        show_failure "$dir" "$log"
        fail "$dir: training failed; the end of $log is above, and the same command goes on from the last checkpoint"
    fi
    touch "$dir/finished"
    grep -oE '"(valid_)(loss|ua|ccc)": "[^"]*"' "$dir/hydra_train.log" | tail -n 2 | paste -sd ' ' | sed "s|^|$dir: |" || true
}
