#!/usr/bin/env python3
"""Write RUN_DIR/report.html: one self-contained page about a run.

Everything below RUN_DIR is found by its name: metrics.json and metrics_before.json with their figures (tools/evaluate.py,
tools/calibrate.py), results.json and robustness.json, trainings (hydra_train.log, .hydra/config.yaml),
corpus.json, check_manifest*.json (tools/check_manifest.py --json) and audit.json. The page opens with the systems compared, then
come tables, automatic warnings and details. What is missing is said on it, and what cannot be read is named.

With --explore also RUN_DIR/explore/index.html, to listen to the errors: the utterances of every evaluation that has a
predictions.tsv, filtered by the confusion matrix, speakers, confidence, duration and metadata, or by a scatter of dimensions.
The folder can be copied elsewhere; the recordings in it are as confidential as the corpus.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import Parser, command, positive_float


@command
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a run, searched with all folders below")
    parser.add_argument("--explore", action="store_true", help="also write explore/, to listen to the errors")
    sound = parser.add_mutually_exclusive_group()
    sound.add_argument("--audio-mb", type=positive_float, metavar="MB", help="most MiB of recordings in explore/ (default: 200)")
    sound.add_argument("--no-audio", action="store_true", help="no recordings in explore/")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    if not args.explore and (args.no_audio or args.audio_mb):
        parser.error(f"{'--no-audio' if args.no_audio else '--audio-mb'} is of the explorer; add --explore")
    from emohubert.report import page

    path, run, written = page.write(args.run_dir, args.overwrite, args.explore)
    counts = f"{len(run.evaluations)} evaluations, {len(run.trainings)} trainings"
    print(f"{path} ({counts})" if written else f"{path} is there already, made from the same files ({counts})")
    if args.explore:
        from emohubert.report import explorer

        path, notes = explorer.write(run, 0 if args.no_audio else args.audio_mb or 200, args.overwrite)
        print(f"{path} is there already, made from the same files" if notes is None else path, *(notes or []), sep="\n")


if __name__ == "__main__":
    main()
