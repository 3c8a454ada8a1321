#!/usr/bin/env bash
# The CREMA-D report: multi-layer perceptrons on mean-pooled embeddings of a frozen encoder, which are computed once. Base, Personalised
# (a learned embedding of the speaker's id) and MFCC (the speaker's mean MFCCs, scaled); each 256-64 and 1024-256-64-64.
#
#   bash recipes/crema_d_report.sh --corpus-dir CREMA-D --manifests crema_d --init hubert_large_ll60k.pt --out exp/crema_d_report
#
# The split is the report's: 60/20/20 of the clips by chance, so that the speakers of the test are seen in training, as every table
# says. --manifest "--protocol speaker-independent" gives unseen ones.
#
# Stages: 1 manifests, 2 --init scratch, 3 description of the corpus, 4 the six heads on every fold and seed, 5 results beside the
# report's.
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"

recipe_options "$@"
[[ -z $TARGET ]] || fail "--target $TARGET: the report's heads tell classes; leave --target out, or use recipes/vft.sh"
[[ $MANIFESTS != crema_d || " $MANIFEST " == *" --protocol"[\ =]* ]] || MANIFEST_OPTIONS+=(--protocol random)
protocol="split as made by manifests/$MANIFESTS.py"
if [[ " ${MANIFEST_OPTIONS[*]} " == *" --protocol"[\ =]"random "* ]]; then
    ALLOW=speaker
    protocol="random 60/20/20 split of the clips: test speakers are seen in training"
fi

FINETUNE_CONFIG=crema_d_report

stage_manifests
stage_init

if stage 3 "description of the corpus"; then
    tool tools/describe "$OUT/manifest" "$OUT/description"
fi

heads() {
    local head=$1 speaker
    for speaker in none embedding mfcc; do
        finetune "${head}_$speaker" "$(init_for_folds)" model.head="$head" model.head_speaker="$speaker" \
            task.feature_cache="$OUT/features"
    done
}
if stage 4 "Base, Personalised and MFCC"; then
    heads mlp
    heads mlp_deep
fi

stage_results 5 "The CREMA-D report; $protocol" \
    "Base, 256-64=mlp_none" "Personalised, 256-64=mlp_embedding" "MFCC, 256-64=mlp_mfcc" \
    "Base, 1024-256-64-64=mlp_deep_none" "Personalised, 1024-256-64-64=mlp_deep_embedding" "MFCC, 1024-256-64-64=mlp_deep_mfcc"
