#!/usr/bin/env python3
"""Predict emotion for audio files, or for every audio file below folders, with one fine-tuned checkpoint.

CKPT is a .pt file, or a Hugging Face folder of a …ForSequenceClassification; without it the model in the package predicts,
ser_small: angry, happy, neutral, sad, for non-commercial use. How far to trust it is said when it starts; give it more of each
person with --speaker.

Any format and rate that libsndfile reads; channels are averaged; - is standard input. A line per file, in the order given: the class
and the probability of each class, or the dimensions. A line per part, with start and end in seconds: with --window, windows that begin
every --hop, the last one ending with the recording; with --vad, stretches of speech (Silero VAD, the extra `vad`); with --segments FILE,
those that it lists: RTTM, whose files are found among PATHs by their names without folder and ending, or a table (CSV, TSV) with the
columns path, and where there are any start, end, speaker; relative paths are below its folder. A speaker-conditioned model gets the
embedding of the unknown speaker, or with --speaker-id of the one named: of its table, or of --speaker-vectors (from
tools/adapt_speaker.py).

What is known of a new speaker, without labels, grows with the speaker's lines, in the order given; `heard` counts those that each
line is predicted by, itself included: with --speaker a model trained with model.speaker_normalisation normalises its pooled vectors
by their mean and variance so far, mixed with those of the average training speaker; without, everybody passes for that speaker.
--speaker segments: as --segments says.

--temperature (temperature.json of tools/calibrate.py, or a number) makes the probabilities as certain as they deserve; a temperature.json
beside the checkpoint, as ser_small has one, is used without being named. With --min-confidence P the emotion is “-”, an abstention,
where no class has that probability.

A file that cannot be read, or is shorter than one frame, is reported and skipped; exit status 2 at the end.

  tools/predict.py recording.wav
  tools/predict.py someone/ --speaker all
  tools/predict.py runs/ser_classification_base/checkpoint_best.pt recordings/ --format csv --output predictions.csv
  tools/predict.py runs/ser_regression_base/checkpoint_best.pt interview.mp3 --window 5 --hop 1
  tools/predict.py meeting.wav --segments meeting.rttm --speaker segments --min-confidence 0.5
  ffmpeg -i talk.mp4 -f wav - | tools/predict.py - --vad
"""

import logging
import os
import sys
import tempfile
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

import numpy as np

from emohubert.core import cli
from emohubert.core.errors import InputError, print_error
from emohubert.core.files import Stamp, atomic, make_folder, sha256
from emohubert.core.programs import shipped
from emohubert.corpus.manifest import UNKNOWN_SPEAKER
from emohubert.evaluation import temperature
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
FOLDER, ALL, SEGMENTS, DEFAULT = "folder", "all", "segments", "ser_small"


