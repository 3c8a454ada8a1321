# shellcheck shell=bash
# What the recipes of the papers share: their options, and the stages that are the same in all of them.
# Source it: . "$(dirname "$0")/paper.sh", then recipe_options "$@".
#
# Folders of a recipe, in --out:
#   manifest/foldK/            the corpus; a corpus without folds is its own only fold, fold1
#   foldK/unlabelled/          the audio that pretraining may use, without a label
#   foldK/init/                --init scratch: a tiny HuBERT pretrained on that
#   foldK/labels…/, foldK/…/   pseudo-labels and trainings of the recipe
#   …/foldK/seedS/             fine-tuning and its evaluation (tools/run_folds.py)
#   results.md, results.json, report.html, audit.json
RECIPE=$(basename "$0" .sh)
DEFAULT_LAYERS=(3 3 9 18) ALLOW='' AUDIT_ALLOW='' RESULTS=()

OPTIONS_HELP='
Options of every recipe:
  --corpus-dir DIR         audio of the corpus
  --manifests NAME         script in manifests/ (emodb ravdess nemo crema_d iemocap msp_podcast synthetic table)
  --init CKPT              checkpoint to start from: HuBERT, wav2vec 2.0, WavLM, data2vec audio (fairseq'"'"'s, Microsoft'"'"'s, or a Hugging
                           Face folder) or ours; {fold} is replaced.
                           small: the small HuBERT that comes with the package
                           scratch: a tiny HuBERT, pretrained from nothing on each fold'"'"'s unlabelled training part
  --out DIR                output folder; run again, a recipe resumes where it stopped
  --stage A --stop-stage B first and last stage (default: all)
  --folds "1 2"            folds (default: all)
  --seeds "1 2 3"          seeds of fine-tuning (default: 1)
  --target "NAME …"        columns of .dim to predict, such as "arousal valence" (default: the classes of .emo)
  --size tiny|small|base|large
                           of the configurations (default: base; small and tiny with --init small and scratch)
  --transductive           pretraining and clustering use the unlabelled audio of the test speakers too; every table says so
  --normalised             fine-tune everything once more with the utterance vectors of each speaker normalised before the head
  --jobs N                 folds or runs at the same time (default: 1)
  --nproc N                processes of each training, over torchrun: NCCL between GPUs, gloo without (default: fairseq takes all GPUs)
  --index I                of fine-tuning, only the I-th run (folds × seeds, from 0), as in an array of jobs; no table
  --layer L                layer that pseudo-labels come from (default: tiny, small 3, base 9, large 18; P-TAPT: the last)
  --clusters K             k-means clusters (default: see the recipe)
  --centroids FILE         the k-means that --init was pretrained with (scikit-learn or ours), in place of --clusters: tapt flea papt
  --updates N              updates of every continued pretraining (default: as configured)
  --init-updates N         updates of --init scratch (default: 450)
  --pretrain "KEY=VALUE …" further settings of continued pretraining
  --finetune "KEY=VALUE …" further settings of fine-tuning
  --manifest "OPTION …"    further options of the manifest script, such as "--protocol speaker-independent"
  --init-dir DIR           where --init scratch keeps its models (default: in --out), so that recipes can share them'

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# recipe_options ARGUMENT…: reads them into CORPUS_DIR MANIFESTS INIT OUT FOLDS SEEDS SIZE TRANSDUCTIVE JOBS LAYER CLUSTERS …
# A recipe may set OWN_OPTIONS, names of options with a value that only it has: --gamma "x" becomes GAMMA=x.
recipe_options() {
    # shellcheck disable=SC2034  # some are for the recipe alone
    CORPUS_DIR='' MANIFESTS='' INIT='' OUT='' FOLDS='' SEEDS=1 TARGET='' SIZE='' TRANSDUCTIVE='' JOBS=1 LAYER='' CLUSTERS='' CENTROIDS=''
    NORMALISED='' NPROC='' INDEX='' UPDATES='' INIT_UPDATES=450 PRETRAIN='' FINETUNE='' MANIFEST='' INIT_DIR=''
    options "corpus-dir manifests init out folds seeds target size transductive! normalised! jobs nproc index layer clusters centroids updates
        init-updates pretrain finetune manifest init-dir ${OWN_OPTIONS:-} " "$@"
    require value CORPUS_DIR MANIFESTS INIT OUT
    require count JOBS INIT_UPDATES ${NPROC:+NPROC} ${UPDATES:+UPDATES}
    require number ${INDEX:+INDEX} ${LAYER:+LAYER}
    [[ -f $ROOT/manifests/$MANIFESTS.py ]] || fail "--manifests $MANIFESTS: there is no manifests/$MANIFESTS.py"
    if [[ $INIT == small ]]; then
        SIZE=${SIZE:-small}
    elif [[ $INIT == scratch ]]; then
        [[ ${SIZE:=tiny} == tiny ]] || fail "--init scratch makes a tiny HuBERT; leave --size $SIZE out, or give a checkpoint"
    else
        INIT=$(realpath -m "$INIT")
    fi
    SIZE=${SIZE:-base}
    # for recipes that train the encoder for emotion and cluster its frames: fine-tuning on small leaves it as it is
    # shellcheck disable=SC2034
    [[ $SIZE == small ]] && EMOTIONAL=(model.freeze=cnn model.num_layers=null "optimization.lr=[0.0003]" optimization.max_epoch=10) || EMOTIONAL=()
    LAYER=${LAYER:-$(of_size "${DEFAULT_LAYERS[@]}")}
    output_folder
    CORPUS_DIR=$(realpath -m "$CORPUS_DIR")
    INIT_DIR=$(realpath -m "${INIT_DIR:-$OUT}")
    read -ra PRETRAIN_WITH <<<"$PRETRAIN"
    read -ra FINETUNE_WITH <<<"$FINETUNE"
    read -ra MANIFEST_OPTIONS <<<"$MANIFEST"
    [[ -z $UPDATES ]] || PRETRAIN_WITH=(optimization.max_update="$UPDATES" optimization.max_epoch=0
        lr_scheduler.warmup_updates=$((UPDATES / 10)) "${PRETRAIN_WITH[@]}")
    manifests=$OUT/manifest
    [[ ! -e $OUT/single ]] || manifests=$OUT/single
    if [[ -n ${LIST_STAGES:-} ]]; then
        [[ -z $FOLDS && ! -d $manifests ]] || printf 'folds\t%s\n' "$(folds | paste -sd ' ')"
        printf 'seeds\t%s\n' "$SEEDS"
    fi
}

