#!/usr/bin/env python3
"""Evaluate a fine-tuned checkpoint on a manifest split.

Writes to OUT_DIR:
    predictions.tsv     a line per utterance: reference, prediction, probabilities
    predictions.seen    what was predicted by which checkpoint, for tools/audit_run.py
    metrics.json        UA, WA, macro F1, confusion matrix; or CCC, Pearson and RMSE per dimension; each overall, per speaker
                        and by metadata column, with bootstrap intervals over speakers
    thresholds.tsv      decision-threshold sweep of every class
    attention.npz       of a model that pools by attention: the weight of every frame, for tools/report.py --explore
    embeddings.npz      with --embeddings: the pooled vector of every utterance
    figures/*.png
    dimensions/, sex/   of a model with several targets, such as task.target=[emo,arousal,sex]: predictions.tsv, metrics.json and the rest of
                        all but the first (in the order of classes, dimensions, columns of .meta.tsv)

With --speaker-vectors FILE (of tools/adapt_speaker.py) speakers outside the model's table get those embeddings, and not the
unknown speaker's. A model trained with model.speaker_normalisation normalises each speaker by all of that speaker's audio in the
split; with --normalise-speakers no every speaker passes for the average training speaker, and with --normalise-speakers FILE
(embeddings.npz of the training split) any model's pooled vectors are normalised before the head; embeddings.npz keeps them as they
are. With --label-map the classes of another corpus are mapped onto the model's: by usual names (exc, excited and joy are happy,
…) or by FILE, a JSON object {their class: the model's, or null}. Only classes that both have are scored and predicted: the
probabilities of the model's others are divided among them.

  tools/evaluate.py runs/ser_classification_base/checkpoint_best.pt manifests/emodb/fold1 test results/fold1 --embeddings
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.errors import InputError
from emohubert.core.files import Stamp, make_folder, read_json, write_json
from emohubert.corpus.manifest import by_speaker, read_split
from emohubert.evaluation import label_maps, scoring
from emohubert.evaluation.predictions import read_embeddings, write_attention

logger = logging.getLogger("emohubert.evaluate")


def evaluate(args, split, out):
    """Predict and score a split, and write everything; returns the content of metrics.json."""
    from emohubert.core.device import choose_device
    from emohubert.evaluation.inference import predict_split, speaker_setting
    from emohubert.models.speaker_normalisation import AverageSpeaker
    from emohubert.provenance import records
    from emohubert.speakers.new_speakers import NewSpeakers
    from emohubert.tasks.trained import load_trained

    names = ("batch_seconds", "workers", "precision", "feature_cache")
    options = {"device": choose_device(args.device)} | {name: getattr(args, name) for name in names}
    task, model = load_trained(args.checkpoint, several=True)
    if args.label_map:
        if not task.classes:
            raise InputError(f"--label-map: {args.checkpoint} predicts dimensions ({' '.join(task.dimensions)}); leave it out")
        split, label_map = label_maps.mapped(split, task.classes, label_maps.read_map(args.label_map))
    added, origin, used = [], {}, args.speaker_vectors
    if args.speaker_vectors:
        added = NewSpeakers.read(args.speaker_vectors, args.checkpoint).add_to(task, model, args.speaker_vectors)
        origin["speaker_vectors"] = args.speaker_vectors
    average = None
    if args.normalise_speakers not in (None, "no"):
        training = read_embeddings(args.normalise_speakers)
        average = AverageSpeaker.of([training.values[rows] for rows in by_speaker(training.speakers).values()])
    elif args.normalise_speakers is None and model.normalisation is not None:
        average = model.normalisation.average
    attention, others = {}, {}
    predictions, embeddings = predict_split(task, model, split, average=average, attention=attention, others=others, **options)
    if args.label_map:
        predictions = label_maps.among_references(predictions)
        origin["label_map"] = {"map": args.label_map, **label_map}
    setting = speaker_setting(task, split, added, average is not None)
    if average is not None:
        origin["normalise_speakers"] = args.normalise_speakers or "as trained"
        if used is None:  # the unlabelled audio of the split's speakers is used all the same
            used = out / "normalisation"
            records.write_adaptation(used, args.checkpoint, split)
    scores = scoring.save(out, predictions, split, embeddings if args.embeddings else None, args.repeats, args.seed)
    facts = {"checkpoint": str(args.checkpoint), "split": str(split.tsv), **task.selection, **setting}
    scores = {**facts, **origin, **({"others": list(others)} if others else {}), **scores}
    for name, found in others.items():
        own = scoring.save(out / name, found, split, None, args.repeats, args.seed)
        records.write_evaluation(out / name, args.checkpoint, split, found.ids, used)
        write_json(out / name / "metrics.json", {**facts, **origin, **own})
    (out / "attention.npz").unlink(missing_ok=True)
    if attention:
        write_attention(out / "attention.npz", attention)
    records.write_evaluation(out, args.checkpoint, split, predictions.ids, used)
    write_json(out / "metrics.json", scores)
    return scores


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_evaluated()
    parser.add_feature_cache()
    parser.add_argument("--embeddings", action="store_true", help="write embeddings.npz and draw maps of it")
    parser.add_argument("--speaker-vectors", metavar="FILE", help="embeddings of new speakers, from tools/adapt_speaker.py")
    parser.add_argument(
        "--normalise-speakers", metavar="FILE|no", help="embeddings.npz of the training split; no: not at all (default: as trained)"
    )
    parser.add_argument("--label-map", metavar="usual|FILE", help="map the classes of another corpus onto the model's")
    args = parser.parse_args(argv)
    split = read_split(args.manifest_dir, args.split)
    off = args.normalise_speakers == "no"
    files = {"speaker_vectors": args.speaker_vectors, "normalise_speakers": None if off else args.normalise_speakers}
    files["label_map"] = None if args.label_map == "usual" else args.label_map
    settings = scoring.inputs(args.checkpoint, split, **files)
    settings["options"] = [args.embeddings, args.repeats, args.seed, off, args.precision] + [args.label_map] * bool(args.label_map)
    out = make_folder(args.out_dir)
    names = ["predictions.tsv", "predictions.seen", "metrics.json", *(["embeddings.npz"] if args.embeddings else [])]
    stamp = Stamp(out / ".evaluate.json", settings, [out / name for name in names])
    if stamp.is_current() and not args.overwrite:
        logger.info("%s: already there, made with the same settings (--overwrite makes it again)", out)
        scores = read_json(out / "metrics.json")
    else:
        stamp.clear()
        scores = evaluate(args, split, out)
        stamp.write()
    print(summary(scores))
    for name in scores.get("others", []):
        print(f"{name}: " + summary(read_json(out / name / "metrics.json")).split("\n", 2)[2])
    print(f"written to {out}")


def summary(scores):
    """The main scores in a few lines."""
    lines = [f"{scores['n']} utterances; {scores['setting']}; {scores['speaker_embedding']}", f"checkpoint: {scores['selected']}"]
    if "UA" in scores:
        lines.append(f"UA {scores['UA']:.3f}  WA {scores['WA']:.3f}  macro F1 {scores['macro_f1']:.3f}")
    if "label_map" in scores:
        found = scores["label_map"]
        pairs = (f"{theirs} → {ours}" if theirs != ours else ours for theirs, ours in found["classes"].items())
        left_out = ", ".join(f"{name} {n}" for name, n in found["left_out"].items()) or "nothing"
        lines.append(f"classes: {', '.join(pairs)}; left out: {left_out}")
    if "votes" in scores:
        line = "from the annotators' votes: KL {kl:.3f}  JS {js:.3f}  total variation {tv:.3f} ({n} utterances)"
        lines.append(line.format_map(scores["votes"]))
    line = "{}: CCC {ccc:.3f}  Pearson {pearson:.3f}  RMSE {rmse:.3f}  CCC over speakers {speaker_ccc_mean:.3f} ± {speaker_ccc_std:.3f}"
    for name, values in scores.get("dims", {}).items():
        lines.append(line.format(name, **{key: float("nan") if value is None else value for key, value in values.items()}))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
