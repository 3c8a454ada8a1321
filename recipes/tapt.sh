#!/usr/bin/env bash
# TAPT (Chen & Rudnicky 2023; Li et al. 2024): HuBERT's own pretraining continued on the emotion corpus, then V-FT.
#
#   bash recipes/tapt.sh --corpus-dir IEMOCAP --manifests iemocap --init hubert_base_ls960.pt --out exp/tapt \
#       --centroids hubert_base_ls960_L9_km500.bin
#
# Stages: 1 manifests, 2 unlabelled audio, 3 frame labels, 4 continued pretraining, 5 fine-tuning and test, 6 results.
# Frame labels: --centroids, or --clusters (default 500; tiny, small: 50) of --layer.
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"
recipe_options "$@"
clustering

stage_manifests
stage_init

stage_labels label_init

continued() {
    pretrain tapt "$1" tapt "$(label_set "$1")"
}
if stage 4 "continued pretraining (TAPT)" fold train; then
    for_folds continued
fi

if stage 5 "fine-tuning" run gpu; then
    finetune tapt "$OUT/fold{fold}/tapt/checkpoint_last.pt"
fi

stage_results 6 "TAPT" "TAPT=tapt"
