"""Threads of one core each: work is shared out in whole blocks, so that sums have the same order on every machine."""

import contextlib
import functools
import os
from collections import deque
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from .cli import progress


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@functools.cache
def pool(workers):
    """The process's pool of so many threads; kept, because every new thread takes memory in BLAS that never comes back."""
    return ThreadPoolExecutor(workers, thread_name_prefix="emohubert")


def as_finished(function, jobs, workers=None, budget=None):
    """Yield `function(job)` of each (job, size) as threads (default: one a core) end it. `budget`: most size at once; more runs alone."""
    workers = workers or cores()
    waiting, running = deque(jobs), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job, size = waiting[0]
                if running and budget is not None and sum(running.values()) + size > budget:
                    break
                running[pool(workers).submit(function, job)] = size
                waiting.popleft()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                yield future.result()
    finally:
        wait(running)


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


def in_threads(function, items, description, unit, workers):
    """Results of a function of each item, in order, computed by several threads, with `progress`."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        yield from progress(pool.map(function, items), description, total=len(items), unit=unit)
