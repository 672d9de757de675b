"""fedinit with the frozen backbone in bf16, which pays on processors with matrix units for it (AMX)."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.peers import fedinit_itself
from benchmarks.peers.work import Work


def run(work: Work, told: Callable[[float], None]) -> None:
    fedinit_itself.run(work, told, "engine.precision=bf16")
