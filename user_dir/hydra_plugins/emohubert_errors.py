"""What ends `fairseq-hydra-train` before a user-dir is loaded, as one line `error: …` with exit status 2: arguments, names and types of settings.

Hydra finds this module by its place. It loads nothing of emohubert: which copy of it trains is for `common.user_dir` to say.
"""

import os
import sys

from hydra._internal import utils
from hydra.core.config_search_path import ConfigSearchPath
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf.errors import OmegaConfBaseException

_report = utils.run_and_report
_NO_SIZE = "Must specify batch size"
"""What fairseq says of a configuration with an unknown name: it takes that for an empty one, and its own defaults have no batch size."""


def in_one_line(function):
    """Hydra's `run_and_report`, which has several lines for bad input, and status 1."""

    def guarded():
        try:
            return function()
        except (HydraException, OmegaConfBaseException, AssertionError) as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1" or isinstance(error, AssertionError) and _NO_SIZE not in str(error):
                raise
            print("error: " + " ".join(_text(error).split()), file=sys.stderr, flush=True)
            raise SystemExit(2) from None

    return _report(guarded)


def _text(error):
    if isinstance(error, AssertionError):
        name = utils.get_args().config_name
        return f"--config-name {name}: no such configuration in --config-dir, or one without dataset.max_tokens and dataset.batch_size"
    text = str(error).split("Config search path:")[0]
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {text.splitlines()[0]}; put quotes around a value with such characters"
    if isinstance(error, InstantiationException) and "import_user_module" in text:
        return f"common.user_dir: {text}; give common.user_dir=/path/to/user_dir (HYDRA_FULL_ERROR=1 shows more)"
    cause = str(error.__cause__).splitlines()[0] if isinstance(error.__cause__, OmegaConfBaseException) else ""
    return f"{text.rstrip()} {cause}"


class OneLine(SearchPathPlugin):
    """Put in place where Hydra asks for search paths, if it runs a training of fairseq."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Leave the search path as it is."""
        if "fairseq_cli.hydra_train" in sys.modules:
            utils.run_and_report = in_one_line
