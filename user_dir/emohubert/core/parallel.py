"""Threads of one core each: work is shared out in whole blocks, so that every sum has one order whatever the machine."""

import contextlib
import functools
import os
from concurrent.futures import ThreadPoolExecutor


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@functools.cache
def pool(workers):
    """The process's pool of so many threads; kept, because every new thread takes memory in BLAS that never comes back."""
    return ThreadPoolExecutor(workers, thread_name_prefix="labels")


@contextlib.contextmanager
def one_thread():
    """One thread per torch operation while the pool works."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
