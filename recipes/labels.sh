#!/usr/bin/env bash
# Frame labels of a large corpus in shards, on one machine or as arrays of jobs (recipes/slurm/submit.sh labels …). Where one machine
# is enough, tools/make_labels.py does it without writing features.
#
#   bash recipes/labels.sh --manifest-dir exp/corpus --splits "train valid" --checkpoint hubert_base.pt --layer 9 --clusters 100 \
#       --nshard 8 --out exp/labels
#
# Stages: 1 features of each shard, 2 k-means on the training split, 3 labels of each shard, 4 shards joined:
#   --out/features/L9/{split}_{R}_{N}.npy, --out/L9/km100/{kmeans.npz,dict.km.txt,{split}.km}: task.label_dir=--out/L9/km100
# --manifest-dir DIR       manifest directory
# --splits "S …"           splits to label; k-means is fitted on the first (default: train)
# --checkpoint CKPT        encoder; or --mfcc yes, 39-dimensional MFCCs
# --layer L                layer of the encoder
# --clusters "K …"         numbers of clusters
# --nshard N               shards (default: 1)
# --rank R                 stages 1 and 3: only this shard, from 0
# --jobs N                 shards at the same time (default: 1)
# --out DIR                output folder; run again, it resumes where it stopped
# --stage A --stop-stage B first and last stage (default: all)
# --features "OPTION …"    further options of tools/dump_features.py, such as "--precision bf16"
# --kmeans "OPTION …"      further options of tools/learn_kmeans.py, such as "--max-memory 8G"
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

MANIFEST_DIR='' SPLITS=train CHECKPOINT='' MFCC='' LAYER='' CLUSTERS='' NSHARD=1 RANK='' JOBS=1 OUT='' FEATURES='' KMEANS=''
options "manifest-dir splits checkpoint mfcc layer clusters nshard rank jobs out features kmeans" "$@"
require value MANIFEST_DIR CLUSTERS OUT
require count NSHARD JOBS
require number ${RANK:+RANK}
[[ -z $RANK ]] || ((RANK < NSHARD)) || fail "--rank $RANK: of $NSHARD shards the last is $((NSHARD - 1))"
if [[ -n $MFCC ]]; then
    source=(--mfcc) kind=mfcc
else
    [[ -n $CHECKPOINT && -n $LAYER ]] || fail "--checkpoint and --layer are missing, or --mfcc yes (see --help)"
    source=(--checkpoint "$CHECKPOINT" --layers "$LAYER") kind=L$LAYER
fi
output_folder
read -ra SPLITS <<<"$SPLITS"
read -ra CLUSTERS <<<"$CLUSTERS"
read -ra FEATURES_WITH <<<"$FEATURES"
read -ra KMEANS_WITH <<<"$KMEANS"
[[ -z ${LIST_STAGES:-} ]] || printf 'shards\t%s\n' "$NSHARD"

# for_shards FUNCTION: FUNCTION RANK for --rank, or for all.
for_shards() {
    local ranks=("$RANK")
    [[ -n $RANK ]] || mapfile -t ranks < <(seq 0 $((NSHARD - 1)))
    each "$1" "${ranks[@]}"
}
features() {
    local split steps=()
    for split in "${SPLITS[@]}"; do
        steps+=(-- dump_features "$MANIFEST_DIR" "$split" "$OUT/features" "${source[@]}" --nshard "$NSHARD" --rank "$1" "${FEATURES_WITH[@]}")
    done
    tool "${steps[@]:1}"
}
if stage 1 "features, $kind, in $NSHARD shards" shard gpu; then
    for_shards features
fi

if stage 2 "k-means: ${CLUSTERS[*]} clusters of ${SPLITS[0]}" one cpu; then
    for k in "${CLUSTERS[@]}"; do
        tool learn_kmeans "$OUT/features/$kind" "${SPLITS[0]}" "$NSHARD" "$OUT/$kind/km$k/kmeans.npz" --clusters "$k" "${KMEANS_WITH[@]}"
    done
fi

label() {
    local split k steps=()
    for split in "${SPLITS[@]}"; do
        for k in "${CLUSTERS[@]}"; do
            steps+=(-- dump_labels "$OUT/features/$kind" "$split" "$OUT/$kind/km$k/kmeans.npz" "$NSHARD" "$1" "$OUT/$kind/km$k")
        done
    done
    tool "${steps[@]:1}"
}
if stage 3 "labels of each shard" shard cpu; then
    for_shards label
fi

if stage 4 "shards joined" one cpu; then
    for split in "${SPLITS[@]}"; do
        for k in "${CLUSTERS[@]}"; do
            tool merge_labels "$OUT/$kind/km$k" "$split" "$NSHARD" --manifest-dir "$MANIFEST_DIR"
        done
    done
fi
