#!/usr/bin/env bash
# cross_corpus: a model of each corpus, tested on all of them, over the classes that the two share: the train × test matrix.
#
#   bash recipes/cross_corpus.sh --corpora "emodb=/path/to/emodb ravdess=/path/to/ravdess nemo=/path/to/nemo" --out exp/cross_corpus
#
# Stages: 1 manifests without common speakers, 2 trainings, 3 tests of every model on every corpus, 4 results.
# --corpora "NAME=DIR …"   manifest scripts and the audio of their corpora; or manifest directories with train, valid and test
# --init CKPT              encoder (default: small, in the package)
# --config NAME            configuration of the trainings (default: ser_classification_small)
# --finetune "KEY=VALUE …" further settings of the trainings
# --label-map usual|FILE   which classes are the same (default: usual; see tools/evaluate.py --help)
# --all-others             also a model of all other corpora together for each, equally sampled
# --out DIR                output folder; run again, it resumes where it stopped
# --stage A --stop-stage B first and last stage (default: all)
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

CORPORA='' INIT=small CONFIG=ser_classification_small FINETUNE='' LABEL_MAP=usual ALL_OTHERS='' OUT=''
options "corpora init config finetune label-map all-others! out" "$@"
require value CORPORA OUT
output_folder
read -ra corpora <<<"$CORPORA"
read -ra FINETUNE <<<"$FINETUNE"
names=() manifests=()
for corpus in "${corpora[@]}"; do
    names+=("${corpus%%=*}")
    manifest=${corpus#*=}
    [[ -e $manifest/train.tsv ]] || manifest=$OUT/${corpus%%=*}/manifest
    manifests+=("$manifest")
done
# others I: for task.data, the manifests of all corpora but the I-th
others() {
    local found=("${manifests[@]}")
    unset "found[$1]"
    printf "[%s]" "$(printf ",'%s'" "${found[@]}" | cut -c 2-)"
}

if stage 1 "manifests: ${names[*]}"; then
    for i in "${!corpora[@]}"; do
        directory=${corpora[i]#*=}
        [[ $directory == "${manifests[i]}" ]] || tool "${names[i]}" "$directory" "${manifests[i]}" --protocol speaker-independent
    done
fi

if stage 2 "trainings" one train; then
    for i in "${!names[@]}"; do
        train "$CONFIG" "$OUT/${names[i]}/training" task.data="${manifests[i]}" model.init_from="$INIT" "${FINETUNE[@]}"
        [[ -z $ALL_OTHERS ]] || train "$CONFIG" "$OUT/without_${names[i]}/training" task.data="$(others "$i")" \
            task.label_map="$LABEL_MAP" task.corpus_temperature=inf model.init_from="$INIT" "${FINETUNE[@]}"
    done
fi

if stage 3 "tests" one gpu; then
    for trained in "${names[@]}"; do
        steps=()
        for i in "${!names[@]}"; do
            models=("$trained")
            [[ -z $ALL_OTHERS || $trained != "${names[i]}" ]] || models+=("without_$trained")
            for model in "${models[@]}"; do
                steps+=(-- evaluate "$OUT/$model/training/checkpoint_best.pt" "${manifests[i]}" test "$OUT/$model/on_${names[i]}")
                steps+=(--label-map "$LABEL_MAP")
            done
        done
        tool "${steps[@]:1}"
    done
fi

if stage 4 "results"; then
    rows=()
    for trained in "${names[@]}"; do
        for tested in "${names[@]}"; do
            rows+=("$trained → $tested=$OUT/$trained/on_$tested")
        done
        [[ -z $ALL_OTHERS ]] || rows+=("all others → $trained=$OUT/without_$trained/on_$trained")
    done
    tool results "${rows[@]}" --title "Trained on one corpus, tested on another" --out "$OUT/results"
fi
