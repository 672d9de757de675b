"""What a container leaves, against files as kernels write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedinit import control_group, threads
from fedinit.data import store

GIB = 2**30
UNLIMITED = 9223372036854771712  # of version 1


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def second(at: str, most: str, taken: int, dropped: int = 0) -> dict[str, str]:
    """Files of a group of version 2; dropped: bytes of files, half of them lately used."""
    stat = f"anon 5\ninactive_file {dropped // 2}\nactive_file {dropped // 2}\nshmem 7\n"
    return {f"{at}/memory.max": f"{most}\n", f"{at}/memory.current": f"{taken}\n", f"{at}/memory.stat": stat}


def first(at: str, most: int, taken: int, dropped: int = 0) -> dict[str, str]:
    stat = f"cache 3\ntotal_inactive_file {dropped // 2}\ntotal_active_file {dropped // 2}\n"
    return {
        f"{at}/memory.limit_in_bytes": f"{most}\n",
        f"{at}/memory.usage_in_bytes": f"{taken}\n",
        f"{at}/memory.stat": stat,
    }


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
OF_V1 = "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n"
LIMITS = {
    "none": ({}, None),
    "v2, a container's own": (
        {"proc/self/cgroup": "0::/\n"} | second(V2, str(4 * GIB), 3 * GIB, 2 * GIB),
        3 * GIB,
    ),
    "v2, without a limit": ({"proc/self/cgroup": "0::/\n"} | second(V2, "max", GIB), None),
    "v2, the tightest is above": (
        {"proc/self/cgroup": "0::/a/b\n"}
        | second(f"{V2}/a/b", str(8 * GIB), GIB)
        | second(f"{V2}/a", str(2 * GIB), GIB),
        GIB,
    ),
    "v2, more taken than may be": ({"proc/self/cgroup": "0::/\n"} | second(V2, "1000", 5000), 0),
    "v2, a path outside": ({"proc/self/cgroup": "0::/../../x\n"} | second(V2, str(GIB), 0), GIB),
    "v1": ({"proc/self/cgroup": OF_V1} | first(f"{V1}/docker/abc", 4 * GIB, 3 * GIB, GIB), 2 * GIB),
    "v1, its own is the topmost": ({"proc/self/cgroup": OF_V1} | first(V1, GIB, 0), GIB),
    "v1, without a limit": ({"proc/self/cgroup": OF_V1} | first(V1, UNLIMITED, GIB), UNLIMITED - GIB),
    "v2, throttled before its limit": (
        {"proc/self/cgroup": "0::/\n", f"{V2}/memory.high": f"{GIB}\n"} | second(V2, "max", 0),
        GIB,
    ),
    "v1, several in one": (
        {"proc/self/cgroup": "3:memory,hugetlb:/\n"} | first("sys/fs/cgroup/memory,hugetlb", GIB, 0),
        GIB,
    ),
    "numbers that are none": (
        {"proc/self/cgroup": "0::/\n"} | second(V2, str(GIB), 0) | {f"{V2}/memory.stat": "inactive_file abc\n"},
        GIB,
    ),
    "unreadable": ({"proc/self/cgroup": "0::/\nx\n", f"{V2}/memory.max": "", f"{V2}/memory.current": "?"}, None),
}


@pytest.mark.parametrize("name", LIMITS)
def test_memory_that_a_group_leaves(name, tmp_path) -> None:
    files, expected = LIMITS[name]
    assert control_group.memory_left(write(tmp_path, files)) == expected


def test_pages_of_files_are_no_memory_that_is_taken(tmp_path) -> None:
    """A group that has read a data set is full of them, and nothing in it need wait."""
    full = {"proc/self/cgroup": "0::/\n"} | second(V2, str(GIB), GIB, GIB)
    assert control_group.memory_left(write(tmp_path, full)) == GIB
    taken = {"proc/self/cgroup": "0::/\n"} | second(V2, str(GIB), GIB, 0)
    assert control_group.memory_left(write(tmp_path, taken)) == 0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": f"1{'0' * 400} 1\n"}, 10**400),
        (
            {
                "proc/self/cgroup": OF_V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": OF_V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_cores_of_a_group(files, expected, tmp_path) -> None:
    assert control_group.cores(write(tmp_path, files)) == expected


def test_a_quota_bounds_cores_and_torchs_own_threads(monkeypatch) -> None:
    monkeypatch.delenv("FEDINIT_CORES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(threads, "_quota", lambda: None)
    assert threads.cores() == 64
    monkeypatch.setattr(threads, "_quota", lambda: 3)
    assert threads.cores() == 3
    monkeypatch.setenv("FEDINIT_CORES", "2")
    assert threads.cores() == 2
    with threads.intra_op(5):
        threads.keep_to_quota()
        assert torch.get_num_threads() == 3
    with threads.intra_op(5):
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        threads.keep_to_quota()
        assert torch.get_num_threads() == 5


def test_free_memory_is_what_the_group_leaves(monkeypatch) -> None:
    monkeypatch.setattr(control_group, "memory_left", lambda: None)
    assert (free := store.free_memory()) is None or free > 1000
    monkeypatch.setattr(control_group, "memory_left", lambda: 1000)
    assert store.free_memory() == (None if free is None else 1000)
