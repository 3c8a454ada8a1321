#!/usr/bin/env bash
# V-FT (Chen & Rudnicky 2023): a pretrained model fine-tuned for emotion, nothing else. Mean over time, ReLU, one linear layer.
#
#   bash recipes/vft.sh --corpus-dir IEMOCAP --manifests iemocap --init hubert_base_ls960.pt --out exp/vft
#
# Stages: 1 manifests, 2 --init scratch, 3 fine-tuning and test of every fold and seed, 4 results beside the paper's.
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"
recipe_options "$@"

stage_manifests
stage_init

if stage 3 "fine-tuning (V-FT)" run gpu; then
    finetune vft "$(init_of '{fold}')"
fi

stage_results 4 "V-FT" "V-FT=vft"
