#!/usr/bin/env bash
# PAPT and PLDC (Tran, Yin & Soleymani 2023): pretraining continued with an embedding per speaker, fine-tuning, and the test speakers
# met in settings that are kept apart in every table.
#
#   bash recipes/papt.sh --corpus-dir MSP --manifests msp_podcast --target "arousal valence" --init hubert_large.pt --size large --out exp/papt
#
# Stages: 1 manifests, 2 unlabelled audio, 3 frame labels, 4 continued pretraining with speakers (PAPT), 5 fine-tuning and test,
# 6 embeddings for the test speakers from their unlabelled audio (--position output), 7 PLDC, 8 what knowing a speaker would bring (--worth),
# 9 results.
# --settings "S …"     inductive: test speakers have the embedding of the unknown speaker
#                      adapted: an embedding from each test speaker's unlabelled audio, all else frozen
#                      transductive: their unlabelled audio takes part in pretraining, and they have an embedding
#                      (default: "inductive adapted"; --transductive adds transductive)
# --position P         where the speaker is added: output (as in the paper), input, prefix, film (default: output)
# --worth              also the study of figure 1: speakers heard and never heard over the number of training speakers, on layer --layer of
#                      --init (tools/personalisation.py); in the report
# Frame labels: --centroids, or --clusters (default 500; tiny, small: 50) of --layer.
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"
OWN_OPTIONS="settings position worth!" SETTINGS='inductive adapted' POSITION=output WORTH=''
recipe_options "$@"
clustering
[[ -z $TRANSDUCTIVE || $SETTINGS == *transductive* ]] || SETTINGS+=' transductive'
TRANSDUCTIVE='' # what is shared is inductive
[[ $POSITION == output ]] || SETTINGS=${SETTINGS/adapted/}
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

# for_runs embed: vectors of the test speakers and the evaluation with them.
embed() {
    local dir=$OUT/papt_adapted/fold$1/seed$2 given
    given=("$(best_of "$OUT/papt_inductive/fold$1/seed$2")" "$manifests/fold$1" test)
    tool adapt_speaker "${given[@]}" "$dir/speakers.npz" --feature-cache "$OUT/features" \
        -- evaluate "${given[@]}" "$dir" --speaker-vectors "$dir/speakers.npz" --feature-cache "$OUT/features"
}
if wanted adapted && stage 6 "embeddings for the test speakers from their unlabelled audio" fold gpu; then
    for_runs embed
fi

FORMS=$([[ -n $TARGET ]] && echo "mean std mean-std" || echo prior)
calibrate() {
    local dir=$OUT/papt_pldc/fold$1/seed$2 manifest=$manifests/fold$1 split form steps=() files
    for split in train test; do
        steps+=(evaluate "$(best_of "$OUT/papt_inductive/fold$1/seed$2")" "$manifest" "$split" "$dir/$split" --embeddings --feature-cache "$OUT/features" --)
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

if [[ -n $WORTH ]] && stage 8 "what knowing a speaker would bring: heard and never heard, over the number of training speakers" one cpu; then
    tool personalisation "$OUT/manifest" "$OUT/worth" --checkpoint "$(init_of "$(folds | head -n 1)")" --layer "$LAYER" \
        ${TARGET:+--target "${TARGET%% *}"}
fi

systems=("PAPT, unknown speaker=papt_inductive")
per_run() {
    local form
    systems+=("PAPT + PLDC=papt_pldc/fold$1/seed$2/pldc")
    for form in $FORMS; do
        systems+=("PAPT + PLDC, $form always=papt_pldc/fold$1/seed$2/pldc_$form")
    done
    ! wanted adapted || systems+=("PAPT, adapted=papt_adapted/fold$1/seed$2")
}
[[ ! -d $manifests ]] || for_runs per_run
if wanted transductive; then
    systems+=("PAPT, transductive=papt_transductive")
    TRANSDUCTIVE=1
fi
stage_results 9 "PAPT" "${systems[@]}"
