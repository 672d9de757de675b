"""How much memory can be had: of the machine, in a container, under a process's limit, and as its share of a sweep."""

from __future__ import annotations

import os
from pathlib import Path

from fedinit import control_group

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None

SHARE = "FEDINIT_MEMORY"  # the variable with the bytes that this process may take, of those that a sweep divides
STATM = Path("/proc/self/statm")


def free_memory() -> int | None:
    """Bytes of memory that can be had, of the machine, in a container and by this process; None where the system does
    not say."""
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        free = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    left = (control_group.memory_left(), _address_space_left(), _share_left())
    return min([free, *(value for value in left if value is not None)])


def _address_space_left() -> int | None:
    """What `ulimit -v` leaves; None without it."""
    limit = -1 if resource is None else resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit < 0 or (pages := _pages()) is None else max(limit - pages[0], 0)


def _share_left() -> int | None:
    """What this process's share leaves, beside what it has taken for itself alone; None where it has none."""
    share = os.environ.get(SHARE, "")
    if not share.isdecimal() or (pages := _pages()) is None:
        return None
    return max(int(share) - (pages[1] - pages[2]), 0)


def _pages() -> tuple[int, int, int] | None:
    """Bytes of this process: of its address space, of those in memory, and of these that are of files or shared; None
    where the system does not say."""
    try:
        total, resident, shared = (int(word) for word in STATM.read_text(encoding="utf-8").split()[:3])
    except (OSError, ValueError):
        return None
    size = os.sysconf("SC_PAGE_SIZE")
    return total * size, resident * size, shared * size
