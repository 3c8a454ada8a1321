#!/usr/bin/env python3
"""Measure prediction against the audio-classification pipeline of transformers: same architecture, same weights, same files.

Makes a HubertForSequenceClassification with random weights (base size) and a checkpoint of ours with the same encoder. That
model's projector, mean and classifier are linear, so our head is their product: the mean over time, then one linear layer.
Both sides read the same files from disk, decode (and, where needed, resample) them, and use the same number of threads; the
pipeline is given what soundfile decodes, since its own way is to start ffmpeg for each file. Loading the models is timed
apart. Printed: seconds, how many times faster we are, and the largest difference between probabilities. (The pipeline's
padded batches are inexact where a model has GroupNorm: its batch size 1 is the reference.)

Needs transformers (requirements-dev.txt).

  tools/bench_predict.py AUDIO_DIR --files 300
"""

# ruff: noqa: E402 (the command line is read before the slow imports)
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.parallel import cores


def make_parser():
    """The command line."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("audio_dir", metavar="AUDIO_DIR", help="folder of audio files")
    parser.add_argument("--files", type=int, default=300, metavar="N", help="number of files: the first N in the order of names")
    parser.add_argument("--tiny", action="store_true", help="a very small model, to try the program")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], metavar="B", help="of the pipeline")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="measure so often in turn, and take the fastest")
    parser.add_argument("--threads", type=int, default=cores(), metavar="N", help="on a CPU, for either side")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_precision()  # of ours; the pipeline's is float32
    parser.add_device()
    parser.add_seed()
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and bad usage end here, before the slow imports

import logging
import tempfile
import time

import numpy as np
import soundfile
import torch

from emohubert.core.device import choose_device
from emohubert.core.errors import InputError
from emohubert.core.files import make_folder, write_json
from emohubert.corpus import audio
from emohubert.evaluation.predict_files import find_files, in_order, predict_files
from emohubert.tasks.trained import load_trained

logger = logging.getLogger("emohubert.bench_predict")
CLASSES = ["angry", "bored", "disgusted", "fearful", "happy", "neutral", "sad"]
TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [32] * 7,
    "classifier_proj_size": 24,
}
SPREAD = 20.0  # standard deviation of the classifier's weights: large, so that files get different probabilities


def write_transformers_model(folder, seed=1, **architecture):
    """Write a HubertForSequenceClassification with random weights and its feature extractor; returns the model."""
    import transformers

    labels = dict(enumerate(CLASSES))
    config = transformers.HubertConfig(num_labels=len(labels), id2label=labels, label2id={v: k for k, v in labels.items()}, **architecture)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.HubertForSequenceClassification(config).eval()
        torch.nn.init.normal_(model.classifier.weight, std=SPREAD)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=False).save_pretrained(folder)
    return model


def decoded(paths):
    """What the pipeline is given for each file."""
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        yield {"array": samples.mean(axis=1), "sampling_rate": rate}


def by_pipeline(pipe, paths, batch_size):
    """(seconds, probabilities (files, classes)) of the pipeline."""
    start = time.perf_counter()
    found = [{row["label"]: row["score"] for row in rows} for rows in pipe(decoded(paths), batch_size=batch_size)]
    seconds = time.perf_counter() - start
    return seconds, np.array([[scores[name] for name in CLASSES] for scores in found])


def by_us(task, model, paths, **options):
    """(seconds, probabilities (files, classes)) of ours."""
    start = time.perf_counter()
    found = list(in_order(predict_files(task, model, paths, **options)))
    seconds = time.perf_counter() - start
    failed = [f for f in found if f.error is not None]
    if failed:
        raise failed[0].error
    return seconds, np.concatenate([f.values for f in found])


def timed(function):
    """(seconds, what it returns)."""
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


@cli.command
def main(argv=None):
    args = make_parser().parse_args(argv)
    if min(args.files, args.repeats, args.threads, *args.batch_sizes) < 1:
        raise InputError("--files, --batch-sizes, --repeats and --threads must be 1 or more")
    try:
        import transformers
    except ImportError as error:
        raise InputError("transformers is not installed; install requirements-dev.txt") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = choose_device(args.device)
    torch.set_num_threads(args.threads)
    paths = find_files([args.audio_dir])[: args.files]
    seconds = sum(audio.probe(path) for path in paths) / audio.SAMPLE_RATE

    with tempfile.TemporaryDirectory() as folder:
        write_transformers_model(folder, args.seed, **(TINY if args.tiny else {}))
        their_load, pipe = timed(
            lambda: transformers.pipeline("audio-classification", model=folder, feature_extractor=folder, device=device, top_k=None)
        )
        our_load, (task, model) = timed(lambda: load_trained(folder))
    by_pipeline(pipe, paths[:2], 1)  # both sides warm
    options = {"device": device, "workers": args.threads, "precision": args.precision}
    by_us(task, model, paths[:2], **options)
    theirs, ours, probabilities = {b: [] for b in args.batch_sizes}, [], {}
    for _ in range(args.repeats):
        for size in args.batch_sizes:
            taken, probabilities[size] = by_pipeline(pipe, paths, size)
            theirs[size].append(taken)
            logger.info("pipeline, batch size %d: %.2f s", size, taken)
        taken, own = by_us(task, model, paths, **options)
        ours.append(taken)
        logger.info("ours: %.2f s", taken)

    figures = {
        "files": len(paths),
        "audio_seconds": seconds,
        "device": str(device),
        "threads": args.threads,
        "precision": args.precision,
        "loading": {"pipeline": their_load, "ours": our_load},
        "ours": min(ours),
        "pipeline": {
            size: {
                "seconds": min(theirs[size]),
                "ratio": min(theirs[size]) / min(ours),
                "max_difference": float(np.abs(probabilities[size] - own).max()),
            }
            for size in args.batch_sizes
        },
        "spread": float(own.std(axis=0).mean()),
    }
    if args.out:
        make_folder(args.out.parent)
        write_json(args.out, figures)
    show(figures, "tiny" if args.tiny else "base")


def show(figures, size):
    """Print the figures of a model of a size as a table."""
    seconds, ours, loading = figures["audio_seconds"], figures["ours"], figures["loading"]
    print(f"{figures['files']} files, {seconds:.0f} s of audio; {figures['device']}, {figures['threads']} threads; {size} size")
    print(f"loading: pipeline {loading['pipeline']:.1f} s, ours {loading['ours']:.1f} s (not counted below)")
    print(f"{'':24}{'seconds':>9}{'× real time':>13}{'ours faster by':>16}{'max difference':>16}")
    for batch, row in figures["pipeline"].items():
        values = f"{row['seconds']:9.2f}{seconds / row['seconds']:13.1f}{row['ratio']:16.2f}{row['max_difference']:16.1e}"
        print(f"{f'pipeline, batch size {batch}':24}{values}")
    print(f"{'ours, ' + figures['precision']:24}{ours:9.2f}{seconds / ours:13.1f}")
    print(f"standard deviation of a class's probability over files: {figures['spread']:.3f}")


if __name__ == "__main__":
    main()