# of_size TINY SMALL BASE LARGE: the one for --size.
of_size() {
    case $SIZE in
        tiny) echo "$1" ;;
        small) echo "$2" ;;
        base) echo "$3" ;;
        large) echo "$4" ;;
        *) fail "--size $SIZE: use tiny, small, base or large" ;;
    esac
}

# stage_manifests: the corpus and its folds, checked: no audio, speaker or session of test in training, but for the leaks that a
# recipe's protocol has and names in ALLOW, separated by commas.
stage_manifests() {
    stage 1 "manifests of $MANIFESTS, and their check" one cpu || return 0
    tool "$MANIFESTS" "$CORPUS_DIR" "$OUT/manifest" "${MANIFEST_OPTIONS[@]}" \
        -- check_manifest "$OUT/manifest" --allow speaker:valid ${ALLOW:+--allow "$ALLOW"} --json "$OUT/check_manifest.json"
    if [[ -e $OUT/manifest/train.tsv ]]; then
        mkdir -p "$OUT/single"
        ln -sfn ../manifest "$OUT/single/fold1"
        manifests=$OUT/single
    fi
}

# folds: numbers of the folds, as --folds says or all.
folds() {
    local found
    read -ra found <<<"$FOLDS"
    if [[ -z $FOLDS ]]; then
        [[ -d $manifests ]] || fail "$manifests: no manifests yet; start at --stage 1"
        found=("$manifests"/fold*)
        [[ -d ${found[0]} ]] || fail "$manifests: holds no fold*; make manifests with folds"
        found=("${found[@]##*/fold}")
    fi
    printf '%s\n' "${found[@]}"
}

