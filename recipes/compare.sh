#!/usr/bin/env bash
# V-FT, TAPT, P-TAPT, FLEA and PAPT on the same folds, seeds and starting checkpoint, and one table of them.
#
#   bash recipes/compare.sh --corpus-dir RAVDESS --manifests ravdess --init scratch --out exp/compare --seeds "1 2 3"
#
# Stages: 1 V-FT, 2 TAPT, 3 P-TAPT, 4 FLEA, 5 PAPT, 6 the table, the audit and the report. Each is the recipe of its name in --out/NAME;
# interrupted, or copied with --out to the same path on another machine, the same command resumes where it stopped.
set -euo pipefail
# shellcheck source=paper.sh
. "$(dirname "$0")/paper.sh"
recipe_options "$@"
same=()
while (($#)); do
    case $1 in
        --stage | --stop-stage | --out) shift ;;
        *) same+=("$1") ;;
    esac
    shift
done

number=0
for name in vft tapt ptapt flea papt; do
    number=$((number + 1)) first=1 own=()
    stage "$number" "$name" one gpu || continue
    mkdir -p "$OUT/$name"
    if [[ $name != vft && -e $OUT/vft/manifest/corpus.json ]]; then # the same folds, literally
        for folder in manifest single; do
            [[ ! -e $OUT/vft/$folder || -e $OUT/$name/$folder ]] || ln -s "../vft/$folder" "$OUT/$name/$folder"
        done
        first=2
    fi
    [[ $name != flea || ! -d $OUT/tapt ]] || own=(--tapt "$OUT/tapt") # FLEA begins with the same TAPT
    COMPARED=1 bash "$ROOT/recipes/$name.sh" "${same[@]}" --out "$OUT/$name" --init-dir "$INIT_DIR" --stage "$first" "${own[@]}"
done

AUDIT_ALLOW+=,adapted
set=L$(of_size 3 3 9 9)_km${CLUSTERS:-$(of_size 16 16 50 50)}
manifests=$OUT/vft/manifest
[[ ! -e $OUT/vft/single ]] || manifests=$OUT/vft/single
adapted=()
if [[ -d $manifests ]]; then
    for fold in $(folds); do
        for seed in $SEEDS; do
            adapted+=("PAPT, adapted=papt/papt_adapted/fold$fold/seed$seed" "PAPT + PLDC=papt/papt_pldc/fold$fold/seed$seed/pldc")
        done
    done
fi
stage_results 6 "V-FT, TAPT, P-TAPT, FLEA and PAPT" "V-FT=vft/vft" "TAPT=tapt/tapt" "P-TAPT=ptapt/ptapt" \
    "FLEA, mean=flea/flea_${set}_$(of_size mean mean_std mean mean)" "FLEA, attention=flea/flea_${set}_attention" "PAPT, unknown speaker=papt/papt_inductive" "${adapted[@]}"
