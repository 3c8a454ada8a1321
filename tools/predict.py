#!/usr/bin/env python3
"""Predict emotion for audio files, or for every audio file below folders, with one fine-tuned checkpoint.

CKPT is a .pt file; without it the model in the package predicts, ser_small: angry, happy, neutral, sad, for non-commercial use. How far
to trust it is said when it starts; give it more of each person with --speaker.

Any format and rate that libsndfile reads; channels are averaged. A line per file, in the order given: the class and the
probability of each class, or the dimensions. With --window a time line: a line per window, with start and end in seconds;
windows begin every --hop, and the last one ends with the recording. A speaker-conditioned model gets the
embedding of the unknown speaker, or with --speaker-id of the one named: of its table, or of --speaker-vectors (from
tools/adapt_speaker.py).

What is known of a new speaker, without labels, grows with the speaker's lines, in the order given; `heard` counts those that each
line is predicted by, itself included. With --calibration (calibration.npz of tools/calibrate.py) predictions are calibrated.
With --speaker a model trained with model.speaker_normalisation normalises its pooled vectors by their mean and variance so far,
mixed with those of the average training speaker; without, everybody passes for that speaker.

A file that cannot be read, or is shorter than one frame, is reported and skipped; exit status 2 at the end.

  tools/predict.py recording.wav
  tools/predict.py someone/ --speaker all
  tools/predict.py runs/ser_classification_base/checkpoint_best.pt recordings/ --format csv --output predictions.csv
  tools/predict.py runs/ser_regression_base/checkpoint_best.pt interview.mp3 --window 5 --hop 1
"""

import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.errors import InputError, print_error
from emohubert.core.files import Stamp, atomic, make_folder, sha256
from emohubert.core.programs import shipped
from emohubert.corpus.manifest import UNKNOWN_SPEAKER
from emohubert.evaluation.predict_files import (
    FORMATS,
    LONGEST_SECONDS,
    Layout,
    check_speaker,
    find_files,
    in_order,
    one_by_one,
    predict_files,
)

logger = logging.getLogger("emohubert.predict")
FOLDER, ALL, DEFAULT = "folder", "all", "ser_small"


def predict(args, paths, out):
    """Write the predictions of all files to an open file; returns how many could not be predicted."""
    from emohubert.core.device import choose_device
    from emohubert.evaluation import inference
    from emohubert.speakers import pldc
    from emohubert.speakers.new_speakers import NewSpeakers
    from emohubert.tasks.trained import load_trained

    device = choose_device(args.device)
    task, model = load_trained(args.checkpoint)
    if not hasattr(model, "pooling"):
        raise InputError(f"{args.checkpoint}: predicts no emotion; give a checkpoint of the task emotion_finetuning")
    if args.speaker_vectors:
        NewSpeakers.read(args.speaker_vectors, args.checkpoint).add_to(task, model, args.speaker_vectors)
    if args.speaker_id is not None:
        check_speaker(task, args.speaker_id)
    options = {"longest": args.longest, "batch_seconds": args.batch_seconds, "device": device, "workers": args.workers}
    options["precision"] = args.precision
    options["speaker"] = UNKNOWN_SPEAKER if args.speaker_id is None else args.speaker_id
    online = args.speaker is not None and model.normalisation is not None
    by_speaker = online or args.calibration is not None
    if args.speaker is not None and not by_speaker:
        raise InputError("--speaker without --calibration, and the model was trained without speaker normalisation; leave it out")
    files = predict_files(task, model, paths, args.window, args.hop, embeddings=by_speaker, **options)
    shown = out is sys.stdout and out.isatty()  # lines that appear one after the other are progress enough
    found = in_order(files if shown else cli.progress(files, "predicting", total=len(paths), unit="files"))
    speaker_of = os.path.dirname if args.speaker == FOLDER else lambda path: ALL
    if online:
        found = one_by_one(found, speaker_of, lambda: inference.online(task, model))
    if args.calibration:
        fitted = pldc.load(args.calibration)
        pldc.check_calibration(fitted, task, model, args.calibration)
        found = one_by_one(found, speaker_of, lambda: pldc.RunningSpeaker(fitted).add)
    failed = 0

    def successful():
        nonlocal failed
        for prediction in found:
            if prediction.error is None:
                yield prediction
            else:
                failed += 1
                print_error(prediction.error)

    layout = Layout(task.classes, task.dimensions, args.window is not None, by_speaker, max(map(len, paths)))
    FORMATS[args.format](out, successful(), layout)
    return failed


