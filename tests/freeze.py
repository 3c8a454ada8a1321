"""Imported last by a process that others are forked from: no garbage collection in those touches, and so copies, all that it has imported."""

import gc

gc.freeze()