def predict(args, paths, segments, out):
    """Write the predictions of all files to an open file; returns how many could not be predicted."""
    from emohubert.core.device import choose_device
    from emohubert.evaluation import inference
    from emohubert.evaluation.segments import VoiceActivity
    from emohubert.speakers.new_speakers import NewSpeakers
    from emohubert.tasks.trained import load_trained

    device = choose_device(args.device)
    task, model = load_trained(args.checkpoint, several=True)
    if not hasattr(model, "pooling"):
        raise InputError(f"{args.checkpoint}: predicts no emotion; give a checkpoint of the task emotion_finetuning")
    if args.speaker_vectors:
        NewSpeakers.read(args.speaker_vectors, args.checkpoint).add_to(task, model, args.speaker_vectors)
    if args.speaker_id is not None:
        check_speaker(task, args.speaker_id)
    options = {name: getattr(args, name) for name in ("window", "hop", "longest", "batch_seconds", "workers", "precision")}
    options |= {"device": device, "speaker": UNKNOWN_SPEAKER if args.speaker_id is None else args.speaker_id}
    by_speaker = args.speaker is not None
    if by_speaker and model.normalisation is None:
        raise InputError("--speaker: the model was trained without speaker normalisation; leave it out")
    if not task.classes and (args.min_confidence or args.temperature):
        what = "predicts no emotion classes, so that there are no probabilities of them"
        raise InputError(f"{args.checkpoint}: {what}; leave --temperature and --min-confidence out")
    if args.vad:
        options["parts_of"] = VoiceActivity(args.longest)
    elif segments:
        options["parts_of"] = lambda path, n_samples: segments[path].of(path, n_samples)
    files = predict_files(task, model, paths, embeddings=by_speaker, **options)
    shown = out is sys.stdout and out.isatty()  # lines that appear one after the other are progress enough
    found = in_order(files if shown else cli.progress(files, "predicting", total=len(paths), unit="files"))
    if by_speaker:
        speaker_of = {FOLDER: os.path.dirname, SEGMENTS: lambda path: segments[path].speakers, ALL: lambda path: ALL}[args.speaker]
        found = one_by_one(found, speaker_of, lambda: inference.online(task, model))
    temperatures, failed = temperatures_of(args) if task.classes else None, 0

    def successful():
        nonlocal failed
        for prediction in found:
            if prediction.error is not None:
                failed += 1
                print_error(prediction.error)
                continue
            values = prediction.values
            if temperatures is not None:
                own = [temperatures[name != UNKNOWN_SPEAKER] for name in prediction.speakers] or temperatures[:1]
                values = temperature.scaled_first(values, np.array(own)[:, None], len(task.classes))
            yield replace(prediction, path=args.names.get(prediction.path, prediction.path), values=values)

    in_parts = args.window is not None or args.vad or bool(segments)
    shown = in_parts, by_speaker, max(map(len, paths)), args.min_confidence
    layout = Layout(task.classes, task.dimensions, *shown, task.state.categories)
    FORMATS[args.format](out, successful(), layout)
    return failed


def temperatures_of(args):
    """The temperatures, plain and of normalised speakers, that --temperature says, or the file beside the checkpoint; None without."""
    path = temperature.beside(args.checkpoint) if args.temperature is None else args.temperature
    try:
        return None if path is None else [cli.positive_float(str(path))] * 2
    except ArgumentTypeError:
        return [temperature.read(path, normalised) for normalised in (False, True)]


def choose_files(args, folder):
    """(paths of audio files, {path: Segments} or {}), of PATHs and --segments; standard input is kept in a folder, and `args.names` says
    what it is called in the output."""
    from emohubert.evaluation.segments import read_segments

    args.names = {}
    if "-" in args.paths:
        path = Path(folder) / "standard input"
        path.write_bytes(sys.stdin.buffer.read())
        args.paths[args.paths.index("-")] = str(path)
        args.names[str(path)] = "-"
    if args.segments is None:
        if not args.paths:
            raise InputError("no audio: give a PATH, or --segments FILE")
        return find_files(args.paths), {}
    given = find_files(args.paths) if args.paths else []
    segments = read_segments(args.segments, given)
    if unused := [path for path in given if path not in segments]:
        logger.info("%s: has no segment of %d audio files, such as %s; they are left out", args.segments, len(unused), unused[0])
    return list(segments), segments


def choose_model(args):
    """Where the first argument is no checkpoint, it is a path, and the model is the one in the package; `args` are changed."""
    is_model = (
        args.checkpoint == DEFAULT or Path(args.checkpoint or "").suffix == ".pt" or Path(args.checkpoint or "", "config.json").is_file()
    )
    if args.checkpoint is not None and not is_model:  # a PATH
        args.paths.insert(0, args.checkpoint)
        args.checkpoint = None
    if args.checkpoint in (None, DEFAULT):
        args.checkpoint = shipped(DEFAULT)
        logger.info("%s", args.checkpoint.with_name("about.txt").read_text(encoding="utf-8").strip())


