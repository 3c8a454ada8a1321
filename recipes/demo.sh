#!/usr/bin/env bash
# From a folder of emotional speech to a personalised HuBERT, and to speakers that no training has seen, in minutes on a CPU.
#
#   bash recipes/demo.sh                                                a corpus generated on the spot
#   CORPUS=emodb CORPUS_DIR=/path/to/emodb bash recipes/demo.sh         real speech (any corpus of manifests/)
#
# CORPUS       name of a script in manifests/ (default: synthetic)
# CORPUS_DIR   its audio (default: where the generated corpus goes)
# OUT          output folder (default: demo/$CORPUS)
# FIRST, LAST  first and last stage to run (default: all nine)
# UPDATES      updates of the first pretraining (default: 450); SEED (default: 1)
#
# Run again, it resumes where it stopped. All models are far too small and trained far too briefly for good numbers; what
# is to be seen is every step at work, and which setting each number comes from.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
(($# == 0)) || fail "no arguments, options are environment variables (see --help)"

CORPUS=${CORPUS:-synthetic} OUT=${OUT:-demo/${CORPUS:-synthetic}} UPDATES=${UPDATES:-450} SEED=${SEED:-1} STAGE=${FIRST:-0} STOP_STAGE=${LAST:-99}
[[ $CORPUS == synthetic || -n ${CORPUS_DIR:-} ]] || fail "CORPUS_DIR is empty; give the folder of the corpus $CORPUS"
CORPUS_DIR=$(realpath -m "${CORPUS_DIR:-$OUT/audio}")
output_folder
manifest=$OUT/manifest
common=(common.seed="$SEED" task.data="$manifest")

if stage 1 "corpus and manifests; no file and no audio in two splits, speakers of test in no other"; then
    options=()
    [[ $CORPUS != synthetic ]] || options=(--utterances 30)
    tool "$CORPUS" "$CORPUS_DIR" "$manifest" --protocol both --seed "$SEED" "${options[@]}" \
        -- check_manifest "$manifest" --allow speaker:valid,speaker:test_seen --json "$OUT/check_manifest.json"
fi

labels=(make_labels "$manifest" "$OUT/labels" --clusters 50 --splits train valid --seed "$SEED")
if stage 2 "pseudo-labels: 50 k-means clusters of MFCCs, fitted on the training split"; then
    tool "${labels[@]}" --mfcc
fi

if stage 3 "pretraining a tiny HuBERT from nothing, on the MFCC labels"; then
    train hubert_tiny "$OUT/hubert" "${common[@]}" task.label_dir="$OUT/labels/mfcc/km50" optimization.max_update="$UPDATES"
fi

if stage 4 "pseudo-labels of the second iteration: 50 clusters of the third layer of that HuBERT"; then
    tool "${labels[@]}" --checkpoint "$OUT/hubert/checkpoint_last.pt" --layers 3
fi

pretrain_further() {
    local without=()
    [[ $1 == papt ]] || without=(model.speaker_position=none task.speakers=null)
    train papt_tiny "$OUT/$1" "${common[@]}" task.label_dir="$OUT/labels/L3/km50" model.init_from="$OUT/hubert/checkpoint_last.pt" \
        optimization.max_update=$((UPDATES / 3)) "${without[@]}"
}
if stage 5 "continued pretraining: with speaker embeddings (PAPT), and without for comparison (TAPT)"; then
    each pretrain_further papt tapt
fi

targets=(classification)
[[ ! -e $manifest/train.dim ]] || targets+=(regression)

finetune() {
    train "ser_${target}_tiny" "$OUT/${target}_$1" "${common[@]}" model.init_from="$OUT/$1/checkpoint_last.pt"
}
if stage 6 "fine-tuning for emotion on the training speakers"; then
    for target in "${targets[@]}"; do
        each finetune papt tapt
    done
fi

# evaluate MODEL SPLIT OPTION…: adds an evaluation to STEPS.
evaluate() {
    local model=$OUT/$1 split=$2
    shift 2
    STEPS+=(-- evaluate "$model/checkpoint_best.pt" "$manifest" "$split" "$model/$split" --seed "$SEED" "$@")
}
if stage 7 "evaluation: speakers seen in training, and unseen ones"; then
    STEPS=()
    for model in "${targets[@]/%/_tapt}" "${targets[@]/%/_papt}"; do
        evaluate "$model" test_seen
        evaluate "$model" test --embeddings
    done
    tool "${STEPS[@]:1}"
fi

if stage 8 "unseen speakers: label distributions calibrated with the most similar training speakers (PLDC)"; then
    STEPS=()
    for target in "${targets[@]}"; do
        model=$OUT/${target}_papt
        evaluate "${target}_papt" train --embeddings
        STEPS+=(-- calibrate --train-manifest "$manifest/train" --train-embeddings "$model/train/embeddings.npz"
            --test-embeddings "$model/test/embeddings.npz" --predictions "$model/test/predictions.tsv" "$model/test_pldc"
            --test-manifest "$manifest/test" --seed "$SEED")
    done
    tool "${STEPS[@]:1}"
fi

if stage 9 "results"; then
    rows=()
    for target in "${targets[@]}"; do
        rows+=("TAPT, seen speakers=$OUT/${target}_tapt/test_seen" "PAPT, seen speakers=$OUT/${target}_papt/test_seen"
            "TAPT, unseen speakers=$OUT/${target}_tapt/test" "PAPT, unseen speakers=$OUT/${target}_papt/test"
            "PAPT + PLDC, unseen speakers=$OUT/${target}_papt/test_pldc")
    done
    tool results "${rows[@]}" --title "emohubert demo: $CORPUS, seed $SEED" --out "$OUT/results" -- report "$OUT"
    echo "results: $OUT/results.md"
    echo "report:  $OUT/report.html"
    echo "took $SECONDS s"
fi
