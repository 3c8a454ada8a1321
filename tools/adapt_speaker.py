#!/usr/bin/env python3
"""Embeddings for speakers outside the table of a speaker-conditioned model, from their audio alone: none of their labels is read.

OUT.npz gets one for each speaker of the split who is not in the checkpoint's table.

--method adapted   fitted to the masked-prediction loss of the speaker's audio, all else frozen. CKPT is a pretrained model
                   (PAPT); the split needs frame labels from the k-means that the model was trained on, applied to it, not
                   fitted to it. The prior has the mean and the covariance of the training speakers' embeddings, so that a few
                   seconds of audio change little, and more audio more.
--method nearest   the average of the embeddings of the most similar training speakers. CKPT is any speaker-conditioned model
                   of ours, pretrained or fine-tuned.

Use them with tools/evaluate.py or tools/predict.py --speaker-vectors OUT.npz. Fine-tuning starts from the pretrained table
and moves it; embeddings adapted in the pretrained model are used in the fine-tuned one as they are.

  tools/make_labels.py manifests/x exp/labels --checkpoint exp/hubert/checkpoint_last.pt --layers 3 --clusters 50 \\
      --splits train valid test
  tools/adapt_speaker.py exp/papt/checkpoint_last.pt manifests/x test exp/adapted.npz --method adapted \\
      --label-dir exp/labels/L3/km50
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.errors import InputError
from emohubert.core.files import Stamp, make_folder, sha256
from emohubert.speakers import METHODS


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="speaker-conditioned checkpoint")
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory")
    parser.add_argument("split", metavar="SPLIT", help="split of the new speakers, such as test")
    parser.add_argument("out", metavar="OUT.npz", type=Path, help="the embeddings")
    parser.add_argument("--method", choices=METHODS, required=True, help="how they are made")
    parser.add_argument("--train-split", metavar="DIR/SPLIT", help="nearest: split of the training speakers (default: MANIFEST_DIR/train)")
    parser.add_argument("--label-dir", metavar="DIR", help="adapted: folder of the split's frame labels, as task.label_dir in training")
    parser.add_argument("--batch-seconds", type=cli.positive_float, default=100.0, metavar="S", help="nearest: most audio in a batch")
    parser.add_argument("--workers", type=int, default=0, help="threads; 0: one for each core")
    parser.add_seed()
    parser.add_device()
    parser.add_overwrite()
    args = parser.parse_args(argv)
    if args.out.suffix != ".npz":
        raise InputError(f"{args.out}: the embeddings go into an .npz file; give a name that ends in .npz")
    if not Path(args.checkpoint).is_file():
        raise InputError(f"{args.checkpoint}: no such checkpoint file; correct the path")
    if args.method == "adapted" and args.label_dir is None:
        raise InputError(
            "an embedding is adapted to frame labels of the split; give their folder with --label-dir (tools/make_labels.py --splits)"
        )
    embed(args)


def embed(args):
    """Write the embeddings, unless they are there and made with the same settings."""
    from emohubert.core.device import choose_device
    from emohubert.corpus.manifest import read_split
    from emohubert.provenance import records

    device, split, train = choose_device(args.device), read_split(args.manifest_dir, args.split), None
    if args.method == "nearest":
        path = Path(args.train_split or Path(args.manifest_dir) / "train")
        train = read_split(path.parent, path.name.removesuffix(".tsv"))
    make_folder(args.out.parent)
    stamp = Stamp(args.out.with_name(f".{args.out.name}.json"), settings_of(args, split, train), [args.out, records.beside(args.out)])
    if stamp.is_current() and not args.overwrite:
        cli.logger.info("%s: already there, made with the same settings (--overwrite makes it again)", args.out)
        return
    from emohubert.speakers import adaptation

    stamp.clear()
    options = {"seed": args.seed, "device": device, "batch_seconds": args.batch_seconds, "workers": args.workers}
    new = adaptation.make(args.checkpoint, split, args.method, train, args.label_dir, **options)
    new.write(args.out)
    records.write_adaptation(args.out, args.checkpoint, split, args.label_dir)
    stamp.write()
    print(f"{args.out}: embeddings of {len(new.speakers)} speakers from {new.speakers.counts.sum()} utterances")


def settings_of(args, split, train):
    """What the embeddings depend on; labels of emotion are no part of it."""
    settings = {"method": args.method, "seed": args.seed, "checkpoint": sha256(args.checkpoint)}
    files = [s.directory / f"{s.name}.{suffix}" for s in (split, train) if s for suffix in ("tsv", "spk")]
    files += sorted(Path(args.label_dir).rglob(f"{args.split}.*")) if args.label_dir else []
    return settings | {"files": [sha256(path) for path in files if path.is_file()]}


if __name__ == "__main__":
    main()
