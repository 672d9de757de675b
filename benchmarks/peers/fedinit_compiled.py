"""fedinit with its step compiled, which a run of many rounds chooses by itself (`engine.compile`)."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.peers import fedinit_itself
from benchmarks.peers.work import Work


def run(work: Work, told: Callable[[float], None]) -> None:
    fedinit_itself.run(work, told, "engine.compile=true")
