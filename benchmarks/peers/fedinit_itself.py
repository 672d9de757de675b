"""fedinit: its own engine, in this process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks.peers.work import Work
from clients.cohort import Cohort
from clients.engine.threads import ThreadEngine
from clients.site import Site
from clients.task import Job, Result
from fedinit.runs.observer import Observer, RoundReport
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate


class Clock(Observer):
    def __init__(self, told: Callable[[float], None]) -> None:
        self.told = told

    def round_done(self, report: RoundReport) -> None:
        self.told(time.time())


class Idle(ThreadEngine):
    """Every client returns what it was sent."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Result, ...]]:
        for job in jobs:
            yield tuple(Result(task.client, task.adapter, task.head, loss=0.0, steps=1) for task in job.tasks)


def run(work: Work, told: Callable[[float], None], *words: str) -> None:
    """words: further ones of the command line."""
    with contextlib.closing(Site(work.config(*words))) as site:
        if not work.steps:
            assert isinstance(site.engine, ThreadEngine)
            site.engine = Idle(site.engine.workers)
        grid = LocalGrid(Cohort(site), work.clients)
        federate(site.config, grid, site.backbone, observers=[Clock(told)])
