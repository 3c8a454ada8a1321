#!/usr/bin/env python3
"""Calibrate predictions for speakers whom the model has not met (PLDC), without a label of theirs.

For each speaker, the training speakers with the most similar mean embeddings are found, and the predictions are moved
towards the labels of those: their mean (and standard deviation) for dimensions, their class frequencies for classes. How
many neighbours are taken, and how far to go, is decided on the training speakers, left out one at a time, and on the
predictions without their references; where neighbours say nothing about labels, nothing changes. --shrinkage none is the
published method.

    OUT_DIR/predictions.tsv            calibrated
            metrics.json               scores after, metrics_before.json before
            speakers.tsv               each speaker before and after, with neighbours; worse_speakers.tsv: those made worse
            calibration.json           what was chosen, and why; calibration.npz: for tools/predict.py --calibration
            figures/*.png              map of nearest speakers, before and after, gain against utterances

  tools/calibrate.py --train-manifest manifests/emodb/train --train-embeddings exp/train/embeddings.npz \\
      --test-embeddings exp/test/embeddings.npz --predictions exp/test/predictions.tsv exp/test_pldc
"""

import sys
from argparse import ArgumentTypeError
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import Parser, command, logger
from emohubert.core.errors import InputError
from emohubert.core.files import Stamp, read_json, sha256
from emohubert.corpus.manifest import read_split
from emohubert.data.speaker_vectors import WEIGHTINGS
from emohubert.evaluation.predictions import ClassPredictions, read_embeddings, read_predictions
from emohubert.provenance import records
from emohubert.speakers import calibration_report
from emohubert.speakers.calibration import MATCHES, PRIORS, SHRINKAGES, Settings

SHOWN = 10  # speakers made worse that are printed; worse_speakers.tsv has all


def neighbours(text):
    """The argument of --top-k: None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"“{text}” is neither auto nor a whole number of 1 or more")
    return int(text)


def split_of(path):
    """The Split that DIR/SPLIT names."""
    path = Path(path)
    return read_split(path.parent, path.name.removesuffix(".tsv"))


def shown(score):
    """A score with three digits; a dash where it is not defined."""
    return "–" if score is None or score != score else f"{score:.3f}"


def print_report(report):
    """Before and after, and the speakers made worse."""
    trust = " ".join(f"{value:.2g}" for value in report["trust"])
    print(
        f"{report['training_speakers']} training speakers, k = {report['k']}, neighbours trusted {trust}, strength {report['strength']:.2g}"
    )
    print(f"{'':24}{'before':>8}{'after':>8}   over speakers before → after")
    for measure, s in report["scores"].items():
        spread = [f"{shown(s[k]['mean'])} ± {shown(s[k]['std'])}" for k in ("speakers_before", "speakers_after")]
        print(f"{measure[:23]:24}{shown(s['before']):>8}{shown(s['after']):>8}   {' → '.join(spread)}")
    worse = report["worse"]
    print(f"made worse: {len(worse)}" if worse else "no speaker was made worse")
    for row in worse[:SHOWN]:
        print(f"  {row['speaker']}  {row['measure']} {row['before']:.3f} → {row['after']:.3f}  ({row['utterances']} utterances)")
    if len(worse) > SHOWN:
        print(f"  … and {len(worse) - SHOWN} more in worse_speakers.tsv")


@command
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="folder of the results")
    parser.add_argument(
        "--train-manifest", required=True, metavar="DIR/SPLIT", help="training split: speakers (.spk) and labels (.dim or .emo)"
    )
    parser.add_argument("--train-embeddings", required=True, metavar="F", help="embeddings.npz of the training split")
    parser.add_argument("--test-embeddings", required=True, metavar="F", help="embeddings.npz of the predicted utterances")
    parser.add_argument("--predictions", required=True, metavar="F", help="predictions.tsv to calibrate")
    parser.add_argument("--top-k", type=neighbours, metavar="K", help="number of nearest training speakers, or auto (the default)")
    parser.add_argument("--match", choices=MATCHES, help="what is matched; default: mean for dimensions, prior for classes")
    parser.add_argument(
        "--weighting", choices=WEIGHTINGS, default="hard", help="of the neighbours: all alike, or the more similar the more"
    )
    parser.add_argument(
        "--shrinkage", choices=SHRINKAGES, default="auto", help="auto: only as far as the data say; none: the published formulas"
    )
    parser.add_argument(
        "--prior", choices=PRIORS, default="neighbours", help="class frequencies: the neighbours', or EM that starts from them"
    )
    parser.add_argument(
        "--smoothing", type=float, default=1.0, metavar="A", help="utterances of average class frequencies added to each speaker's"
    )
    parser.add_argument(
        "--train-predictions",
        metavar="F",
        help="predictions.tsv of the training speakers, by models that had not trained on them: k and strength are chosen by CCC or UA",
    )
    parser.add_argument("--test-manifest", metavar="DIR/SPLIT", help="split of the predictions, to break scores down by its metadata")
    parser.add_argument("--bootstrap", type=int, default=2000, metavar="N", help="draws of speakers for confidence intervals")
    parser.add_seed()
    parser.add_overwrite()
    args = parser.parse_args(argv)

    predictions = read_predictions(args.predictions)
    train, test = split_of(args.train_manifest), split_of(args.test_manifest) if args.test_manifest else None
    match = args.match or ("prior" if isinstance(predictions, ClassPredictions) else "mean")
    settings = Settings(match, args.top_k, args.weighting, args.shrinkage, args.smoothing, args.prior)
    inputs = [args.predictions, args.train_embeddings, args.test_embeddings, *([args.train_predictions] if args.train_predictions else [])]
    for split in (train, test):
        inputs += [p for s in ("tsv", "spk", "emo", "dim", "meta.tsv") if split and (p := split.directory / f"{split.name}.{s}").is_file()]
    missing = [path for path in inputs if not Path(path).is_file()]
    if missing:
        raise InputError(f"{missing[0]}: no such file; make it with tools/evaluate.py … --embeddings")
    used = {"settings": vars(settings), "bootstrap": args.bootstrap, "seed": args.seed, "inputs": {str(p): sha256(p) for p in inputs}}
    files = [args.out_dir / name for name in (*calibration_report.FILES, "calibration.seen")]
    stamp = Stamp(args.out_dir / "calibrate.stamp.json", used, files)
    if stamp.is_current() and not args.overwrite:
        logger.info("%s is whole and made with the same settings; --overwrite makes it again", args.out_dir)
        print_report(read_json(args.out_dir / "calibration.json"))
        return
    stamp.clear()
    train_predictions = read_predictions(args.train_predictions) if args.train_predictions else None
    embeddings = read_embeddings(args.train_embeddings)
    fitted = calibration_report.fit(train, embeddings, predictions, settings, train_predictions, args.train_embeddings)
    others = [args.train_embeddings, args.test_embeddings, *([args.train_predictions] if args.train_predictions else [])]
    records.write_calibration(args.out_dir, args.predictions, train, embeddings.ids, others)
    embeddings = read_embeddings(args.test_embeddings)
    origin = calibration_report.origin_of(args.predictions)
    report = calibration_report.save(
        args.out_dir, fitted, embeddings, predictions, test, args.bootstrap, args.seed, args.test_embeddings, origin
    )
    stamp.write()
    print_report(report)
    print(f"{args.out_dir}: predictions.tsv, metrics.json, metrics_before.json, speakers.tsv, figures/")


if __name__ == "__main__":
    main()
