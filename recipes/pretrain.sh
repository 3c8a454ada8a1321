#!/usr/bin/env bash
# One training by itself, on one GPU, several, or several nodes (recipes/slurm/submit.sh pretrain …).
#
#   bash recipes/pretrain.sh --config papt_base --out exp/papt \
#       --set "task.data=exp/corpus task.label_dir=exp/labels/L9/km500 model.init_from=hubert_base_ls960.pt"
#
# --config NAME            configuration in config/
# --out DIR                folder of the training; run again, it goes on where it stopped
# --set "KEY=VALUE …"      its settings. What an update learns from is dataset.max_tokens × processes × optimization.update_freq,
#                          however it is divided
# --nproc N                processes, over torchrun: NCCL between GPUs, gloo without (default: fairseq takes all GPUs)
set -euo pipefail
for option in "$@"; do
    [[ $option == -h || $option == --help ]] || continue
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0"
    exit 0
done
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

CONFIG='' OUT='' SET='' NPROC='' FIRST=0 LAST=99
while (($#)); do
    case $1 in
        --config | --out | --set | --nproc | --stage | --stop-stage) (($# > 1)) || fail "$1: needs a value (see --help)" ;;&
        --config) CONFIG=$2 ;;
        --out) OUT=$(realpath -m "$2") ;;
        --set) SET=$2 ;;
        --nproc) NPROC=$2 ;;
        --stage) FIRST=$2 ;;
        --stop-stage) LAST=$2 ;;
        *) fail "$1: unknown option (see --help)" ;;
    esac
    shift 2
done
[[ -n $CONFIG && -n $OUT ]] || fail "--config and --out are needed (see --help)"
[[ -f $ROOT/config/$CONFIG.yaml ]] || fail "--config $CONFIG: there is no config/$CONFIG.yaml"
[[ -z $NPROC || $NPROC =~ ^[1-9][0-9]*$ ]] || fail "--nproc $NPROC: not a number of processes"
read -ra settings <<<"$SET"

if stage 1 "training $CONFIG" one train; then
    train "$CONFIG" "$OUT" "${settings[@]}"
fi
