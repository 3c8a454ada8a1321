#!/usr/bin/env python3
"""Evaluate a fine-tuned checkpoint on recordings that are made worse: noise, reverberation, low-pass.

Writes to OUT_DIR:
    robustness.md, .json   a line per condition, the clean recordings first: UA, WA and macro F1, or the CCC of each
                           dimension, and their change, all with bootstrap intervals over speakers
    robustness.png         the changes
    conditions/*.tsv       the predictions under each condition; an interrupted run resumes after the last of them

The same utterance gets the same noise and the same room whatever the model, so that models can be compared. An option without
a value, such as --t60, leaves that kind of condition out.

  tools/robustness.py runs/ser_classification_base/checkpoint_best.pt manifests/emodb/fold1 test results/fold1/robustness
  tools/robustness.py CKPT MANIFEST_DIR test OUT_DIR --snr 20 10 0 --t60 --cutoff
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli
from emohubert.data.degradations import NOISES
from emohubert.evaluation import robustness


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_evaluated()
    for name, unit, text in (
        ("snr", "DB", "signal-to-noise ratios in dB"),
        ("t60", "S", "reverberation times in seconds"),
        ("cutoff", "HZ", "cut-off frequencies in Hz, where the low-pass has -6 dB"),
    ):
        parser.add_argument(f"--{name}", type=float, nargs="*", metavar=unit, default=list(robustness.DEFAULTS[name]), help=text)
    parser.add_argument("--noise", nargs="+", choices=NOISES, default=["white", "babble"], help="kinds of generated noise")
    args = parser.parse_args(argv)

    from emohubert.core.device import choose_device
    from emohubert.corpus.manifest import read_split
    from emohubert.evaluation import scoring
    from emohubert.tasks.trained import load_trained

    device = choose_device(args.device)
    values = {name: getattr(args, name) for name in robustness.DEFAULTS}
    chosen = robustness.conditions(values, args.noise)
    split = read_split(args.manifest_dir, args.split)
    task, model = load_trained(args.checkpoint)
    settings = scoring.inputs(args.checkpoint, split)
    options = {"batch_seconds": args.batch_seconds, "device": device, "workers": args.workers, "precision": args.precision}
    report = robustness.evaluate(args.out_dir, task, model, split, chosen, settings, args.seed, args.repeats, args.overwrite, **options)
    print("\n".join(robustness.markdown(report)))
    print(f"written to {args.out_dir}")


if __name__ == "__main__":
    main()
