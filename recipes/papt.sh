#!/usr/bin/env bash
# PAPT and PLDC (Tran, Yin & Soleymani 2023): pretraining continued with an embedding per speaker, fine-tuning, and the test speakers
# met in settings that are kept apart in every table.
#
#   bash recipes/papt.sh --corpus-dir MSP --manifests msp_podcast --target "arousal valence" --init hubert_large.pt --size large --out exp/papt
#
# Stages: 1 manifests, 2 unlabelled audio, 3 frame labels, 4 continued pretraining with speakers (PAPT), 5 fine-tuning and test,
# 6 embeddings for the test speakers from their unlabelled audio, 7 PLDC, 8 results.
# --settings "S …"     inductive: test speakers are heard as the unknown speaker
#                      nearest: as an average of the training speakers who sound most alike
#                      adapted: an embedding is fitted to each test speaker's unlabelled audio, all else frozen
#                      transductive: their unlabelled audio takes part in pretraining, and they have an embedding
#                      (default: "inductive nearest adapted"; --transductive adds the last)
# --position P         where the speaker is added: output (as in the paper), input, prefix, film (default: output)
# --centroids FILE     the k-means that --init was pretrained with; without it, --clusters (default 500, tiny: 50) are fitted
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"
OWN_OPTIONS="settings position centroids" SETTINGS='inductive nearest adapted' POSITION=output CENTROIDS=''
recipe_options "$@"
CLUSTERS=${CLUSTERS:-$(of_size 50 500 500)}
[[ -z $TRANSDUCTIVE || $SETTINGS == *transductive* ]] || SETTINGS+=' transductive'
TRANSDUCTIVE=''  # what is shared is inductive
[[ -z ${COMPARED:-} ]] || SETTINGS=${SETTINGS/nearest/}
! [[ $SETTINGS == *adapted* || $SETTINGS == *nearest* ]] || AUDIT_ALLOW+=,adapted
wanted() { [[ " $SETTINGS " == *" $1 "* ]]; }

stage_manifests
stage_init

# audio SETTING FOLD: the unlabelled audio that pretraining hears.
audio() {
    [[ $1 == transductive ]] && echo "$OUT/fold$2/unlabelled_transductive" || echo "$OUT/fold$2/unlabelled"
}
# label_dir SETTING FOLD: its frame labels.
label_dir() {
    local suffix='' sets
    [[ $1 != transductive ]] || suffix=_transductive
    sets=("$OUT/fold$2/labels$suffix/L$LAYER"/km*)
    echo "${sets[0]}"
}

label() {
    local fold=$1 setting how=(--clusters "$CLUSTERS") valid=()
    [[ -z $CENTROIDS ]] || how=(--centroids "$CENTROIDS")
    tool tools/make_labels "$OUT/fold$fold/unlabelled" "$OUT/fold$fold/labels" --checkpoint "$(init_of "$fold")" --layers "$LAYER" "${how[@]}"
    wanted transductive || return 0
    [[ ! -e $manifests/fold$fold/valid.tsv ]] || valid=(--valid valid)
    tool tools/unlabelled "$manifests/fold$fold" "$OUT/fold$fold/unlabelled_transductive" --train train test "${valid[@]}"
    tool tools/make_labels "$OUT/fold$fold/unlabelled_transductive" "$OUT/fold$fold/labels_transductive" --checkpoint "$(init_of "$fold")" \
        --layers "$LAYER" "${how[@]}"
}
if stage 3 "frame labels: ${CENTROIDS:-$CLUSTERS clusters} of layer $LAYER" fold gpu; then
    for_folds label
fi

personalise() {
    local fold=$1 setting
    for setting in inductive transductive; do
        [[ $setting == inductive ]] || wanted transductive || continue
        data "$(audio "$setting" "$fold")"
        train "papt_$SIZE" "$OUT/fold$fold/papt_$setting" "${DATA[@]}" task.label_dir="$(label_dir "$setting" "$fold")" \
            model.init_from="$(init_of "$fold")" model.speaker_position="$POSITION" "${PRETRAIN_WITH[@]}"
    done
}
if stage 4 "continued pretraining with speaker embeddings (PAPT)" fold train; then
    for_folds personalise
