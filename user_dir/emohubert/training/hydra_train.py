"""`fairseq-hydra-train` as `launch` starts it: the same program, without fairseq's tasks that import scikit-learn."""

import runpy
import sys
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
if sys.path[0] == str(_FOLDER):  # where Python puts it for a program; its modules are the package's
    del sys.path[0]
# By path: the package itself is imported where fairseq loads the user-dir, as under fairseq-hydra-train.
runpy.run_path(str(_FOLDER.parent / "core" / "quiet_fairseq.py"))

if __name__ == "__main__":
    from fairseq_cli.hydra_train import cli_main

    sys.path.append(str(_FOLDER.parents[1]))  # where Hydra finds hydra_plugins
    cli_main()
