#!/usr/bin/env python3
"""Calibrate predictions: for unseen speakers without labels from them (PLDC, Tran, Yin & Soleymani 2023), or by a temperature.

For each speaker the K training speakers with the most similar mean embeddings are found. Their average label mean and standard
deviation become those of the speaker's predictions: the mean alone, the standard deviation alone (best in the paper), or both; for
classes their average class frequencies become the speaker's prior. Predictions of the unknown speaker (<unk>) stay as they are.

Before that each training speaker is left out in turn: unless the most similar of the others give that speaker's label statistics
better than the average of all others does, by more than chance, predictions stay as they are and the output says so (--always
applies it regardless, as in the paper). The speakers' unlabelled audio is used, and tables say so: “calibrated by unlabelled audio”.

    OUT_DIR/predictions.tsv            calibrated
            metrics.json               scores after, metrics_before.json before
            speakers.tsv               each speaker before and after, with the most similar training speakers
            calibration.json           k, the guard, paired tests
            figures/*.png              each speaker before and after

With --temperature VALID, predictions.tsv of validation speakers with labels, probabilities become those at the temperature that makes
these labels most likely (Guo et al. 2017). No decision changes; OUT_DIR holds predictions.tsv, metrics.json, metrics_before.json and
temperature.json, for tools/predict.py --temperature.

  tools/calibrate.py --train-manifest manifests/emodb/train --train-embeddings exp/train/embeddings.npz \\
      --test-embeddings exp/test/embeddings.npz --predictions exp/test/predictions.tsv exp/test_pldc
  tools/calibrate.py --temperature exp/valid/predictions.tsv --predictions exp/test/predictions.tsv exp/test_scaled
"""

import sys
from argparse import ArgumentTypeError
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import Parser, command, logger
from emohubert.core.errors import InputError
from emohubert.speakers import MATCHES


