"""Memory that is freed stays with the process, for the next step of training.

glibc gives what is freed at the end of its heap back to the system, and takes larger pieces from the system each time:
a step of training frees and takes the same megabytes again and again, and every page of them is zeroed and mapped anew.
In banks of small clients on two cores that was up to a sixth of the time; of the server's sums of six clients a third.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8  # as mallopt knows them (malloc.h)
# What is free at the end of the heap stays, pieces of up to a gigabyte are of the heap, which grows by 64 MB at once,
# and there is one heap: a thread's own holds 64 MB at the most, and is given back whole.
SETTINGS = ((TRIM_THRESHOLD, 2**31 - 1), (MMAP_THRESHOLD, 2**30), (TOP_PAD, 2**26), (ARENA_MAX, 1))
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # by which a person decides


@functools.cache
def keep_freed() -> bool:
    """Have this process keep what it frees, up to its largest need so far, and threads begun from here on share one
    heap; whether it does. Other C libraries have no such settings, and what the environment says stays."""
    if any(name in os.environ for name in OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc; Windows has no library of that name
        return False
    return all(mallopt(name, value) == 1 for name, value in SETTINGS)


def give_back() -> None:
    """Give the system what this process has freed and kept, as after the last step of a run with another to come."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # as above
        ctypes.CDLL(None).malloc_trim(0)
