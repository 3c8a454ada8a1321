#!/usr/bin/env bash
# One training by itself, on one GPU, several, or several nodes (recipes/slurm/submit.sh pretrain …).
#
#   bash recipes/pretrain.sh --config papt_base --out exp/papt \
#       --set "task.data=exp/corpus task.label_dir=exp/labels/L9/km500 model.init_from=hubert_base_ls960.pt"
#
# --config NAME            configuration in config/
# --out DIR                folder of the training; run again, it resumes where it stopped
# --set "KEY=VALUE …"      its settings. What an update learns from is dataset.max_tokens × processes × optimization.update_freq,
#                          however it is divided
# --nproc N                processes, over torchrun: NCCL between GPUs, gloo without (default: fairseq takes all GPUs)
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

CONFIG='' OUT='' SET='' NPROC=''
options "config out set nproc" "$@"
require value CONFIG OUT
require count ${NPROC:+NPROC}
[[ -f $ROOT/config/$CONFIG.yaml ]] || fail "--config $CONFIG: there is no config/$CONFIG.yaml"
OUT=$(realpath -m "$OUT")
read -ra settings <<<"$SET"

if stage 1 "training $CONFIG" one train; then
    train "$CONFIG" "$OUT" "${settings[@]}"
fi
