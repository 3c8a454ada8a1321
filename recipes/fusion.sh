#!/usr/bin/env bash
# Where to add the speaker: the ablation of PAPT (Tran, Yin & Soleymani 2023, table 4). Pretraining is continued without speakers and with
# them at each position; one table of the validation loss of pretraining and the emotion scores of speakers never heard.
#
#   bash recipes/fusion.sh --corpus-dir RAVDESS --manifests ravdess --init small --out exp/fusion
#
# Stages: 1 manifests, 2 unlabelled audio, 3 frame labels, 4 continued pretraining, 5 fine-tuning and test, 6 results.
# --positions "P …"    none, output, input, prefix, film (default: all of them)
# Frame labels: --centroids, or --clusters (default 500; tiny, small: 50) of --layer.
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"
OWN_OPTIONS=positions POSITIONS='none output input prefix film'
recipe_options "$@"
clustering
read -ra positions <<<"$POSITIONS"

stage_manifests
stage_init

stage_labels label_init

fuse() {
    local position
    for position in "${positions[@]}"; do
        if [[ $position == none ]]; then
            pretrain tapt "$1" "pretrained_$position" "$(label_set "$1")"
        else
            pretrain papt "$1" "pretrained_$position" "$(label_set "$1")" model.speaker_position="$position"
        fi
    done
}
if stage 4 "continued pretraining, the speaker at: $POSITIONS" fold train; then
    for_folds fuse
fi

if stage 5 "fine-tuning" run gpu; then
    for position in "${positions[@]}"; do
        finetune "fusion_$position" "$OUT/fold{fold}/pretrained_$position/checkpoint_last.pt"
    done
fi

rows=()
for position in "${positions[@]}"; do
    rows+=("$position=fusion_$position")
    for folder in "$OUT"/fold*/pretrained_"$position"; do
        RESULTS+=(--pretraining "$position=$folder")
    done
done
stage_results 6 "the speaker's position" "${rows[@]}"
