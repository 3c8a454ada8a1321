#!/usr/bin/env python3
"""Embeddings for speakers outside the table of a speaker-conditioned model, from their audio alone: none of their labels is read.

OUT.npz gets one for each speaker of the split who is not in the checkpoint's table, OUT.json how they were made.

--method adapted   fitted to the masked-prediction loss of the speaker's audio, all else frozen. CKPT is a pretrained model
                   (PAPT); the split needs frame labels from the k-means that the model was trained on, applied to it, not
                   fitted to it. The prior is a normal distribution around the nearest average (without a training split: around
                   the mean of the table) with the spread of the training speakers' embeddings, so that a few seconds of
                   audio change little, and more audio more. With --holdout F, a share F of each speaker's utterances is
                   kept out of everything, and OUT.json says how well it is predicted with <unk>, with the nearest average
                   and with the adapted embedding (bits per masked frame, mean over masks).
--method nearest   the average of the embeddings of the most similar training speakers. CKPT is any speaker-conditioned model
                   of ours, pretrained or fine-tuned.

Use them with tools/evaluate.py or tools/predict.py --speaker-vectors OUT.npz. Fine-tuning starts from the pretrained table
and moves it; embeddings adapted in the pretrained model are used in the fine-tuned one as they are.

  tools/make_labels.py manifests/x exp/labels --checkpoint exp/hubert/checkpoint_last.pt --layers 3 --clusters 50 \\
      --splits train valid test
  tools/adapt_speaker.py exp/papt/checkpoint_last.pt manifests/x test exp/adapted.npz --method adapted \\
      --label-dir exp/labels/L3/km50 --train-split manifests/x/train --holdout 0.25
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.errors import InputError
from emohubert.core.files import Stamp, make_folder, read_json, sha256, write_json
from emohubert.speakers import METHODS

logger = logging.getLogger("emohubert.adapt_speaker")


def number(text):
    """A whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="speaker-conditioned checkpoint")
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory")
    parser.add_argument("split", metavar="SPLIT", help="split of the new speakers, such as test")
    parser.add_argument("out", metavar="OUT.npz", type=Path, help="the embeddings")
    parser.add_argument("--method", choices=METHODS, required=True, help="how they are made")
    parser.add_argument(
        "--train-split", metavar="DIR/SPLIT", help="split of the training speakers, for nearest averages (default: MANIFEST_DIR/train)"
    )
    parser.add_argument("--label-dir", metavar="DIR", help="adapted: folder of the split's frame labels")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="adapted: as task.labels (default: as the checkpoint was trained)")
    parser.add_argument("--top-k", type=number, metavar="K", help="speakers to average (default: the best on training speakers)")
    parser.add_argument("--holdout", type=float, default=0.0, metavar="F", help="adapted: share of a speaker's utterances that is kept out")
    parser.add_argument("--iterations", type=number, default=20, metavar="N", help="adapted: most iterations of L-BFGS")
    parser.add_argument("--batch-seconds", type=float, default=100.0, metavar="S", help="nearest: most audio in a batch")
    parser.add_argument("--workers", type=int, default=0, help="threads; 0: one for each core")
    parser.add_seed()
    parser.add_device()
    parser.add_overwrite()
    args = parser.parse_args(argv)
    if args.out.suffix != ".npz":
        raise InputError(f"{args.out}: the embeddings go into an .npz file; give a name that ends in .npz")
    if not Path(args.checkpoint).is_file():
        raise InputError(f"{args.checkpoint}: no such checkpoint file; correct the path")
    if not 0 <= args.holdout < 1:
        raise InputError(f"--holdout {args.holdout}: a share of the utterances; give 0 or more, and less than 1")
    if args.method == "adapted" and args.label_dir is None:
        raise InputError(
            "an embedding is adapted to frame labels of the split; give their folder with --label-dir (tools/make_labels.py --splits)"
        )
    report = embed(args)
    for name, row in report["speakers"].items():
        bits = "  ".join(f"{method} {value:.4f}" for method, value in row.get("held_out", {}).get("bits", {}).items())
        print(
            f"{name}  {row['utterances']} utterances, {row['seconds']:.1f} s"
            + (f"; held out, bits per masked frame: {bits}" if bits else "")
        )
    print(f"written to {args.out} and {args.out.with_suffix('.json')}")


def embed(args):
    """Write the embeddings, unless they are there and made with the same settings; returns the report."""
    from emohubert.core.device import choose_device
    from emohubert.corpus.manifest import read_split
    from emohubert.provenance import records

    device, split, train = choose_device(args.device), read_split(args.manifest_dir, args.split), training_split(args)
    if args.method == "nearest" and train is None:
        raise InputError("the nearest training speakers are found in the training split; give it with --train-split DIR/SPLIT")
    make_folder(args.out.parent)
    report_path = args.out.with_suffix(".json")
    stamp = Stamp(args.out.with_name(f".{args.out.name}.json"), settings_of(args, train), [args.out, report_path, records.beside(args.out)])
    if stamp.is_current() and not args.overwrite:
        logger.info("%s: already there, made with the same settings (--overwrite makes it again)", args.out)
        return read_json(report_path)
    from emohubert.speakers import adaptation

    stamp.clear()
    how = {"holdout": args.holdout, "k": args.top_k, "seed": args.seed, "device": device}
    fitting = {"label_dir": args.label_dir, "labels": args.labels, "iterations": args.iterations}
    batches = {"batch_seconds": args.batch_seconds, "workers": args.workers}
    new, report = adaptation.make(args.checkpoint, split, args.method, train, **how, **batches, **fitting)
    new.write(args.out)
    records.write_adaptation(args.out, args.checkpoint, split, args.label_dir)
    write_json(report_path, report)
    stamp.write()
    return report


def training_split(args):
    """The Split of --train-split; without one, MANIFEST_DIR/train where it is there, or None."""
    from emohubert.corpus.manifest import read_split

    if args.train_split is not None:
        path = Path(args.train_split)
        return read_split(path.parent, path.name.removesuffix(".tsv"))
    return read_split(args.manifest_dir, "train") if (Path(args.manifest_dir) / "train.tsv").is_file() else None


def settings_of(args, train):
    """What the embeddings depend on; labels of emotion are no part of it."""
    names = ("method", "top_k", "holdout", "iterations", "seed", "labels")
    settings = {name: getattr(args, name) for name in names} | {"checkpoint": sha256(args.checkpoint)}
    splits = [(Path(args.manifest_dir), args.split), *([(train.directory, train.name)] if train else [])]
    settings["splits"] = [sha256(p) for folder, name in splits for s in ("tsv", "spk") if (p := folder / f"{name}.{s}").is_file()]
    if args.label_dir:
        settings["frame labels"] = [sha256(p) for p in sorted(Path(args.label_dir).rglob(f"{args.split}.*")) if p.is_file()]
    return settings


if __name__ == "__main__":
    main()