fi

if stage 5 "fine-tuning" run gpu; then
    finetune papt_inductive "$OUT/fold{fold}/papt_inductive/checkpoint_last.pt"
    if wanted transductive; then
        finetune papt_transductive "$OUT/fold{fold}/papt_transductive/checkpoint_last.pt"
    fi
fi

# for_runs FUNCTION: FUNCTION FOLD SEED for every inductive run.
for_runs() {
    local fold seed
    for fold in $(folds); do
        for seed in $SEEDS; do
            "$1" "$fold" "$seed"
        done
    done
}
checkpoint_of() {
    local run=$OUT/papt_inductive/fold$1/seed$2
    [[ -e $manifests/fold$1/valid.tsv ]] && echo "$run/checkpoint_best.pt" || echo "$run/checkpoint_last.pt"
}

embed() {
    local fold=$1 dir=$OUT/fold$1 known
    tool tools/unlabelled "$manifests/fold$fold" "$dir/test_audio" --test test
    if wanted nearest; then
        tool tools/adapt_speaker "$dir/papt_inductive/checkpoint_last.pt" "$dir/test_audio" test "$dir/nearest.npz" --method nearest \
            --train-split "$dir/unlabelled/train"
    fi
    wanted adapted || return 0
    known=$(label_dir inductive "$fold")
    tool tools/make_labels "$dir/test_audio" "$dir/labels_test" --checkpoint "$(init_of "$fold")" --layers "$LAYER" \
        --centroids "$known/kmeans.npz" --splits test
    tool tools/adapt_speaker "$dir/papt_inductive/checkpoint_last.pt" "$dir/test_audio" test "$dir/adapted.npz" --method adapted \
        --label-dir "$dir/labels_test/L$LAYER/$(basename "$known")" --train-split "$dir/unlabelled/train"
}
evaluate_embedded() {
    local fold=$1 seed=$2 method
    for method in nearest adapted; do
        wanted "$method" || continue
        tool tools/evaluate "$(checkpoint_of "$fold" "$seed")" "$manifests/fold$fold" test "$OUT/papt_$method/fold$fold/seed$seed" \
            --speaker-vectors "$OUT/fold$fold/$method.npz"
    done
}
if stage 6 "embeddings for the test speakers from their unlabelled audio" fold gpu; then
    for_folds embed
    for_runs evaluate_embedded
fi

FORMS=$([[ -n $TARGET ]] && echo "mean std mean-std" || echo prior)
calibrate() {
    local fold=$1 seed=$2 dir=$OUT/papt_pldc/fold$1/seed$2 split form files
    for split in train test; do
        tool tools/evaluate "$(checkpoint_of "$fold" "$seed")" "$manifests/fold$fold" "$split" "$dir/$split" --embeddings
    done
    files=(--train-manifest "$manifests/fold$fold/train" --train-embeddings "$dir/train/embeddings.npz"
        --test-embeddings "$dir/test/embeddings.npz" --predictions "$dir/test/predictions.tsv" --test-manifest "$manifests/fold$fold/test")
    tool tools/calibrate "${files[@]}" "$dir/pldc"
    for form in $FORMS; do
        tool tools/calibrate "${files[@]}" --match "$form" --always "$dir/pldc_$form"
    done
}
if stage 7 "label distributions of unseen speakers calibrated (PLDC)" fold gpu; then
    for_runs calibrate
fi

systems=("PAPT, unknown speaker=papt_inductive")
per_run() {
    local form
    systems+=("PAPT + PLDC=papt_pldc/fold$1/seed$2/pldc")
    for form in $FORMS; do
        systems+=("PAPT + PLDC, $form always=papt_pldc/fold$1/seed$2/pldc_$form")
    done
    ! wanted nearest || systems+=("PAPT, nearest speakers=papt_nearest/fold$1/seed$2")
    ! wanted adapted || systems+=("PAPT, adapted=papt_adapted/fold$1/seed$2")
}
[[ ! -d $manifests ]] || for_runs per_run
! wanted transductive || systems+=("PAPT, transductive=papt_transductive")
TRANSDUCTIVE=$(wanted transductive && echo 1 || true)
stage_results 8 "PAPT" "${systems[@]}"
