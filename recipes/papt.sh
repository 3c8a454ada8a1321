#!/usr/bin/env bash
# PAPT and PLDC (Tran, Yin & Soleymani 2023): pretraining continued with an embedding per speaker, fine-tuning, and the test speakers
# met in settings that are kept apart in every table.
#
#   bash recipes/papt.sh --corpus-dir MSP --manifests msp_podcast --target "arousal valence" --init hubert_large.pt --size large --out exp/papt
#
# Stages: 1 manifests, 2 unlabelled audio, 3 frame labels, 4 continued pretraining with speakers (PAPT), 5 fine-tuning and test,
# 6 embeddings for the test speakers from their unlabelled audio, 7 PLDC, 8 results.
# --settings "S …"     inductive: test speakers have the embedding of the unknown speaker
#                      nearest: an average of the training speakers who sound most alike
#                      adapted: an embedding fitted to each test speaker's unlabelled audio, all else frozen
#                      transductive: their unlabelled audio takes part in pretraining, and they have an embedding
#                      (default: "inductive nearest adapted"; --transductive adds transductive)
# --position P         where the speaker is added: output (as in the paper), input, prefix, film (default: output)
# Frame labels: --centroids, or --clusters (default 500, tiny: 50) of --layer.
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"
OWN_OPTIONS="settings position" SETTINGS='inductive nearest adapted' POSITION=output
recipe_options "$@"
clustering
[[ -z $TRANSDUCTIVE || $SETTINGS == *transductive* ]] || SETTINGS+=' transductive'
TRANSDUCTIVE='' # what is shared is inductive
[[ -z ${COMPARED:-} ]] || SETTINGS=${SETTINGS/nearest/}
AUDIT_ALLOW+=,adapted # PLDC calibrates test speakers by their unlabelled audio
wanted() { [[ " $SETTINGS " == *" $1 "* ]]; }

stage_manifests
stage_init

label() {
    label_init "$1"
    if wanted transductive; then
        unlabelled "$1" unlabelled_transductive train test
        label_init "$1" _transductive
    fi
}
stage_labels label

personalise() {
    pretrain papt "$1" papt_inductive "$(label_set "$1")" model.speaker_position="$POSITION"
    if wanted transductive; then
        AUDIO=unlabelled_transductive
        pretrain papt "$1" papt_transductive "$(label_set "$1" _transductive)" model.speaker_position="$POSITION"
    fi
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

# for_folds embed: vectors of the test speakers in foldK/{nearest,adapted}.npz, and the evaluations with them.
embed() {
    local dir=$OUT/fold$1 seed method known model=("$OUT/fold$1/papt_inductive/checkpoint_last.pt" "$OUT/fold$1/test_audio" test) steps
    steps=(unlabelled "$manifests/fold$1" "$dir/test_audio" --test test)
    if wanted nearest; then
        steps+=(-- adapt_speaker "${model[@]}" "$dir/nearest.npz" --method nearest --train-split "$dir/unlabelled/train")
    fi
    if wanted adapted; then
        known=$(label_set "$1")
        steps+=(-- make_labels "$dir/test_audio" "$dir/labels_test" --checkpoint "$(init_of "$1")" --layers "$LAYER"
            --centroids "$known/kmeans.npz" --splits test)
        steps+=(-- adapt_speaker "${model[@]}" "$dir/adapted.npz" --method adapted --label-dir "$dir/labels_test/L$LAYER/${known##*/}")
    fi
    for seed in $SEEDS; do
        for method in nearest adapted; do
            ! wanted "$method" || steps+=(-- evaluate "$(best_of "$OUT/papt_inductive/fold$1/seed$seed")" "$manifests/fold$1" test
                "$OUT/papt_$method/fold$1/seed$seed" --speaker-vectors "$dir/$method.npz")
        done
    done
    tool "${steps[@]}"
}
if stage 6 "embeddings for the test speakers from their unlabelled audio" fold gpu; then
    for_folds embed
fi

FORMS=$([[ -n $TARGET ]] && echo "mean std mean-std" || echo prior)
calibrate() {
    local dir=$OUT/papt_pldc/fold$1/seed$2 manifest=$manifests/fold$1 split form steps=() files
    for split in train test; do
        steps+=(evaluate "$(best_of "$OUT/papt_inductive/fold$1/seed$2")" "$manifest" "$split" "$dir/$split" --embeddings --)
    done
    files=(--train-manifest "$manifest/train" --train-embeddings "$dir/train/embeddings.npz"
        --test-embeddings "$dir/test/embeddings.npz" --predictions "$dir/test/predictions.tsv" --test-manifest "$manifest/test")
    steps+=(calibrate "${files[@]}" "$dir/pldc")
    for form in $FORMS; do
        steps+=(-- calibrate "${files[@]}" --match "$form" --always "$dir/pldc_$form")
    done
    tool "${steps[@]}"
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
if wanted transductive; then
    systems+=("PAPT, transductive=papt_transductive")
    TRANSDUCTIVE=1
fi
stage_results 8 "PAPT" "${systems[@]}"