def choose_model(args):
    """Where the first argument is no checkpoint, it is a path, and the model is the one in the package; `args` are changed."""
    if args.checkpoint is not None and Path(args.checkpoint).suffix != ".pt" and args.checkpoint != DEFAULT:
        args.paths.insert(0, args.checkpoint)
        args.checkpoint = None
    if args.checkpoint in (None, DEFAULT):
        args.checkpoint = shipped(DEFAULT)
        logger.info("%s", args.checkpoint.with_name("about.txt").read_text(encoding="utf-8").strip())


def stamp_of(args, paths):
    """What --output was made from."""
    names = ("format", "window", "hop", "longest", "speaker", "speaker_id", "precision")
    settings = {name: getattr(args, name) for name in names}
    for name in ("checkpoint", "calibration", "speaker_vectors"):
        path = getattr(args, name)
        settings[name] = sha256(path) if path and Path(path).is_file() else None
    stats = [(path, os.stat(path)) for path in paths if os.path.exists(path)]
    settings["files"] = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    return Stamp(args.output.with_name(f".{args.output.name}.json"), settings, [args.output])


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", nargs="?", help="checkpoint of the task emotion_finetuning (default: ser_small)")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="audio file, or folder")
    parser.add_argument("--format", choices=FORMATS, default="table", help="json: one object a line")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to standard output")
    parser.add_argument("--window", type=cli.positive_float, metavar="S", help="seconds of a window: a time line")
    parser.add_argument(
        "--hop", type=cli.positive_float, metavar="S", help="seconds between the beginnings of windows (default: the window)"
    )
    parser.add_argument(
        "--longest", type=cli.positive_float, default=LONGEST_SECONDS, metavar="S", help="longest file without --window, in seconds"
    )
    parser.add_argument("--calibration", metavar="FILE", help="calibration.npz of tools/calibrate.py")
    parser.add_argument(
        "--speaker", choices=(ALL, FOLDER), help="all files are of one speaker (as with --calibration), or those of each folder"
    )
    parser.add_argument("--speaker-vectors", metavar="FILE", help="embeddings of new speakers, from tools/adapt_speaker.py")
    parser.add_argument("--speaker-id", metavar="ID", help="speaker of all files: an id of the model's table or of --speaker-vectors")
    parser.add_argument("--batch-seconds", type=cli.positive_float, default=100.0, metavar="S", help="most audio in the model at once")
    parser.add_argument("--workers", type=int, default=0, help="threads that read audio, and on a CPU run the model; 0: one for each core")
    parser.add_device()
    parser.add_precision()
    parser.add_overwrite()
    args = parser.parse_intermixed_args(argv)
    choose_model(args)
    if args.workers < 0:
        raise InputError(f"--workers {args.workers}: give 0 or more")
    if args.speaker_vectors and args.speaker_id is None:
        raise InputError("--speaker-vectors without --speaker-id; name the speaker")
    paths = find_files(args.paths)
    if args.output is None:
        failed = predict(args, paths, sys.stdout)
    else:
        make_folder(args.output.parent)
        stamp = stamp_of(args, paths)
        if stamp.is_current() and not args.overwrite:
            logger.info("%s: already there, made with the same settings (--overwrite makes it again)", args.output)
            return
        stamp.clear()
        with atomic(args.output) as out:
            failed = predict(args, paths, out)
        if not failed:
            stamp.write()
    if failed:
        raise InputError(f"{failed} of {len(paths)} files could not be predicted; they are named above")


if __name__ == "__main__":
    main()
