#!/usr/bin/env bash
# ser_small: emotion classes of speakers, languages and microphones never heard, from the small HuBERT in the package. The classes that all
# corpora share are trained on one after the other left out, which tests them; then on all: --out/ser_small.pt, the model in the package.
#
#   bash recipes/ser_small.sh --corpora "emodb=/path/to/emodb ravdess=/path/to/ravdess nemo=/path/to/nemo" --out exp/ser_small
#
# Stages: 1 manifests of each corpus, 2 their utterances joined, 3 trainings, 4 tests on the corpora left out, 5 results, 6 ser_small.pt, and
# temperature.json, which makes its probabilities as certain as those on corpora left out deserved.
# --corpora "NAME=DIR …"   manifest scripts and the audio of their corpora
# --classes "C …"          classes (default: angry happy neutral sad)
# --finetune "KEY=VALUE …" further settings of the trainings
# --out DIR                output folder; run again, it resumes where it stopped
# --stage A --stop-stage B first and last stage (default: all)
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

CORPORA='' CLASSES='angry happy neutral sad' FINETUNE='' OUT=''
options "corpora classes finetune out" "$@"
require value CORPORA OUT
output_folder
read -ra corpora <<<"$CORPORA"
read -ra FINETUNE <<<"$FINETUNE"
names=("${corpora[@]%%=*}")

if stage 1 "manifests: ${names[*]}"; then
    for corpus in "${corpora[@]}"; do
        tool "${corpus%%=*}" "${corpus#*=}" "$OUT/${corpus%%=*}"
    done
fi

# join HELD_OUT: a table of all corpora, HELD_OUT for testing, every eighth speaker of the others for validation, and its manifest.
join() {
    PYTHONPATH=$ROOT/user_dir "$PYTHON" - "$OUT" "$1" "$CLASSES" "${names[@]}" <<'END'
import csv
import sys
from pathlib import Path

from emohubert.core.files import atomic
from emohubert.corpus.manifest import read_split

out, held_out, classes, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(), sys.argv[4:]
with atomic(out / f"without_{held_out}.csv") as f:
    table = csv.writer(f)
    table.writerow(("path", "speaker", "split", "emotion", "corpus"))
    for name in names:
        split = read_split(out / name, "all")
        speakers = sorted(set(split.speakers))
        for i, (speaker, emotion) in enumerate(zip(split.speakers, split.emotions, strict=True)):
            part = "test" if name == held_out else ("valid" if speakers.index(speaker) % 8 == 7 else "train")
            if emotion in classes:
                table.writerow((str(split.audio(i).resolve()).lstrip("/"), f"{name}_{speaker}", part, emotion, name))
END
    tool table / "$OUT/manifest/without_$1" --table "$OUT/without_$1.csv"
}
if stage 2 "their utterances of the classes $CLASSES"; then
    for name in "${names[@]}" none; do
        join "$name"
    done
fi

if stage 3 "trainings" one train; then
    for name in "${names[@]}" none; do
        train ser_classification_small "$OUT/training/without_$name" task.data="$OUT/manifest/without_$name" model.init_from=small \
            model.speaker_normalisation=true criterion.class_weights=balanced "${FINETUNE[@]}"
    done
fi

if stage 4 "tests on the corpora left out" one gpu; then
    for name in "${names[@]}"; do
        given=("$OUT/training/without_$name/checkpoint_best.pt" "$OUT/manifest/without_$name" test)
        tool evaluate "${given[@]}" "$OUT/$name/normalised" -- evaluate "${given[@]}" "$OUT/$name/inductive" --normalise-speakers no
    done
fi

if stage 5 "results"; then
    rows=()
    for name in "${names[@]}"; do
        rows+=("$name, each utterance by itself=$OUT/$name/inductive" "$name, all of a speaker's audio=$OUT/$name/normalised")
    done
    tool results "${rows[@]}" --title "ser_small on corpora left out whole" --out "$OUT/results"
fi

if stage 6 "the model without what only training needs"; then
    PYTHONPATH=$ROOT/user_dir "$PYTHON" - "$OUT/training/without_none/checkpoint_best.pt" "$OUT/ser_small.pt" <<'END'
import sys

import torch
from omegaconf import OmegaConf

from emohubert.core.files import atomic
from emohubert.pretrained.safe_files import load_state

state = load_state(sys.argv[1])
cfg = OmegaConf.to_container(OmegaConf.create(state["cfg"], flags={"allow_objects": True}), enum_to_str=True)
kept = {"task": {**cfg["task"], "data": "", "feature_cache": None}, "model": {**cfg["model"], "init_from": "small"}}
kept["checkpoint"] = {"best_checkpoint_metric": cfg["checkpoint"]["best_checkpoint_metric"]}
extra = {key: state["extra_state"][key] for key in ("train_iterator", "val_loss", "best")}
weights = {name: x.half() if x.is_floating_point() else x for name, x in state["model"].items()}
history = [{"num_updates": state["optimizer_history"][-1]["num_updates"]}]
with atomic(sys.argv[2], "wb") as f:
    torch.save({"cfg": kept, "model": weights, "task_state": state["task_state"], "extra_state": extra, "optimizer_history": history}, f)
END
    PYTHONPATH=$ROOT/user_dir "$PYTHON" - "$OUT" "${names[@]}" <<'END'
import sys
from pathlib import Path

from emohubert.core.files import write_json
from emohubert.evaluation import temperature

out, names, found = Path(sys.argv[1]), sys.argv[2:], {}
for key, kind in {"temperature": "inductive", "normalised": "normalised"}.items():
    scored = {name: temperature.scored(temperature.read_classes(out / name / kind / "predictions.tsv")) for name in names}
    found[key] = temperature.fit(*scored.values())
    for name, (p, reference) in scored.items():
        others = temperature.fit(*(pair for other, pair in scored.items() if other != name))
        before, after = (temperature.quality(x, reference)["ece"] for x in (p, temperature.scaled(p, others)))
        print(f"{name}, {kind}: expected calibration error {before:.3f}, at the temperature {others:.2f} of the other corpora {after:.3f}")
write_json(out / temperature.FILE, {**found, "fitted_on": f"corpora left out: {', '.join(names)}"})
END
    echo "model: $OUT/ser_small.pt, $OUT/temperature.json"
fi
