#!/usr/bin/env python3
"""Is personalising worth it here? Scores of speakers heard and never heard, over the number of training speakers; and who is hard.

Support vector machines on eGeMAPS functionals, or on a layer of a frozen encoder (--checkpoint small --layer 1), of all utterances of a
split; half of a speaker's utterances is the test in all settings, and the labels of the other half are used in the setting `heard` alone.
Writes personalisation.json, personalisation.md, speakers.png and shifts.png into OUT_DIR, which reports show. After figure 1 of Tran, Yin & Soleymani 2023.

  tools/personalisation.py exp/ravdess exp/worth --checkpoint small --layer 1
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.core.errors import InputError
from emohubert.core.files import make_folder, write_json, write_lines


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="output folder")
    parser.add_argument("--split", default="all", metavar="SPLIT", help="its utterances (default: all)")
    parser.add_argument("--target", default="emo", metavar="NAME", help="emo, or the name of a column of .dim")
    parser.add_argument("--checkpoint", metavar="CKPT", help="frozen encoder, in place of eGeMAPS")
    parser.add_argument("--layer", type=int, default=1, metavar="L", help="its Transformer layer, from 1")
    parser.add_argument("--counts", type=int, nargs="+", metavar="N", help="numbers of training speakers (default: five up to all)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    parser.add_seed()
    args = parser.parse_args(argv)
    from emohubert.core.parallel import cores
    from emohubert.evaluation import baseline, personalisation

    split, workers = baseline.labelled(args.manifest_dir, args.split, args.target), args.workers or cores()
    if len(set(split.speakers)) < 4:
        raise InputError(f"{split.tsv}: {len(set(split.speakers))} speakers; a comparison over speakers needs at least 4")
    if args.counts and not 1 <= min(args.counts) <= max(args.counts) < len(set(split.speakers)):
        raise InputError(f"--counts: give numbers from 1 to {len(set(split.speakers)) - 1}, one fewer than the split has speakers")
    out = make_folder(args.out_dir)
    kind = "encoder" if args.checkpoint else "egemaps"
    vectors = baseline.vectors(kind, [split], out, args.checkpoint, [args.layer], workers)
    (of_path,) = vectors.values()
    x, targets, speakers = baseline.usable(split, of_path, args.target)
    found = personalisation.study(x, targets, speakers, args.counts and sorted(set(args.counts)), args.seed, workers)
    summary, title = personalisation.lines(found), f"What knowing a speaker would bring, {next(iter(vectors))}"
    write_json(out / "personalisation.json", {"title": title, "split": str(split.tsv), "summary": summary, **found})
    write_lines(out / "personalisation.md", summary)
    personalisation.draw(out, found)
    print("\n".join(summary))


if __name__ == "__main__":
    main()