def neighbours(text):
    """The argument of --top-k: None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"“{text}” is neither auto nor a whole number of 1 or more")
    return int(text)


def split_of(path):
    """The Split that DIR/SPLIT names."""
    from emohubert.corpus.manifest import read_split

    path = Path(path)
    return read_split(path.parent, path.name.removesuffix(".tsv"))


def print_report(report):
    """Whether the calibration was applied, and the scores before and after."""
    guard = report["guard"]
    what = f"similar speakers give their label statistics better than all others do, by {guard['gain']:.3f} ± {guard['error']:.3f}"
    verdict = "applied" if report["applied"] else "NOT applied: it does not help (--always applies it)"
    if report["applied"] and not guard["helps"]:
        verdict = "applied although it does not help (--always)"
    print(
        f"PLDC, match {report['match']}, k = {report['k']}: {verdict}\n  leaving out {guard['speakers']} training speakers in turn: {what}"
    )
    for measure, (before, after) in report["scores"].items():
        print(f"  {measure[:23]:24}" + " → ".join("–" if v is None or v != v else f"{v:.3f}" for v in (before, after)))
    if report["applied"]:
        print(f"  lower after calibration: {', '.join(dict.fromkeys(speaker for speaker, _ in report['worse'])) or 'no speaker'}")


@command
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="folder of the results")
    parser.add_argument("--predictions", required=True, metavar="F", help="predictions.tsv to calibrate")
    parser.add_argument("--train-manifest", metavar="DIR/SPLIT", help="training split: speakers (.spk) and labels (.dim or .emo)")
    parser.add_argument("--train-embeddings", metavar="F", help="embeddings.npz of the training split")
    parser.add_argument("--test-embeddings", metavar="F", help="embeddings.npz of the predicted utterances")
    parser.add_argument("--temperature", metavar="VALID", help="instead of PLDC: predictions.tsv of validation speakers to fit it on")
    parser.add_argument("--top-k", type=neighbours, metavar="K", help="similar training speakers, or auto: leaving training speakers out")
    parser.add_argument("--match", choices=MATCHES, help="what is matched; default: std for dimensions, prior for classes")
    parser.add_argument("--always", action="store_true", help="apply it even where leaving out training speakers shows no gain")
    parser.add_argument("--test-manifest", metavar="DIR/SPLIT", help="split of the predictions, to break scores down by its metadata")
    parser.add_argument("--bootstrap", type=int, default=2000, metavar="N", help="draws of speakers for confidence intervals")
    parser.add_seed()
    parser.add_overwrite()
    args = parser.parse_args(argv)
    own = ("train_manifest", "train_embeddings", "test_embeddings")
    given = [f"--{name.replace('_', '-')}" for name in (*own, "top_k", "match", "always") if getattr(args, name)]
    if args.temperature is None and not all(getattr(args, name) for name in own):
        parser.error("PLDC needs --train-manifest, --train-embeddings and --test-embeddings, the other calibration --temperature")
    if args.temperature is not None and given:
        parser.error(f"--temperature and {given[0]}: give one of them")
    (pldc if args.temperature is None else scale)(args)


def scale(args):
    """Make OUT_DIR by temperature scaling, unless it is there and made from the same files."""
    from emohubert.core.files import Stamp, make_folder, read_json, sha256, write_json
    from emohubert.evaluation import temperature
    from emohubert.provenance import records
    from emohubert.speakers.calibration_files import origin_of

    paths = [args.temperature, args.predictions]
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise InputError(f"{missing[0]}: no such file; make it with tools/evaluate.py")
    out = args.out_dir
    files = [out / name for name in ("predictions.tsv", "metrics.json", "metrics_before.json", temperature.FILE)]
    origin, split = origin_of(args.predictions), split_of(args.test_manifest) if args.test_manifest else None
    contents = [*map(sha256, [*paths, *(split.files if split else [])])]
    stamp = Stamp(out / "calibrate.stamp.json", [contents, origin, args.bootstrap, args.seed], files)
    if not stamp.is_current() or args.overwrite:
        stamp.clear()
        temperature.calibrate(*paths, make_folder(out), split, args.bootstrap, args.seed)
        records.write_scaled(args.predictions, args.temperature, out / temperature.FILE)
        write_json(out / "metrics.json", {**origin, **read_json(out / "metrics.json")})
        stamp.write()
    report = read_json(out / temperature.FILE)
    print(f"temperature {report['temperature']:.3f}, fitted on {report['n']} utterances")
    for name in ("validation", "predictions"):
        for measure, text in (("nll", "negative log likelihood"), ("ece", "expected calibration error")):
            if name in report:
                print(f"  {name:12} {text:27} {report[name]['before'][measure]:.3f} → {report[name]['after'][measure]:.3f}")
    print(f"{out}: predictions.tsv, metrics.json, metrics_before.json, {temperature.FILE}")


def pldc(args):
    """Make OUT_DIR by PLDC, unless it is there and made from the same files with the same settings."""
    from emohubert.core.files import Stamp, read_json, sha256
    from emohubert.evaluation.predictions import ClassPredictions, read_embeddings, read_predictions
    from emohubert.provenance import records
    from emohubert.speakers import calibration_files

    predictions = read_predictions(args.predictions)
    train, test = split_of(args.train_manifest), split_of(args.test_manifest) if args.test_manifest else None
    match = args.match or ("prior" if isinstance(predictions, ClassPredictions) else "std")
    used = [args.train_embeddings, args.test_embeddings]
    inputs = [args.predictions, *used, *train.files, *(test.files if test else [])]
    if missing := [path for path in inputs if not Path(path).is_file()]:
        raise InputError(f"{missing[0]}: no such file; make it with tools/evaluate.py … --embeddings")
    origin = calibration_files.origin_of(args.predictions)
    settings = {name: getattr(args, name) for name in ("top_k", "always", "bootstrap", "seed")} | {"match": match, "origin": origin}
    files = [args.out_dir / name for name in (*calibration_files.FILES, "calibration.seen")]
    stamp = Stamp(args.out_dir / "calibrate.stamp.json", {**settings, "inputs": {str(p): sha256(p) for p in inputs}}, files)
    if stamp.is_current() and not args.overwrite:
        logger.info("%s is whole and made with the same settings; --overwrite makes it again", args.out_dir)
        print_report(read_json(args.out_dir / "calibration.json"))
        return
    stamp.clear()
    embeddings = read_embeddings(args.train_embeddings)
    fitted = calibration_files.fit(train, embeddings, predictions, match, args.top_k, args.always, args.train_embeddings)
    records.write_calibration(args.out_dir, args.predictions, train, embeddings.ids, used)
    embeddings = read_embeddings(args.test_embeddings)
    report = calibration_files.save(
        args.out_dir, *fitted, embeddings, predictions, test, args.bootstrap, args.seed, args.test_embeddings, origin
    )
    stamp.write()
    print_report(report)
    print(f"{args.out_dir}: predictions.tsv, metrics.json, metrics_before.json, speakers.tsv, figures/")


if __name__ == "__main__":
    main()
