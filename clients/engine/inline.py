"""The inline engine: one job after another in the calling thread. The reference that the other engines are held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clients.engine.worker import Worker, described
from clients.task import Answer, Job
from fedinit.adapters.bank import Bank
from fedinit.state.base_offset import EMPTY, Offset


class InlineEngine:
    """One worker, used by the thread that calls."""

    def __init__(self, worker: Worker) -> None:
        self.workers = [worker]

    def hold(self, base: str, offset: Offset) -> None:
        self.workers[0].replica.hold(base, offset)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Answer, ...]]:
        self.workers[0].replica.prepare(job.base for job in jobs)
        for job in jobs:
            yield self.workers[0].do(job)

    @contextmanager
    def borrow(self, base: str = EMPTY) -> Iterator[Bank]:
        with self.workers[0].lent(base) as bank:
            yield bank

    @property
    def lanes(self) -> int:
        return len(self.workers)

    def described(self) -> str:
        return described(self.workers)

    def close(self) -> None:
        self.workers[0].close()
