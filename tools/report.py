#!/usr/bin/env python3
"""Write RUN_DIR/report.html: one self-contained page about a run.

Everything below RUN_DIR is found by its name: metrics.json and metrics_before.json with their figures (tools/evaluate.py,
tools/calibrate.py), results.json, comparison.json and robustness.json, trainings (hydra_train.log, .hydra/config.yaml),
corpus.json, check_manifest*.json (tools/check_manifest.py --json) and audit.json. The page opens with the systems compared, then
come tables, automatic warnings and details. What is missing is said on it, and what cannot be read is named.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core.cli import Parser, command


@command
def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a run, searched with all folders below")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    from emohubert.report import page

    path, run, written = page.write(args.run_dir, args.overwrite)
    counts = f"{len(run.evaluations)} evaluations, {len(run.trainings)} trainings"
    print(f"{path} ({counts})" if written else f"{path} is there already, made from the same files ({counts})")


if __name__ == "__main__":
    main()