# for_folds FUNCTION: FUNCTION FOLD for every fold, --jobs at the same time.
for_folds() {
    local chosen
    mapfile -t chosen < <(folds)
    ((${#chosen[@]})) || exit 2
    each "$1" "${chosen[@]}"
}

# init_of FOLD: the checkpoint that a fold starts from.
init_of() {
    [[ $INIT == scratch ]] && echo "$INIT_DIR/fold$1/init/checkpoint_last.pt" || echo "${INIT//\{fold\}/$1}"
}

# best_of DIR: the checkpoint of a training that is the best on its validation split, or the last where there is none.
best_of() {
    [[ -e $1/checkpoint_best.pt ]] && echo "$1/checkpoint_best.pt" || echo "$1/checkpoint_last.pt"
}

# stage_init: what pretraining may use; with --init scratch, a tiny HuBERT of it.
stage_init() {
    local speakers="the training part (inductive)" class=cpu
    [[ -z $TRANSDUCTIVE ]] || speakers="training and test speakers (transductive)"
    [[ $INIT != scratch ]] || class=train
    if stage 2 "the unlabelled audio of each fold: $speakers" fold "$class"; then
        for_folds init_fold
    fi
}
init_fold() {
    local own=$INIT_DIR/fold$1 labels=()
    if [[ $INIT == scratch && ! -e $own/init/finished ]]; then
        mkdir -p "$own"
        labels=(-- make_labels "$OUT/fold$1/unlabelled" "$own/labels_mfcc" --mfcc --clusters 50)
    fi
    unlabelled "$1" unlabelled train ${TRANSDUCTIVE:+test} "${labels[@]}"
    ((${#labels[@]})) || return 0
    data "$OUT/fold$1/unlabelled"
    train hubert_tiny "$own/init" "${DATA[@]}" task.label_dir="$own/labels_mfcc/mfcc/km50" optimization.max_update="$INIT_UPDATES" \
        lr_scheduler.warmup_updates=$((INIT_UPDATES / 10))
}

# unlabelled FOLD NAME SPLIT… [-- PROGRAM …]: the audio of some splits of a fold, and of valid, without a label, in foldK/NAME.
unlabelled() {
    local manifest=$manifests/fold$1 out=$OUT/fold$1/$2 valid=()
    shift 2
    [[ ! -e $manifest/valid.tsv ]] || valid=(--valid valid)
    tool unlabelled "$manifest" "$out" "${valid[@]}" --train "$@"
}

# data DIR: sets DATA to what a training on a manifest directory is told: where it is, and if it has no validation split.
data() {
    DATA=(task.data="$1")
    [[ -e $1/valid.tsv ]] || DATA+=(dataset.disable_validation=true)
}

# clustering: sets HOW, how the frames of --init are labelled: --centroids, or k-means fitted on each fold's unlabelled audio.
clustering() {
    CLUSTERS=${CLUSTERS:-$(of_size 50 50 500 500)}
    HOW=(--clusters "$CLUSTERS")
    [[ -z $CENTROIDS ]] || HOW=(--centroids "$CENTROIDS")
}

# label_init FOLD [SUFFIX]: frame labels from layer --layer of the fold's --init: of foldK/unlabelledSUFFIX, in foldK/labelsSUFFIX.
label_init() {
    tool make_labels "$OUT/fold$1/unlabelled${2:-}" "$OUT/fold$1/labels${2:-}" --checkpoint "$(init_of "$1")" --layers "$LAYER" "${HOW[@]}"
}

# stage_labels FUNCTION: stage 3, FUNCTION (such as label_init) for every fold.
stage_labels() {
    stage 3 "frame labels: ${CENTROIDS:-$CLUSTERS clusters} of layer $LAYER" fold gpu || return 0
    for_folds "$1"
}

# label_set FOLD [SUFFIX]: the folder of those labels.
label_set() {
    local sets=("$OUT/fold$1/labels${2:-}/L$LAYER"/km*)
    echo "${sets[0]}"
}

# pretrain CONFIG FOLD NAME LABEL_DIR KEY=VALUE…: pretraining continued from the fold's --init on foldK/AUDIO, into foldK/NAME.
pretrain() {
    local config=$1 fold=$2 name=$3 label_dir=$4
    shift 4
    data "$OUT/fold$fold/${AUDIO:-unlabelled}"
    train "${config}_$SIZE" "$OUT/fold$fold/$name" "${DATA[@]}" task.label_dir="$label_dir" model.init_from="$(init_of "$fold")" \
        "${PRETRAIN_WITH[@]}" "$@"
}

# finetune NAME CHECKPOINT KEY=VALUE…: fine-tuning and test of every fold and seed in NAME/; {fold} in CHECKPOINT is replaced.
# FINETUNE_CONFIG is the configuration of a recipe that has its own.
finetune() {
    local name=$1 checkpoint=$2 chosen seeds config=${FINETUNE_CONFIG:-ser_classification_$SIZE} target=()
    shift 2
    if [[ -n $TARGET ]]; then
        config=ser_regression_$SIZE
        target=(task.target="[${TARGET// /,}]")
    fi
    mapfile -t chosen < <(folds)
    read -ra seeds <<<"$SEEDS"
    local options=(--folds "${chosen[@]}" --seeds "${seeds[@]}" --jobs "$JOBS" ${NPROC:+--nproc "$NPROC"} ${INDEX:+--index "$INDEX"}
        model.init_from="$checkpoint" task.feature_cache="$OUT/features" "${target[@]}" "${FINETUNE_WITH[@]}" "$@")
    tool run_folds "$config" "$manifests" "$OUT/$name" "${options[@]}" ${NORMALISED:+-- run_folds "$config" "$manifests"
        "$OUT/${name}_normalised" "${options[@]}" model.speaker_normalisation=true}
}

# stage_results NUMBER TITLE "SYSTEM=NAME"…: one table of what finetune put in NAME/, beside the paper's numbers (recipes/papers/RECIPE.tsv).
# RESULTS holds further options of tools/results.py.
stage_results() {
    local number=$1 title=$2 row rows=() paper=() status=0 allowed
    shift 2
    [[ -z ${COMPARED:-} ]] || return 0 # compare.sh has one table for all of them
    stage "$number" "results" one cpu || return 0
    [[ ! -e $ROOT/recipes/papers/$RECIPE.tsv ]] || paper=(--paper "$ROOT/recipes/papers/$RECIPE.tsv")
    for row in "$@"; do
        rows+=("${row%%=*}=$OUT/${row#*=}")
        [[ ! -d $OUT/${row#*=}_normalised ]] || NORMALISED=1 rows+=("${row%%=*}, normalised=$OUT/${row#*=}_normalised")
    done
    tool results "${rows[@]}" --paired "${1%%=*}" --title "$title; $MANIFESTS, $(setting)" "${paper[@]}" "${RESULTS[@]}" --out "$OUT/results"
    echo "results: $OUT/results.md"
    [[ -z $NORMALISED ]] || AUDIT_ALLOW+=,adapted # by the test speakers' unlabelled audio
    allowed=$AUDIT_ALLOW${ALLOW:+,$ALLOW}${TRANSDUCTIVE:+,transductive}
    tool audit_run "$OUT" ${allowed:+--allow "${allowed#,}"} || status=$?
    tool report "$OUT"
    echo "report:  $OUT/report.html"
    ((status == 0)) || fail "$OUT: the audit found leaks (see above and audit.json); do not use these numbers"
}

# setting: how the test speakers are met, a phrase for titles.
setting() {
    if [[ -n $TRANSDUCTIVE ]]; then
        echo "transductive: pretraining and clustering used the unlabelled test audio"
    else
        echo "inductive: only the training part of a fold is read before the test"
    fi
}
