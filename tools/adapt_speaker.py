#!/usr/bin/env python3
"""Embeddings for speakers outside the table of a fine-tuned PAPT model, from their audio alone: none of their labels is read.

OUT.npz gets one for each speaker of the split who is not in the checkpoint's table: the offset that brings the mean of the speaker's
utterance vectors to that of the training speakers, less of it the fewer utterances there are. The model's speakers must be at the
encoder's output (model.speaker_position=output). Use the file with tools/evaluate.py or tools/predict.py --speaker-vectors OUT.npz and
the same checkpoint.

  tools/adapt_speaker.py exp/ser/checkpoint_best.pt exp/emodb/fold1 test exp/adapted.npz
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.errors import InputError
from emohubert.core.files import Stamp, make_folder, sha256


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="fine-tuned checkpoint with speakers at the output")
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory")
    parser.add_argument("split", metavar="SPLIT", help="split of the new speakers, such as test")
    parser.add_argument("out", metavar="OUT.npz", type=Path, help="the embeddings")
    parser.add_argument("--train-split", metavar="DIR/SPLIT", help="split that the model was trained on (default: MANIFEST_DIR/train)")
    parser.add_feature_cache()
    parser.add_running()
    parser.add_overwrite()
    args = parser.parse_args(argv)
    if args.out.suffix != ".npz":
        raise InputError(f"{args.out}: the embeddings go into an .npz file; give a name that ends in .npz")
    if not Path(args.checkpoint).is_file():
        raise InputError(f"{args.checkpoint}: no such checkpoint file; correct the path")
    embed(args)


def embed(args):
    """Write the embeddings, unless they are there and made with the same settings."""
    from emohubert.corpus.manifest import read_split
    from emohubert.provenance import records

    path = Path(args.train_split or Path(args.manifest_dir) / "train")
    train, split = read_split(path.parent, path.name.removesuffix(".tsv")), read_split(args.manifest_dir, args.split)
    files = [args.checkpoint, *(s.directory / f"{s.name}.{suffix}" for s in (train, split) for suffix in ("tsv", "spk"))]
    settings = {"precision": args.precision, "files": [sha256(f) for f in files if Path(f).is_file()]}
    stamp = Stamp(make_folder(args.out.parent) / f".{args.out.name}.json", settings, [args.out, records.beside(args.out)])
    if stamp.is_current() and not args.overwrite:
        cli.logger.info("%s: already there, made with the same settings (--overwrite makes it again)", args.out)
        return
    from emohubert.core.device import choose_device
    from emohubert.speakers.new_speakers import adapt

    stamp.clear()
    names = ("batch_seconds", "workers", "precision", "feature_cache")
    options = {"device": choose_device(args.device)} | {name: getattr(args, name) for name in names}
    new = adapt(args.checkpoint, train, split, **options)
    new.write(args.out)
    records.write_adaptation(args.out, args.checkpoint, split)
    stamp.write()
    print(f"{args.out}: embeddings of {len(new.speakers)} speakers from {new.speakers.counts.sum()} utterances")


if __name__ == "__main__":
    main()
