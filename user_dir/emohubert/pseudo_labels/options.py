"""Command-line options that the label tools share."""

import argparse

from ..core.cli import positive_int
from ..core.errors import InputError

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def memory(text):
    """Bytes, from text such as 512M or 8G, for argparse."""
    number = text.upper().removesuffix("B").removesuffix("I")
    try:
        value = float(number.rstrip("KMGT")) * _UNITS.get(number[-1:], 1)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"“{text}” is not an amount of memory; write such as 512M or 8G")
    return int(value)


def add_features(parser):
    """Which features: --mfcc, --prosody, or --checkpoint with --layers, and how they are extracted."""
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--mfcc", action="store_true", help="39-dimensional MFCCs, 100 frames a second")
    text = "14 prosodic and voice-quality descriptors, 50 frames a second; level and pitch relative to the recording (default) or absolute"
    kind.add_argument("--prosody", nargs="?", const="relative", choices=("relative", "absolute"), help=text)
    text = "HuBERT, wav2vec 2.0, WavLM, data2vec audio, ours (also an emotion model), Hugging Face folder; 50 frames/s"
    kind.add_argument("--checkpoint", metavar="CKPT", help=text)
    parser.add_argument("--layers", type=positive_int, nargs="+", metavar="L", help="Transformer layers of the checkpoint, from 1")
    parser.add_running()


def add_max_memory(parser):
    """--max-memory: what k-means is fitted on."""
    parser.add_argument("--max-memory", type=memory, default="512M", metavar="BYTES", help="features in memory for the fit, such as 8G")


def features(args, load_encoder):
    """The MfccFeatures, ProsodyFeatures or EncoderFeatures that the options of `add_features` ask for. `load_encoder`: that of
    `models.from_pretrained`, which stands above this room; it is called for a checkpoint only. InputError: the options do not fit together,
    the device is missing, or the checkpoint cannot be loaded."""
    from ..core.device import check_precision, choose_device
    from .features import EncoderFeatures, MfccFeatures
    from .prosody import ProsodyFeatures

    if args.mfcc or args.prosody:
        if args.layers or args.precision != "float32":
            raise InputError("--mfcc, --prosody: only encoders have --layers and --precision; leave these options out")
        return MfccFeatures(args.workers) if args.mfcc else ProsodyFeatures(args.workers, absolute=args.prosody == "absolute")
    if not args.layers:
        raise InputError("--checkpoint: name the layers with --layers, such as --layers 6 9 11")
    device = choose_device(args.device)
    check_precision(args.precision, device)
    encoder = load_encoder(args.checkpoint, device)
    return EncoderFeatures(encoder, args.layers, args.batch_seconds, args.workers, args.precision)
