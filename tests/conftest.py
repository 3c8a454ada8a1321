"""Makes `emohubert` importable from the source tree, finds the real data where it is there, and makes every run of a test the same."""

import logging
import os
import random
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "user_dir"))

# The same examples and random numbers on every run: a failure is always that of the change at hand. HYPOTHESIS_PROFILE=search tries others.
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "fixed")
settings.register_profile("fixed", derandomize=True)
settings.register_profile("search", print_blob=True)
settings.load_profile(PROFILE)

DATA = Path(os.environ.get("EMOHUBERT_DATA", ROOT.parent / "shared" / "data"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Files with most slow tests come first, so that several processes end at the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def seed(name):
    """Random numbers that depend on a name alone, not on the tests that this process has run before."""
    import torch  # not by the process that only hands out tests

    number = zlib.crc32(name.encode()) if PROFILE == "fixed" else random.SystemRandom().getrandbits(32)
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    seed(pyfuncitem.name)


@pytest.fixture(autouse=True)
def log_handlers():
    """A program called in a test may log to a stream that is closed after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="session")
def emodb():
    if not (DATA / "emodb4").is_dir():
        pytest.skip("the emodb4 recordings are not here (set EMOHUBERT_DATA)")
    return DATA / "emodb4"


@pytest.fixture(scope="session")
def ravdess():
    if not (DATA / "ravdess").is_dir():
        pytest.skip("the RAVDESS recordings are not here (set EMOHUBERT_DATA)")
    return DATA / "ravdess"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    from finetuning import AT_INPUT, make_pretrained_corpus

    return make_pretrained_corpus(tmp_path_factory.mktemp("corpus"), *AT_INPUT, seconds=(0.3, 1.0), valid=16, test=16)
