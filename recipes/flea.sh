#!/usr/bin/env bash
# FLEA (Li et al. 2024): pretraining continued on frame-level pseudo-emotion labels; mean or soft attention pooling.
#
#   bash recipes/flea.sh --corpus-dir IEMOCAP --manifests iemocap --init hubert_base_ls960.pt --out exp/flea \
#       --layers "6 9 11" --clusters "50 100 150" --poolings "mean attention"
#
# Stages: 1 manifests, 2 unlabelled audio, 3 frame labels and TAPT, 4 TAPT fine-tuned for emotion, 5 clusters of its layers,
# 6 pretraining continued from the original --init on each of them, 7 fine-tuning and test of the grid, 8 results.
# --layers "L …"      layers of the fine-tuned model (default: 9; tiny: 3)
# --clusters "K …"    (default: 50; tiny: 16)
# --poolings "P …"    mean, attention (default: both)
# --tapt-clusters K   clusters for TAPT (default: 500; tiny: 50)
# --centroids FILE    for TAPT, the k-means that --init was pretrained with
# --tapt DIR          the --out of recipes/tapt.sh on the same folds: its models, in place of a TAPT of our own
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"

OWN_OPTIONS="layers poolings tapt-clusters centroids tapt" LAYERS='' POOLINGS='mean attention' TAPT_CLUSTERS='' CENTROIDS='' TAPT=''
recipe_options "$@"
read -ra LAYERS <<<"${LAYERS:-$(of_size 3 9 9)}"
read -ra CLUSTERS <<<"${CLUSTERS:-$(of_size 16 50 50)}"
read -ra POOLINGS <<<"$POOLINGS"
TAPT_CLUSTERS=${TAPT_CLUSTERS:-$(of_size 50 500 500)}
adapted="$(realpath -m "${TAPT:-$OUT}")/fold{fold}/tapt/checkpoint_last.pt"

stage_manifests
stage_init

adapt() {
    local sets how=(--clusters "$TAPT_CLUSTERS")
    [[ -z $CENTROIDS ]] || how=(--centroids "$CENTROIDS")
    tool tools/make_labels "$OUT/fold$1/unlabelled" "$OUT/fold$1/labels_tapt" --checkpoint "$(init_of "$1")" --layers "$LAYER" "${how[@]}"
    sets=("$OUT/fold$1/labels_tapt/L$LAYER"/km*)
    pretrain tapt "$1" tapt "${sets[0]}"
}
if [[ -z $TAPT ]] && stage 3 "TAPT" fold train; then
    for_folds adapt
fi

tune() {
    data "$manifests/fold$1"
    train "ser_classification_$SIZE" "$OUT/fold$1/emotion" "${DATA[@]}" model.init_from="${adapted/\{fold\}/$1}" "${FINETUNE_WITH[@]}"
}
if stage 4 "TAPT fine-tuned for emotion" fold train; then
    for_folds tune
fi

label() {
    local dir=$OUT/fold$1/emotion checkpoint=checkpoint_best.pt
    [[ -e $dir/$checkpoint ]] || checkpoint=checkpoint_last.pt
    labels "$1" labels "$dir/$checkpoint" "${LAYERS[*]}" "${CLUSTERS[@]}"
}
if stage 5 "frame-level pseudo-emotion labels: layers ${LAYERS[*]}, ${CLUSTERS[*]} clusters" fold gpu; then
    for_folds label
fi

continued() {
    local layer k
    for layer in "${LAYERS[@]}"; do
        for k in "${CLUSTERS[@]}"; do
            pretrain flea "$1" "flea_L${layer}_km$k" "$OUT/fold$1/labels/L$layer/km$k"
        done
    done
}
if stage 6 "pretraining continued from the original model (FLEA)" fold train; then
    for_folds continued
fi

systems=("TAPT, mean=tapt_mean")
for layer in "${LAYERS[@]}"; do
    for k in "${CLUSTERS[@]}"; do
        for pooling in "${POOLINGS[@]}"; do
            systems+=("FLEA, layer $layer, $k clusters, $pooling=flea_L${layer}_km${k}_$pooling")
        done
    done
done
if stage 7 "fine-tuning of the grid" run gpu; then
    [[ -n ${COMPARED:-} ]] || finetune tapt_mean "$adapted" model.pooling=mean
    for layer in "${LAYERS[@]}"; do
        for k in "${CLUSTERS[@]}"; do
            for pooling in "${POOLINGS[@]}"; do
                finetune "flea_L${layer}_km${k}_$pooling" "$OUT/fold{fold}/flea_L${layer}_km$k/checkpoint_last.pt" model.pooling="$pooling" model.head=linear
            done
        done
    done
fi

stage_results 8 "FLEA" "${systems[@]}"
