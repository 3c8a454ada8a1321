#!/usr/bin/env bash
# One job of recipes/slurm/submit.sh: job.sh ROOT GRACE DONE UNIT "VALUE …" COMMAND…
#
# UNIT says which option COMMAND gets for this task of an array: fold (--folds VALUE), run (--index N), shard (--rank N), one (none).
# A signal shortly before the end of the job's time, or a preempted training, queues the job again: it resumes where it stopped.
# What is complete leaves a mark in DONE, so that the same submission does not repeat it.
set -uo pipefail
root=$1 grace=$2 marks=$3 unit=$4
export EMOHUBERT_SRUN=yes OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}} # see emohubert/training/launch.py
read -ra values <<<"$5"
shift 5
task=${SLURM_ARRAY_TASK_ID:-0}
case $unit in
    fold) set -- "$@" --folds "${values[$task]}" ;;
    run) set -- "$@" --index "$task" ;;
    shard) set -- "$@" --rank "$task" ;;
esac
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it over by itself

again() {
    if ((${SLURM_RESTART_COUNT:-0} >= 1000)); then
        echo "job.sh: queued again a thousand times already: giving up" >&2
        exit 1
    fi
    echo "job.sh: queueing this job again (restart $((${SLURM_RESTART_COUNT:-0} + 1))); it resumes where it stopped"
    if ! scontrol requeue "$SLURM_JOB_ID"; then
        echo "job.sh: Slurm did not take it; submit again by hand, the same command resumes" >&2
        return
    fi
    sleep 600 # until Slurm ends this one
}
signalled='' timer=''
# shellcheck disable=SC2329  # called where the signal comes
on_signal() {
    [[ -z $signalled ]] || return 0
    signalled=1
    echo "job.sh: preempted: telling trainings to save a checkpoint"
    scancel --full --signal=USR1 "$SLURM_JOB_ID" 2>/dev/null # trainings have a handler for it, all else here ignores it
    (sleep $((grace / 2)) && again) & # what has no handler can be killed at any moment
    timer=$!
}

cd "$root" || exit 2
echo "job.sh: $(date '+%F %T') ${SLURM_JOB_NAME:-} ${SLURM_JOB_ID:-} on ${SLURM_JOB_NODELIST:-$(hostname)}: $*"
trap '' USR1
"$@" &
command=$!
trap on_signal USR1
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
