#!/usr/bin/env bash
# From a folder of emotional speech to a personalised HuBERT, and to speakers that no training has heard, in minutes on a CPU. It starts from
# the small HuBERT in the package.
#
#   bash recipes/demo.sh                                                a corpus generated on the spot
#   CORPUS=emodb CORPUS_DIR=/path/to/emodb bash recipes/demo.sh         real speech (any corpus of manifests/)
#
# CORPUS       name of a script in manifests/ (default: synthetic)
# CORPUS_DIR   its audio (default: where the generated corpus goes)
# OUT          output folder (default: demo/$CORPUS)
# FIRST, LAST  first and last stage to run (default: all eight)
# EPOCHS       of continued pretraining (default: 3; the paper's ten take three times as long); SEEDS of fine-tuning
#              (default: 1 2 3; dimensions: the first)
#
# Run again, it resumes where it stopped. Pretraining is far too brief to change much; what is to be seen is every step at work, which setting
# each number comes from, and how far seeds alone move it.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
(($# == 0)) || fail "no arguments, options are environment variables (see --help)"

CORPUS=${CORPUS:-synthetic} OUT=${OUT:-demo/${CORPUS:-synthetic}} EPOCHS=${EPOCHS:-3} SEEDS=${SEEDS:-1 2 3} STAGE=${FIRST:-0} STOP_STAGE=${LAST:-99}
[[ $CORPUS == synthetic || -n ${CORPUS_DIR:-} ]] || fail "CORPUS_DIR is empty; give the folder of the corpus $CORPUS"
CORPUS_DIR=$(realpath -m "${CORPUS_DIR:-$OUT/audio}")
output_folder
manifest=$OUT/manifest
read -ra seeds <<<"$SEEDS"

if stage 1 "corpus and manifests; no file and no audio in two splits, speakers of test in no other"; then
    options=()
    [[ $CORPUS != synthetic ]] || options=(--utterances 30)
    tool "$CORPUS" "$CORPUS_DIR" "$manifest" --protocol both "${options[@]}" \
        -- check_manifest "$manifest" --allow speaker:valid,speaker:test_seen --json "$OUT/check_manifest.json"
fi

if stage 2 "pseudo-labels: 50 k-means clusters of the small HuBERT's third layer, fitted on the training split"; then
    tool make_labels "$manifest" "$OUT/labels" --checkpoint small --layers 3 --clusters 50 --splits train valid
fi

pretrain_further() {
    train "$1_small" "$OUT/$1" task.data="$manifest" task.label_dir="$OUT/labels/L3/km50" model.init_from=small optimization.max_epoch="$EPOCHS"
}
if stage 3 "continued pretraining: with speaker embeddings (PAPT), and without for comparison (TAPT)"; then
    each pretrain_further papt tapt
fi

kinds=(classification)
[[ ! -e $manifest/train.dim ]] || kinds+=(regression)
runs=() # such as classification/papt/seed1
for kind in "${kinds[@]}"; do
    for system in tapt papt normalised; do
        own=("${seeds[@]}")
        [[ $kind == classification ]] || own=("${seeds[0]}") # dimensions once: minutes count
        runs+=("${own[@]/#/$kind/$system/seed}")
    done
done

finetune() {
    local kind system seed from
    IFS=/ read -r kind system seed <<<"$1"
    local settings=(task.data="$manifest" common.seed="${seed#seed}" task.feature_cache="$OUT/features")
    from=$system
    [[ $system != normalised ]] || from=tapt settings+=(model.speaker_normalisation=true)
    train "ser_${kind}_small" "$OUT/$1" "${settings[@]}" model.init_from="$OUT/$from/checkpoint_last.pt"
}
if stage 4 "fine-tuning for emotion on the training speakers, seeds $SEEDS"; then
    JOBS=2 each finetune "${runs[@]}"
fi

# evaluate RUN SPLIT OPTION…: adds an evaluation to STEPS, in RUN/SPLIT.
evaluate() {
    local run=$OUT/$1 split=$2
    shift 2
    STEPS+=(-- evaluate "$run/checkpoint_best.pt" "$manifest" "$split" "$run/$split" "$@")
}
if stage 5 "evaluation: speakers heard in training, and unheard ones"; then
    STEPS=()
    for run in "${runs[@]}"; do
        evaluate "$run" test_seen
        evaluate "$run" test --embeddings
    done
    tool "${STEPS[@]:1}"
fi

if stage 6 "embeddings for the unheard speakers from their unlabelled audio"; then
    STEPS=()
    for run in "${runs[@]}"; do
        [[ $run == */papt/* ]] || continue
        given=("$OUT/$run/checkpoint_best.pt" "$manifest" test)
        STEPS+=(-- adapt_speaker "${given[@]}" "$OUT/$run/speakers.npz"
            -- evaluate "${given[@]}" "$OUT/$run/test_adapted" --speaker-vectors "$OUT/$run/speakers.npz")
    done
    tool "${STEPS[@]:1}"
fi

if stage 7 "label distributions of unheard speakers calibrated with the most similar training speakers (PLDC)"; then
    STEPS=()
    for run in "${runs[@]}"; do
        [[ $run == */papt/* ]] || continue
        evaluate "$run" train --embeddings
        STEPS+=(-- calibrate --train-manifest "$manifest/train" --train-embeddings "$OUT/$run/train/embeddings.npz"
            --test-embeddings "$OUT/$run/test/embeddings.npz" --predictions "$OUT/$run/test/predictions.tsv" "$OUT/$run/test_pldc"
            --test-manifest "$manifest/test")
    done
    tool "${STEPS[@]:1}"
fi

if stage 8 "results"; then
    rows=()
    for run in "${runs[@]}"; do
        case $run in
            */tapt/*) rows+=("TAPT, heard speakers=$OUT/$run/test_seen" "TAPT, unheard speakers=$OUT/$run/test") ;;
            */papt/*) rows+=("PAPT, heard speakers=$OUT/$run/test_seen" "PAPT, unheard speakers=$OUT/$run/test"
                "PAPT adapted, unheard speakers=$OUT/$run/test_adapted" "PAPT + PLDC, unheard speakers=$OUT/$run/test_pldc") ;;
            *) rows+=("TAPT, unheard speakers normalised=$OUT/$run/test") ;;
        esac
    done
    tool results "${rows[@]}" --title "emohubert demo: $CORPUS, seeds $SEEDS" --out "$OUT/results" -- report "$OUT"
    echo "results: $OUT/results.md"
    echo "report:  $OUT/report.html"
    echo "took $SECONDS s"
fi