def stamp_of(args, paths):
    """What --output was made from."""
    names = ("format", "window", "hop", "longest", "speaker", "speaker_id", "precision", "vad", "min_confidence", "temperature")
    scale = args.temperature or temperature.beside(args.checkpoint)
    files = (args.checkpoint, args.speaker_vectors, args.segments, scale)
    settings = {name: getattr(args, name) for name in names}
    if Path(args.checkpoint).is_dir():
        files = (*files, *(Path(args.checkpoint, name) for name in ("config.json", "model.safetensors")))
    settings["contents"] = [sha256(path) if path and Path(path).is_file() else None for path in files]
    stats = [(path, os.stat(path)) for path in paths if os.path.exists(path)]
    settings["files"] = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    return Stamp(args.output.with_name(f".{args.output.name}.json"), settings, [args.output])


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", nargs="?", help="checkpoint of the task emotion_finetuning (default: ser_small)")
    parser.add_argument("paths", metavar="PATH", nargs="*", help="audio file, folder, or - for standard input")
    parser.add_argument("--format", choices=FORMATS, default="table", help="json: one object a line")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to standard output")
    parser.add_argument("--window", type=cli.positive_float, metavar="S", help="seconds of a window: a time line")
    parser.add_argument(
        "--hop", type=cli.positive_float, metavar="S", help="seconds between the beginnings of windows (default: the window)"
    )
    parser.add_argument("--vad", action="store_true", help="predict stretches of speech, cut where they pause if they exceed --longest")
    parser.add_argument("--segments", metavar="FILE", help="predict the parts that an RTTM file or a table lists")
    parser.add_argument(
        "--longest", type=cli.positive_float, default=LONGEST_SECONDS, metavar="S", help="longest file or part without --window, in seconds"
    )
    parser.add_argument("--min-confidence", type=float, default=0.0, metavar="P", help="abstain below this probability")
    parser.add_argument("--temperature", metavar="FILE|T", help="temperature.json of tools/calibrate.py --temperature, or a number")
    parser.add_argument("--speaker", choices=(ALL, FOLDER, SEGMENTS), help="all is of one speaker, or each folder, or see above")
    parser.add_argument("--speaker-vectors", metavar="FILE", help="embeddings of new speakers, from tools/adapt_speaker.py")
    parser.add_argument("--speaker-id", metavar="ID", help="speaker of all files: an id of the model's table or of --speaker-vectors")
    parser.add_running()
    parser.add_overwrite()
    args = parser.parse_intermixed_args(argv)
    choose_model(args)
    if args.speaker_vectors and args.speaker_id is None:
        raise InputError("--speaker-vectors without --speaker-id; name the speaker")
    if not 0 <= args.min_confidence <= 1:
        raise InputError(f"--min-confidence {args.min_confidence:g}: give a probability from 0 to 1")
    parts = {"--window": args.window, "--vad": args.vad, "--segments": args.segments}
    if len(chosen := [name for name, value in parts.items() if value]) > 1:
        raise InputError(f"{' and '.join(chosen)}: give one of them")
    if args.speaker == SEGMENTS and args.segments is None:
        raise InputError("--speaker segments without --segments FILE; give it, or another --speaker")
    with tempfile.TemporaryDirectory() as folder:
        write(args, *choose_files(args, folder))


def write(args, paths, segments):
    """Predict to standard output, or to --output, unless that is whole and made with the same settings."""
    if args.output is None:
        failed = predict(args, paths, segments, sys.stdout)
    else:
        make_folder(args.output.parent)
        stamp = stamp_of(args, paths)
        if stamp.is_current() and not args.overwrite:
            logger.info("%s: already there, made with the same settings (--overwrite makes it again)", args.output)
            return
        stamp.clear()
        with atomic(args.output) as out:
            failed = predict(args, paths, segments, out)
        if not failed:
            stamp.write()
    if failed:
        raise InputError(f"{failed} of {len(paths)} files could not be predicted; they are named above")


if __name__ == "__main__":
    main()
