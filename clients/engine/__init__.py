"""Engines: when and where clients' jobs are done. None of them decides what comes out: that is the same, bit for bit.

inline   one job after another in the calling thread: the reference
threads  a thread a core on CPU, one a device on CUDA
ray      an actor of Ray a core, or a GPU, on this machine or on those of a cluster
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from clients.task import Answer, Job
from fedinit.adapters.bank import Bank
from fedinit.state.base_offset import EMPTY, Offset

Emit = Callable[[str, Mapping[str, Any]], None]  # a kind of event and its facts, for the ledger


class Engine(Protocol):
    """What does jobs. It is used by one thread at a time."""

    def hold(self, base: str, offset: Offset) -> None:
        """Give every worker the base offset that this key names; once a key.

        It is held until a run of jobs of which none is on it. The empty base needs no holding.
        """
        ...

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Answer, ...]]:
        """The answers to each job's tasks, in the order of the jobs.

        A client that fails is a ClientFailed in its place. Raises LookupError for a base that is not held.
        """
        ...

    def borrow(self, base: str = EMPTY) -> AbstractContextManager[Bank]:
        """A worker's bank, over this base, for what is no job; nobody else uses it meanwhile.

        An engine whose workers are elsewhere keeps one here for this.
        """
        ...

    @property
    def lanes(self) -> int:
        """Jobs that it does at a time."""
        ...

    def described(self) -> str:
        """On what and how it computes, in a few words: "2 lanes on CPU, fp32"."""
        ...

    def close(self) -> None:
        """End what it started. It is not used any more."""
        ...
