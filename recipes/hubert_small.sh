#!/usr/bin/env bash
# A small HuBERT from a folder of speech, on a CPU or a GPU: 5.6 million parameters, hours on two cores, minutes on a GPU.
#
#   bash recipes/hubert_small.sh --corpus-dir speech --out exp/small
#
# Stages: 1 manifest, 2 MFCC and prosodic labels, 3 first iteration, 4 labels of a layer, 5 second iteration, on these and both kinds of
# prosodic labels: --out/iteration2/checkpoint_best.pt. The model in the package (--init small) was made so; see docs/results.md.
# --corpus-dir DIR         folder of audio, any depth and format
# --speaker PATTERN        regular expression whose group is the speaker in a path (default: unknown)
# --layer L                layer of the first iteration whose clusters the second one learns (default: 3)
# --clusters K             of MFCCs and of prosody relative to the recording; twice as many of absolute prosody, five times of the layer
#                          (default: 100)
# --updates N              updates of an iteration (default: 3500)
# --settings "KEY=VALUE …" further settings of both trainings
# --out DIR                output folder; run again, it resumes where it stopped
# --stage A --stop-stage B first and last stage (default: all)
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

CORPUS_DIR='' SPEAKER='' LAYER=3 CLUSTERS=100 UPDATES=3500 SETTINGS='' OUT=''
options "corpus-dir speaker layer clusters updates settings out" "$@"
require value CORPUS_DIR OUT
require count LAYER CLUSTERS UPDATES
output_folder
read -ra SETTINGS <<<"$SETTINGS"
labels() {
    tool make_labels "$OUT/manifest" "$OUT/labels" --clusters "$@"
}
iteration() {
    train hubert_small "$OUT/iteration$1" task.data="$OUT/manifest" task.label_dir="$OUT/labels" "task.labels=[$2]" \
        optimization.max_update="$UPDATES" lr_scheduler.warmup_updates=$(((UPDATES + 9) / 10)) "${SETTINGS[@]}"
}

if stage 1 "manifest"; then
    tool folder "$CORPUS_DIR" "$OUT/manifest" ${SPEAKER:+--speaker "$SPEAKER"}
fi
if stage 2 "MFCC and prosodic labels"; then
    labels "$CLUSTERS" --mfcc
    labels "$CLUSTERS" --prosody
    labels $((2 * CLUSTERS)) --prosody absolute
fi
if stage 3 "first iteration" one train; then
    iteration 1 "mfcc/km$CLUSTERS,prosody/km$CLUSTERS"
fi
if stage 4 "labels of layer $LAYER" one gpu; then
    labels $((5 * CLUSTERS)) --checkpoint "$OUT/iteration1/checkpoint_best.pt" --layers "$LAYER"
fi
if stage 5 "second iteration" one train; then
    iteration 2 "L$LAYER/km$((5 * CLUSTERS)),prosody/km$CLUSTERS,prosody_absolute/km$((2 * CLUSTERS))"
fi
