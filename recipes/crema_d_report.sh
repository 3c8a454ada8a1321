#!/usr/bin/env bash
# The CREMA-D report: multi-layer perceptrons on mean-pooled embeddings of a frozen encoder, which are computed once. Base, Personalised
# (a learned embedding of the speaker's id) and MFCC (the speaker's mean MFCCs, scaled); each 256-64 and 1024-256-64-64.
#
#   bash recipes/crema_d_report.sh --corpus-dir CREMA-D --manifests crema_d --init hubert_large_ll60k.pt --out exp/crema_d_report
#
# The split is the report's: 60/20/20 of the clips by chance, so that the speakers of the test are seen in training, as every table
# says. --manifest "--protocol speaker-independent" gives unseen ones.
#
# Stages: 1 manifests, 2 --init scratch, 3 description of the corpus, 4 the heads on every fold and seed (with --jobs several at the same
# time, after the first has computed the embeddings), 5 results beside the report's.
# --heads "mlp mlp_deep"   256-64 and 1024-256-64-64 (default: both)
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"

OWN_OPTIONS=heads HEADS='mlp mlp_deep'
recipe_options "$@"
read -ra HEADS <<<"$HEADS"
[[ -z $TARGET ]] || fail "--target $TARGET: the report's heads tell classes; leave --target out, or use recipes/vft.sh"
[[ $MANIFESTS != crema_d || " $MANIFEST " == *" --protocol"[\ =]* ]] || MANIFEST_OPTIONS+=(--protocol random)
protocol="split as made by manifests/$MANIFESTS.py"
if [[ " ${MANIFEST_OPTIONS[*]} " == *" --protocol"[\ =]"random "* ]]; then
    ALLOW=speaker
    protocol="random 60/20/20 split of the clips: test speakers are seen in training"
    if [[ -z $TRANSDUCTIVE ]]; then
        setting() { # in place of paper.sh's “inductive”, which is of unseen speakers
            echo "seen: nothing of the test clips is read before the test"
        }
    fi
fi

FINETUNE_CONFIG=crema_d_report

stage_manifests
stage_init

if stage 3 "description of the corpus" one cpu; then
    tool describe "$OUT/manifest" "$OUT/description"
fi

runs=() systems=()
for head in "${HEADS[@]}"; do
    case $head in
        mlp) sizes=256-64 ;;
        mlp_deep) sizes=1024-256-64-64 ;;
        *) fail "--heads $head: use mlp, mlp_deep or both" ;;
    esac
    runs+=("$head-none" "$head-embedding" "$head-mfcc")
    systems+=("Base, $sizes=$head-none" "Personalised, $sizes=$head-embedding" "MFCC, $sizes=$head-mfcc")
done

tune() {
    finetune "$1" "$(init_of '{fold}')" model.head="${1%-*}" model.head_speaker="${1#*-}"
}
tune_beside_others() {
    JOBS=1
    tune "$1"
}
if stage 4 "Base, Personalised and MFCC" one gpu; then
    tune "${runs[0]}"
    each tune_beside_others "${runs[@]:1}"
fi

stage_results 5 "The CREMA-D report; $protocol" "${systems[@]}"
