#!/usr/bin/env bash
# A recipe as a chain of Slurm jobs: each stage waits for the one before; folds, runs (folds × seeds) and shards are arrays.
#
#   bash recipes/slurm/submit.sh RECIPE OPTION…          RECIPE: vft tapt ptapt flea papt crema_d_report adaptation compare labels pretrain
#
# OPTION…            those of recipes/RECIPE.sh
# --resources FILE   what jobs ask for (default: recipes/slurm/resources.conf)
# --dry-run          print the sbatch commands, submit nothing
# --status           state of the jobs of the chain in --out
# --again            submit what is done already, too
#
# After a failure the same command continues: tasks that are complete are left out. Logs: --out/slurm/. Where --folds is not given, and
# manifests are not there yet, they are made at once, since the number of folds determines the number of jobs.
# Needed: --out on a file system that all nodes share.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}
if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0"
    exit 0
fi
recipe=$1 resources=$ROOT/recipes/slurm/resources.conf dry='' again='' status='' out='' options=()
shift
[[ " vft tapt ptapt flea papt crema_d_report adaptation compare labels pretrain " == *" $recipe "* ]] || fail "$recipe: no recipe for Slurm (see --help)"
while (($#)); do
    case $1 in
        --dry-run) dry=1 ;;
        --again) again=1 ;;
        --status) status=1 ;;
        --index | --rank) fail "$1: set for each job here; leave it out" ;;
        --resources | --out)
            (($# > 1)) || fail "$1: needs a value"
            [[ $1 == --out ]] && out=$(realpath -m "$2") || resources=$2
            shift
            ;;
        *) options+=("$1") ;;
    esac
    shift
done
[[ -n $out ]] || fail "--out is missing"
options+=(--out "$out")
logs=$out/slurm

if [[ -n $status ]]; then
    [[ -e $logs/jobs.tsv ]] || fail "$logs/jobs.tsv: nothing was submitted for this folder"
    while IFS=$'\t' read -r stage job title; do
        states=$(squeue --noheader --array --jobs "$job" --format '%T %r' 2>/dev/null | sort | uniq -c | sed 's/^ *//' | paste -sd ';') || true
        printf '%-6s %-12s %-40s %s\n' "$stage" "$job" "${states:-not in the queue any more}" "$title"
    done <"$logs/jobs.tsv"
    exit 0
fi

declare -A resource=([COMMON]='' [CPU]='' [GPU]='' [TRAIN]='' [GRACE]=180 [MAX_RUNNING]='')
[[ -r $resources ]] || fail "$resources: no such file; copy recipes/slurm/resources.conf"
number=0
while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
    [[ $line =~ ^([A-Z_]+)=(.*)$ && -v "resource[${BASH_REMATCH[1]}]" ]] ||
        fail "$resources:$number: '$line' is not NAME=options; the names are ${!resource[*]}"
    resource[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
done <"$resources"
[[ ${resource[GRACE]} =~ ^[0-9]+$ ]] || fail "$resources: GRACE=${resource[GRACE]}: not a number of seconds"
[[ -n $dry ]] || command -v sbatch >/dev/null || fail "sbatch is not on PATH; run this where Slurm is, or look with --dry-run"

recipe_command=(bash "$ROOT/recipes/$recipe.sh" "${options[@]}")
stages=$(LIST_STAGES=1 "${recipe_command[@]}") || exit 2
if grep -qE $'^[0-9]+\t(fold|run)\t' <<<"$stages" && ! grep -q $'^folds\t.' <<<"$stages"; then
    echo "manifests first: they say how many folds there are"
    "${recipe_command[@]}" --stage 1 --stop-stage 1 >&2 || exit 2
    stages=$(LIST_STAGES=1 "${recipe_command[@]}") || exit 2
fi
field() {
    awk -F '\t' -v name="$1" '$1 == name {print $2}' <<<"$stages"
}
read -ra folds <<<"$(field folds)"
read -ra seeds <<<"$(field seeds)"
declare -A count=([one]=1 [fold]=${#folds[@]} [run]=$((${#folds[@]} * ${#seeds[@]})) [shard]=$(field shards))

if [[ -z $dry && -e $logs/jobs.tsv ]]; then
    waiting=$(squeue --noheader --format %A --jobs "$(cut -f 2 "$logs/jobs.tsv" | paste -sd,)" 2>/dev/null | sort -un | paste -sd ' ') || true
    [[ -z $waiting ]] || fail "$out: jobs of an earlier submission are still queued or running; wait, or: scancel $waiting"
fi
key=$(printf '%s\n' "$recipe" "${options[@]}" | sha256sum | cut -c1-12)
mkdir -p "$logs"
[[ -n $dry ]] || : >"$logs/jobs.tsv"

previous=''
# submit STAGE UNIT CLASS TITLE COMMAND…: those tasks of one stage that left no mark, waiting for the stage before.
submit() {
    local stage=$1 unit=$2 class=$3 title=$4 marks=$logs/done/$key/$1 name=%x_%j todo=() extra=() i job
    shift 4
    for ((i = 0; i < count[$unit]; i++)); do
        [[ -z $again && -e $marks/$i ]] || todo+=("$i")
    done
    if ((${#todo[@]} == 0)); then
        printf '%-6s %-12s %-7s %s\n' "$stage" "done" "${count[$unit]}" "$title"
        return
    fi
    if [[ $unit != one ]]; then
        name=%x_%A_%a
        extra+=("--array=$(IFS=, && echo "${todo[*]}")${resource[MAX_RUNNING]:+%${resource[MAX_RUNNING]}}")
    fi
    [[ -z $previous ]] || extra+=(--dependency=afterok:"$previous" --kill-on-invalid-dep=yes)
    local asked=()
    read -ra asked <<<"${resource[COMMON]} ${resource[${class^^}]}"
    local command=(sbatch --parsable --job-name="$recipe-$stage" --output="$logs/$name.log" --open-mode=append --requeue
        --signal="B:USR1@${resource[GRACE]}" --chdir="$ROOT" "${asked[@]}" "${extra[@]}"
        "$ROOT/recipes/slurm/job.sh" "$ROOT" "${resource[GRACE]}" "$marks" "$unit" "${folds[*]}" "$@")
    if [[ -n $dry ]]; then
        printf '%q ' "${command[@]}"
        printf '\n'
        previous="JOB_$stage"
        return
    fi
    job=$("${command[@]}") || fail "sbatch refused stage $stage (see above); what was submitted before waits: scancel $(cut -f 2 "$logs/jobs.tsv" | paste -sd ' ')"
    previous=${job%%;*}
    printf '%s\t%s\t%s\n' "$stage" "$previous" "$title" >>"$logs/jobs.tsv"
    printf '%-6s %-12s %-7s %s\n' "$stage" "$previous" "${#todo[@]}" "$title"
}

[[ -n $dry ]] || printf '%-6s %-12s %-7s %s\n' stage job tasks title
while IFS=$'\t' read -r stage unit class title; do
    [[ $stage =~ ^[0-9]+$ ]] || continue
    command=("${recipe_command[@]}" --stage "$stage" --stop-stage "$stage")
    submit "$stage" "$unit" "$class" "$title" "${command[@]}"
    [[ $unit != run ]] || submit "$stage.t" one cpu "$title: the table" "${command[@]}"
done <<<"$stages"
[[ -z $dry ]] || exit 0
if [[ -s $logs/jobs.tsv ]]; then
    echo "status: bash recipes/slurm/submit.sh $recipe --out $out --status     logs: $logs"
else
    echo "all done: $out"
fi
