#!/usr/bin/env bash
# One job of recipes/slurm/submit.sh: job.sh ROOT LAUNCH GRACE DONE UNIT "VALUE …" COMMAND…
#
# UNIT says which option COMMAND gets for this task of an array: fold (--folds VALUE), run (--index N), shard (--rank N), one (none).
# A signal shortly before the end of the job's time, or a training that was told to stop, queues the job again: it goes on from where
# it stopped. What is whole leaves a mark in DONE, so that the same submission does not repeat it.
set -uo pipefail
root=$1 launch=$2 grace=$3 marks=$4 unit=$5
read -ra values <<<"$6"
shift 6
task=${SLURM_ARRAY_TASK_ID:-0}
case $unit in
    fold) set -- "$@" --folds "${values[$task]}" ;;
    run) set -- "$@" --index "$task" ;;
    shard) set -- "$@" --rank "$task" ;;
esac
export EMOHUBERT_LAUNCH=$launch EMOHUBERT_TASKS=${SLURM_NTASKS:-1} OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it over by itself

# shellcheck disable=SC2329  # called where the signal comes
# listeners PID: processes below PID that listen to SIGUSR1: trainings have a handler for it, and srun passes it on.
listeners() {
    local child caught name
    for child in $(pgrep -P "$1"); do
        caught=$(sed -n 's/^SigCgt:\t//p' "/proc/$child/status" 2>/dev/null)
        name=$(cat "/proc/$child/comm" 2>/dev/null)
        if [[ $name == srun ]] || { [[ -n $caught && $name != bash ]] && ((0x${caught:8} & 0x200)); }; then
            echo "$child"
        fi
        listeners "$child"
    done
}
again() {
    if ((${SLURM_RESTART_COUNT:-0} >= 1000)); then
        echo "job.sh: queued again a thousand times already: giving up" >&2
        exit 1
    fi
    echo "job.sh: queueing this job again (restart $((${SLURM_RESTART_COUNT:-0} + 1))); it goes on from where it stopped"
    if ! scontrol requeue "$SLURM_JOB_ID"; then
        echo "job.sh: Slurm did not take it; submit again by hand, the same command goes on" >&2
        return
    fi
    sleep 600 # until Slurm ends this one
}
signalled='' timer=''
# shellcheck disable=SC2329
on_signal() {
    [[ -z $signalled ]] || return 0
    signalled=1
    local heard
    heard=$(listeners $$)
    echo "job.sh: told to end soon: ${heard:+telling ${heard//$'\n'/ } to save a checkpoint}"
    # shellcheck disable=SC2086  # several numbers
    [[ -z $heard ]] || kill -USR1 $heard 2>/dev/null
    [[ $launch != torchrun ]] || scancel --full --signal=USR1 "$SLURM_JOB_ID" 2>/dev/null # srun does not pass it on to grandchildren
    (sleep $((grace / 2)) && again) & # what does not listen can be killed at any moment
    timer=$!
}
trap on_signal USR1

cd "$root" || exit 2
echo "job.sh: $(date '+%F %T') ${SLURM_JOB_NAME:-} ${SLURM_JOB_ID:-} on ${SLURM_JOB_NODELIST:-$(hostname)}: $*"
"$@" &
command=$!
while :; do
    wait "$command"
    status=$?
    kill -0 "$command" 2>/dev/null || break # else it was the signal that ended the waiting
done
[[ -z $timer ]] || kill "$timer" 2>/dev/null
if ((status == 75)) || { ((status != 0)) && [[ -n $signalled ]]; }; then
    again
fi
((status == 0)) && mkdir -p "$marks" && touch "$marks/$task"
echo "job.sh: $(date '+%F %T') exit status $status"
exit "$status"
