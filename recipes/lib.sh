# shellcheck shell=bash
# What recipes share: options, the environment, stages, programs and trainings. Source it: . "$(dirname "$0")/lib.sh"
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
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} PYTHONWARNINGS=${PYTHONWARNINGS:-ignore} MPLBACKEND=Agg

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# options "NAME …" ARGUMENT…: reads --name VALUE into NAME, for each name of the list, --stop-times 3 into STOP_TIMES; a name that ends
# with ! has no value, its variable becomes 1. Every recipe has --stage and --stop-stage.
options() {
    local known=" stage stop-stage ${1//[[:space:]]/ } " name variable
    STAGE=0 STOP_STAGE=99
    shift
    while (($#)); do
        [[ $1 == --* ]] || fail "$1: unexpected argument (see --help)"
        name=${1#--} variable=${1#--}
        variable=${variable^^} variable=${variable//-/_}
        if [[ $known == *" $name! "* ]]; then
            printf -v "$variable" 1
        else
            [[ -n $name && $known == *" $name "* ]] || fail "$1: unknown option (see --help)"
            (($# > 1)) || fail "$1: needs a value (see --help)"
            printf -v "$variable" '%s' "$2"
            shift
        fi
        shift
    done
    require number STAGE STOP_STAGE
}

# require KIND NAME…: fails where an option is missing (KIND value), not a whole number (number), or not 1 or more (count).
require() {
    local kind=$1 name option
    shift
    for name in "$@"; do
        option=${name,,} option=--${option//_/-}
        if [[ $kind == value ]]; then
            [[ -n ${!name:-} ]] || fail "$option is missing (see --help)"
        else
            [[ ${!name} =~ ^[0-9]+$ ]] || fail "$option ${!name}: not a number (see --help)"
            [[ $kind == number || ${!name} =~ [1-9] ]] || fail "$option ${!name}: give 1 or more"
        fi
    done
}

# output_folder: makes --out, and its path absolute.
output_folder() {
    mkdir -p "$OUT" || fail "$OUT: cannot be made; choose another --out"
    OUT=$(cd "$OUT" && pwd)
}

# stage NUMBER TITLE [UNIT] [CLASS]: says what comes, and how long the stage before took; false outside of --stage … --stop-stage, so:
# if stage 2 "labels" fold gpu; then …
# What recipes/slurm/submit.sh makes of it: an array of a job for each UNIT, fold, run (fold × seed) or shard, or one job (one, the
# default); CLASS cpu (default), gpu or train (a training that may take several GPUs) says which resources it gets.
stage() {
    took
    (($1 >= STAGE && $1 <= STOP_STAGE)) || return 1
    if [[ -n ${LIST_STAGES:-} ]]; then
        printf '%s\t%s\t%s\t%s\n' "$1" "${3:-one}" "${4:-cpu}" "$2"
        return 1
    fi
    printf '\n[%s] stage %s: %s\n' "$(date +%H:%M:%S)" "$1" "$2"
    running=$1 began=$SECONDS
}
took() {
    [[ -z ${running:-} ]] || printf '[%s] stage %s took %d s\n' "$(date +%H:%M:%S)" "$running" $((SECONDS - began))
    running=''
}
trap '(($?)) || took' EXIT

# tool NAME … [-- NAME …]: programs of tools/ and manifests/, one after another in one process.
tool() {
    "$PYTHON" "$ROOT/tools/steps.py" "$@"
}

# train CONFIG DIR key=value …: a training into DIR. Done already: skipped. Interrupted: resumes where it stopped.
train() {
    "$PYTHON" "$ROOT/tools/train.py" "$@" ${NPROC:+--nproc "$NPROC"}
}

# each FUNCTION ARGUMENT…: FUNCTION for every argument, JOBS (default: all) at the same time, each on its share of the cores, and on a
# GPU of its own where there are several; fails if one fails, after those that run have ended.
each() {
    local function=$1 argument jobs threads active=0 status=0 number=0 gpus=0
    shift
    jobs=${JOBS:-$#}
    ((jobs <= $#)) || jobs=$#
    threads=$(($(nproc 2>/dev/null || echo 2) / jobs))
    if ((jobs > 1)) && [[ -z ${CUDA_VISIBLE_DEVICES:-} ]]; then
        gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)
    fi
    for argument in "$@"; do
        if ((active == jobs)); then
            wait -n || status=$?
            active=$((active - 1))
        fi
        ((status == 0)) || break
        (
            ((gpus < 2)) || export CUDA_VISIBLE_DEVICES=$((number % gpus))
            ((jobs == 1)) || export TERM=dumb # lines of progress in place of bars
            OMP_NUM_THREADS=$((threads > 0 ? threads : 1)) "$function" "$argument"
        ) &
        active=$((active + 1)) number=$((number + 1))
    done
    while ((active > 0)); do
        wait -n || status=$?
        active=$((active - 1))
    done
    ((status == 0)) || exit "$status"
}
