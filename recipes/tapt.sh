#!/usr/bin/env bash
# TAPT (Chen & Rudnicky 2023; Li et al. 2024): HuBERT's own pretraining continued on the emotion corpus, then V-FT.
#
#   bash recipes/tapt.sh --corpus-dir IEMOCAP --manifests iemocap --init hubert_base_ls960.pt --out exp/tapt \
#       --centroids hubert_base_ls960_L9_km500.bin
#
# Stages: 1 manifests, 2 unlabelled audio, 3 frame labels, 4 continued pretraining, 5 fine-tuning and test, 6 results.
# --centroids FILE    the k-means that the model was pretrained with (scikit-learn or ours); without it, --clusters (default 500,
#                     tiny: 50) of --layer are fitted on each fold's unlabelled audio
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"

OWN_OPTIONS="centroids" CENTROIDS=''
recipe_options "$@"
CLUSTERS=${CLUSTERS:-$(of_size 50 500 500)}

stage_manifests
stage_init

label() {
    if [[ -n $CENTROIDS ]]; then
        tool tools/make_labels "$OUT/fold$1/unlabelled" "$OUT/fold$1/labels" --checkpoint "$(init_of "$1")" --layers "$LAYER" --centroids "$CENTROIDS"
    else
        labels "$1" labels "$(init_of "$1")" "$LAYER" "$CLUSTERS"
    fi
}
if stage 3 "frame labels: ${CENTROIDS:-$CLUSTERS clusters} of layer $LAYER" fold gpu; then
    for_folds label
fi

continued() {
    local sets=("$OUT/fold$1/labels/L$LAYER"/km*)
    pretrain tapt "$1" tapt "${sets[0]}"
}
if stage 4 "continued pretraining (TAPT)" fold train; then
    for_folds continued
fi

if stage 5 "fine-tuning" run gpu; then
    finetune tapt "$OUT/fold{fold}/tapt/checkpoint_last.pt"
fi

stage_results 6 "TAPT" "TAPT=tapt"
