#!/usr/bin/env bash
# Does an embedding that is fitted to a new speaker's unlabelled audio predict that speaker better? Each speaker of a corpus is left out
# of a speaker-conditioned pretraining once; then the left-out speaker's embedding is fitted to three quarters of the utterances, and
# the masked-prediction loss of the rest is compared: as the unknown speaker, as an average of the nearest speakers, adapted.
#
#   bash recipes/adaptation.sh --corpus-dir EMODB --manifests emodb --init scratch --out exp/adaptation --jobs 2
#
# Stages: 1 manifests, one fold for each speaker, 2 unlabelled audio, 3 pretraining with speakers on clusters of MFCCs (--init scratch:
# a HuBERT of two layers from nothing; or PAPT from --init), 4 embeddings of the left-out speakers, 5 the table.
# --holdout F      share of a speaker's utterances that is kept out (default: 0.25)
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"
OWN_OPTIONS=holdout HOLDOUT=0.25
recipe_options "$@"
CLUSTERS=${CLUSTERS:-50}
[[ " $MANIFEST " == *" --protocol"[\ =]* ]] || MANIFEST_OPTIONS+=(--protocol leave-one-speaker-out)

stage_manifests

split() {
    tool unlabelled "$manifests/fold$1" "$OUT/fold$1/unlabelled" --train train --test test
}
if stage 2 "the unlabelled audio of each fold" fold cpu; then
    for_folds split
fi

pretrain_with_speakers() {
    local dir=$OUT/fold$1 small=()
    tool make_labels "$dir/unlabelled" "$dir/labels" --mfcc --clusters "$CLUSTERS" --splits train test
    data "$dir/unlabelled"
    if [[ $INIT == scratch ]]; then
        small=(model.conv_feature_layers="'[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2'" model.encoder_layers=2 model.encoder_embed_dim=64
            model.encoder_ffn_embed_dim=128 model.encoder_attention_heads=2 model.final_dim=32 "optimization.lr=[0.003]"
            optimization.max_update="${UPDATES:-400}")
        train hubert_tiny "$dir/model" "${DATA[@]}" task.label_dir="$dir/labels/mfcc/km$CLUSTERS" task.speakers=spk model.speaker_position=input \
            "${small[@]}" "${PRETRAIN_WITH[@]}"
    else
        train "papt_$SIZE" "$dir/model" "${DATA[@]}" task.label_dir="$dir/labels/mfcc/km$CLUSTERS" model.init_from="$(init_of "$1")" \
            "${PRETRAIN_WITH[@]}"
    fi
}
if stage 3 "pretraining with speakers, one left out" fold train; then
    for_folds pretrain_with_speakers
fi

adapt() {
    local dir=$OUT/fold$1
    tool adapt_speaker "$dir/model/checkpoint_last.pt" "$dir/unlabelled" test "$dir/adapted.npz" --method adapted \
        --label-dir "$dir/labels/mfcc/km$CLUSTERS" --holdout "$HOLDOUT"
}
if stage 4 "embeddings of the left-out speakers" fold gpu; then
    for_folds adapt
fi

if stage 5 "bits per masked frame of the held-out utterances" one cpu; then
    reports=()
    for fold in $(folds); do
        reports+=("$OUT/fold$fold/adapted.json")
    done
    tool adaptation_table "${reports[@]}" --out "$OUT/adaptation"
fi
