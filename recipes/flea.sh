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
# --poolings "P …"    mean, attention (default: both; small: mean_std, which its other systems have, and attention)
# --tapt-clusters K   clusters for TAPT (default: 500; tiny: 50), without --centroids
# --tapt DIR          the --out of recipes/tapt.sh on the same folds: its models, in place of a TAPT of our own
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"
OWN_OPTIONS="layers poolings tapt-clusters tapt" LAYERS='' POOLINGS='' TAPT_CLUSTERS='' TAPT=''
recipe_options "$@"
read -ra layers <<<"${LAYERS:-$(of_size 3 3 9 9)}"
read -ra clusters <<<"${CLUSTERS:-$(of_size 16 16 50 50)}"
mean=$(of_size mean mean_std mean mean) head=$(of_size linear mlp linear linear)
read -ra poolings <<<"${POOLINGS:-$mean attention}"
CLUSTERS=$TAPT_CLUSTERS
clustering
adapted="$(realpath -m "${TAPT:-$OUT}")/fold{fold}/tapt/checkpoint_last.pt"

stage_manifests
stage_init

adapt() {
    label_init "$1" _tapt
    pretrain flea "$1" tapt "$(label_set "$1" _tapt)" # in FLEA's schedule
}
if [[ -z $TAPT ]] && stage 3 "TAPT" fold train; then
    for_folds adapt
fi

tune() {
    data "$manifests/fold$1"
    train "ser_classification_$SIZE" "$OUT/fold$1/emotion" "${DATA[@]}" model.init_from="${adapted/\{fold\}/$1}" \
        "${EMOTIONAL[@]}" "${FINETUNE_WITH[@]}"
}
if stage 4 "TAPT fine-tuned for emotion" fold train; then
    for_folds tune
fi

label() {
    tool make_labels "$OUT/fold$1/unlabelled" "$OUT/fold$1/labels" --checkpoint "$(best_of "$OUT/fold$1/emotion")" \
        --layers "${layers[@]}" --clusters "${clusters[@]}"
}
if stage 5 "frame-level pseudo-emotion labels: layers ${layers[*]}, ${clusters[*]} clusters" fold gpu; then
    for_folds label
fi

sets=() # such as L9/km50
for layer in "${layers[@]}"; do
    sets+=("${clusters[@]/#/L$layer/km}")
done

continued() {
    local set
    for set in "${sets[@]}"; do
        pretrain flea "$1" "flea_${set/\//_}" "$OUT/fold$1/labels/$set"
    done
}
if stage 6 "pretraining continued from the original model (FLEA)" fold train; then
    for_folds continued
fi

if stage 7 "fine-tuning of the grid" run gpu; then
    [[ -n ${COMPARED:-} ]] || finetune "tapt_$mean" "$adapted" model.pooling="$mean"
    for set in "${sets[@]/\//_}"; do
        for pooling in "${poolings[@]}"; do
            finetune "flea_${set}_$pooling" "$OUT/fold{fold}/flea_$set/checkpoint_last.pt" model.pooling="$pooling" model.head="$head"
        done
    done
fi

systems=("TAPT, $mean=tapt_$mean")
for set in "${sets[@]}"; do
    name=${set/L/FLEA, layer }
    for pooling in "${poolings[@]}"; do
        systems+=("${name/\/km/, } clusters, $pooling=flea_${set/\//_}_$pooling")
    done
done
stage_results 8 "FLEA" "${systems[@]}"
