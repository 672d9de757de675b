"""Worker threads with one intra-op thread each.

torch releases the GIL inside its kernels, so independent pieces of work run side by side on the cores; small matrix
products lose more to splitting than they gain. A piece of work gives the same bits whatever the number of workers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from fedinit import control_group
from fedinit.allocator import keep_freed
from fedinit.errors import InputError


def cores() -> int:
    """Cores this process may use; no more than a container has (rounded up) and FEDINIT_CORES says, which a process of
    a sweep is started with. Raises InputError where that is no number of cores."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    there = min(there, _quota() or there)
    share = os.environ.get("FEDINIT_CORES", "")
    if not share:
        return there
    if not (share.isdecimal() and int(share)):
        raise InputError(f"FEDINIT_CORES={share}: expected a whole number of cores, 1 or more; or unset it")
    return min(there, int(share))


_quota = functools.cache(control_group.cores)  # read once: what a run is told first holds for all of it


def keep_to_quota() -> None:
    """Have torch take no more intra-op threads than a container has cores: it counts the machine's, and threads beyond
    a quota wait for each other. Who sets OMP_NUM_THREADS decides for himself."""
    quota = _quota()
    if quota is not None and "OMP_NUM_THREADS" not in os.environ and quota < torch.get_num_threads():
        torch.set_num_threads(quota)


keep_to_quota()


def make_pool(workers: int, name: str) -> ThreadPoolExecutor:
    """A pool of so many threads, each with one intra-op thread of torch; `name` begins the threads' names."""
    torch.get_num_threads()  # so that this thread's number is its own too, before others set theirs
    return ThreadPoolExecutor(workers, thread_name_prefix=name, initializer=set_intra_op, initargs=(1,))


def set_intra_op(threads: int) -> None:
    """So many intra-op threads of torch in this thread, whatever other threads set. At a thread's first use torch gives
    it the number that was set last in the process, by any thread, over what it set for itself: so it is used before."""
    torch.get_num_threads()
    torch.set_num_threads(threads)


@contextmanager
def intra_op(threads: int) -> Iterator[None]:
    """So many intra-op threads of torch in this thread, within the block. A matrix product that is split among threads
    may round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.lru_cache(maxsize=1)
def server_pool() -> ThreadPoolExecutor:
    """The process's pool for the server's arithmetic: a worker a core. What a layer frees stays for the next one."""
    keep_freed()
    return make_pool(cores(), "server")
