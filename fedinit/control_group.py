"""What a container may take of its machine: memory and cores, by Linux's control groups, of version 1 and 2.

Files and fields after kernel.org, admin-guide/cgroup-v2 and cgroup-v1/memory. Every group above a process limits it
too; where a container sees its own groups alone, the path that the system gives is not there, and the topmost is its
own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")  # of the file system


def memory_left(root: Path = ROOT) -> int | None:
    """Bytes that may still be taken: what the limit leaves, and what the group has of files alone (the kernel drops
    those pages where they are wanted). None without a limit, or without control groups.

    A limit that version 1 has not is 2⁶³ less a page: more than any machine has."""
    second, first = ("inactive_file", "active_file"), ("total_inactive_file", "total_active_file")
    left = [
        *_memory(_unified(root), "memory.max", "memory.current", second),
        *_memory(
            _unified(root), "memory.high", "memory.current", second
        ),  # above it nothing is ended, but hardly goes on
        *_memory(_legacy(root, "memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", first),
    ]
    return min(left, default=None)


def cores(root: Path = ROOT) -> int | None:
    """Cores' worth of time that the group may take, rounded up; None without a limit, or without control groups."""
    pairs = [_numbers(group / "cpu.max") for group in _unified(root)]
    for group in _legacy(root, "cpu"):
        pairs.append(_numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us"))
    quotas = [-(-pair[0] // pair[1]) for pair in pairs if len(pair) == 2 and min(pair) > 0]
    return min(quotas, default=None)


def _memory(groups: Iterator[Path], most: str, taken: str, files: tuple[str, str]) -> Iterator[int]:
    """What each of these groups leaves, by the names of its files, and of the fields that count pages of files."""
    for group in groups:
        limit, used = _numbers(group / most), _numbers(group / taken)
        if len(limit) == len(used) == 1:
            lines = [line.split(maxsplit=1) for line in _text(group / "memory.stat").splitlines()]
            dropped = sum(sum(_whole(line[1])) for line in lines if len(line) == 2 and line[0] in files)
            yield max(limit[0] - max(used[0] - dropped, 0), 0)


def _unified(root: Path) -> Iterator[Path]:
    """The groups of version 2 that this process is in."""
    for controllers, path in _memberships(root):
        if not controllers:
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                yield from _upwards(root / mount, path)


def _legacy(root: Path, controller: str) -> Iterator[Path]:
    """The groups of version 1 that this process is in for a controller."""
    for controllers, path in _memberships(root):
        if controller in controllers.split(","):
            for mount in dict.fromkeys((controller, controllers)):  # a link beside what is mounted for several, or none
                yield from _upwards(root / "sys/fs/cgroup" / mount, path)


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    """(controllers, path) of each line of a process's own; no controllers: version 2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            yield controllers, path


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The group at the path under a mount, and those above it."""
    parts = PurePosixPath(path.lstrip("/")).parts
    if ".." in parts:  # it lies outside of what is mounted here
        parts = ()
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _numbers(file: Path) -> list[int]:
    """The whole numbers of a file; none where one of its words is none, as the "max" of no limit."""
    return _whole(_text(file))


def _whole(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split()]
    except ValueError:
        return []


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
