#!/usr/bin/env bash
# P-TAPT (Chen & Rudnicky 2023): pretraining continued on clusters of an emotion-state estimator, then V-FT.
#
#   bash recipes/ptapt.sh --corpus-dir IEMOCAP --manifests iemocap --init hubert_base_ls960.pt --out exp/ptapt
#
# Stages: 1 manifests, 2 unlabelled audio, 3 the estimator: fine-tuned on the utterance's class at the utterance and at every frame,
# classes weighted, 4 three sets of clusters of its --layer, 5 continued pretraining, a head for each set, 6 fine-tuning and test,
# 7 results.
# --clusters "K K K"       (default: 64 512 4096; tiny: 16 32 64)
# --layer L                layer of the estimator to cluster (default: its last)
# --estimator-init CKPT    what the estimator starts from (default: --init); {fold} is replaced
# --estimator "KEY=VALUE"  further settings of the estimator's training
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"
OWN_OPTIONS="estimator-init estimator" ESTIMATOR_INIT='' ESTIMATOR='' DEFAULT_LAYERS=('' '' '' '')
recipe_options "$@"
[[ -n $LAYER$ESTIMATOR_INIT$ESTIMATOR ]] || LAYER=$(of_size 4 6 12 24)
read -ra clusters <<<"${CLUSTERS:-$(of_size "16 32 64" "16 32 64" "64 512 4096" "64 512 4096")}"
read -ra ESTIMATOR_WITH <<<"$ESTIMATOR"

stage_manifests
stage_init

estimate() {
    local init=${ESTIMATOR_INIT//\{fold\}/$1}
    data "$manifests/fold$1"
    train "ser_classification_$SIZE" "$OUT/fold$1/estimator" "${DATA[@]}" model.init_from="${init:-$(init_of "$1")}" \
        model.frame_head=true criterion.frame_weight=1.0 criterion.class_weights=balanced "${EMOTIONAL[@]}" "${ESTIMATOR_WITH[@]}"
}
if stage 3 "the emotion-state estimator" fold train; then
    for_folds estimate
fi

# layer_of FOLD: --layer, or the last of the fold's estimator, which may have started from another model than --init.
layer_of() {
    [[ -z $LAYER ]] || { echo "$LAYER" && return; }
    PYTHONPATH=$ROOT/user_dir "$PYTHON" - "$(best_of "$OUT/fold$1/estimator")" <<'END'
import sys
from emohubert.core.cli import command
from emohubert.pretrained.load import read_pretrained
command(lambda _: print(read_pretrained(sys.argv[1]).n_layers))()
END
}
label() {
    local layer
    layer=$(layer_of "$1")
    tool make_labels "$OUT/fold$1/unlabelled" "$OUT/fold$1/labels" --checkpoint "$(best_of "$OUT/fold$1/estimator")" \
        --layers "$layer" --clusters "${clusters[@]}"
}
if stage 4 "clusters of the estimator's frames: ${clusters[*]}" fold gpu; then
    for_folds label
fi

continued() {
    local layer sets
    layer=$(layer_of "$1")
    printf -v sets ",L$layer/km%s" "${clusters[@]}"
    pretrain ptapt "$1" ptapt "$OUT/fold$1/labels" task.labels="[${sets:1}]"
}
if stage 5 "continued pretraining on ${#clusters[@]} sets of labels (P-TAPT)" fold train; then
    for_folds continued
fi

if stage 6 "fine-tuning" run gpu; then
    finetune ptapt "$OUT/fold{fold}/ptapt/checkpoint_last.pt"
fi

stage_results 7 "P-TAPT" "P-TAPT=ptapt"
