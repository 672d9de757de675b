"""What memory a process may have, by its own limits."""

from __future__ import annotations

import pytest

from fedinit import control_group, memory

resource = pytest.importorskip("resource")
PAGE = 4096


@pytest.fixture(autouse=True)
def of_a_small_process(monkeypatch, tmp_path) -> None:
    """With 100 pages of address space, 40 of them in memory, 10 of these of files."""
    (tmp_path / "statm").write_text("100 40 10 1 0 30 0\n")
    monkeypatch.setattr(memory, "STATM", tmp_path / "statm")
    monkeypatch.setattr(memory.os, "sysconf", lambda name: PAGE)
    monkeypatch.setattr(control_group, "memory_left", lambda: None)
    monkeypatch.delenv(memory.SHARE, raising=False)


def limited(monkeypatch, pages: int) -> None:
    limit = resource.RLIM_INFINITY if pages < 0 else pages * PAGE
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, resource.RLIM_INFINITY))


@pytest.mark.skipif(memory.free_memory() is None, reason="the system does not say what is free")
@pytest.mark.parametrize(("limit", "left"), [(150, 50), (100, 0), (90, 0)])
def test_address_space_is_what_a_limit_leaves_of_it(limit, left, monkeypatch) -> None:
    limited(monkeypatch, -1)
    assert memory.free_memory() > 10**6
    limited(monkeypatch, limit)
    assert memory.free_memory() == left * PAGE


@pytest.mark.skipif(memory.free_memory() is None, reason="the system does not say what is free")
def test_a_share_is_less_what_the_process_has_taken(monkeypatch) -> None:
    """Of itself alone: what is of files others have too."""
    limited(monkeypatch, -1)
    for share, left in ((100, 70), (20, 0)):
        monkeypatch.setenv(memory.SHARE, str(share * PAGE))
        assert memory.free_memory() == left * PAGE
