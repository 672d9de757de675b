"""The thread engine: lanes in this process.

On CPU a lane is a Python thread with one intra-op thread (torch releases the GIL inside its kernels); on CUDA there
is one lane a device. Every lane has a worker of its own over the one frozen backbone of its device, so the number of
lanes decides only when a job is done, never what comes out.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clients.engine.worker import Worker, described
from clients.task import Answer, Job
from fedinit.adapters.bank import Bank
from fedinit.state.base_offset import EMPTY, Offset
from fedinit.threads import make_pool


class ThreadEngine:
    """One worker a lane; a job goes to the first that is free."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        """workers: one a lane."""
        self.workers = list(workers)
        self._replicas = {id(worker.replica): worker.replica for worker in workers}.values()
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in workers:
            self._free.put(worker)
        self._pool = make_pool(len(self.workers), "lane")

    def hold(self, base: str, offset: Offset) -> None:
        for replica in self._replicas:
            replica.hold(base, offset)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Answer, ...]]:
        for replica in self._replicas:
            replica.prepare(job.base for job in jobs)
        return self._pool.map(self._do, jobs)

    @contextmanager
    def borrow(self, base: str = EMPTY) -> Iterator[Bank]:
        with self._worker() as worker, worker.lent(base) as bank:
            yield bank

    @property
    def lanes(self) -> int:
        return len(self.workers)

    def described(self) -> str:
        return described(self.workers)

    def close(self) -> None:
        for worker in self.workers:  # a lane without a job ends with the process
            worker.close()

    def _do(self, job: Job) -> tuple[Answer, ...]:
        with self._worker() as worker:
            return worker.do(job)

    @contextmanager
    def _worker(self) -> Iterator[Worker]:
        """The first worker that is free, until the block ends."""
        worker = self._free.get()
        try:
            yield worker
        finally:
            self._free.put(worker)
