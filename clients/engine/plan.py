"""Which clients share a bank: decided here, before anything is dispatched, since a bank's members round together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

from clients.task import Job, Task

Item = TypeVar("Item")


def plan(tasks: Sequence[Task], clients_per_bank: int) -> list[Job]:
    """The jobs that do the tasks: those of one work, base and view in their order, in banks as equal as can be.

    clients_per_bank: the most that train in one bank; anything else is done a client at a time.

    A mute task takes its place among those that work as a stand-in of the first of them, so that its mates' rounding is
    what it would have been. Where none works, there is no job.
    """

    def shared(task: Task) -> tuple[str, str, str]:
        return task.work, task.base, task.view

    jobs = []
    for _, group in itertools.groupby(sorted(tasks, key=shared), key=shared):
        members = list(group)
        first = next((t for t in members if not t.mute), None)
        if first is None:
            continue
        members = [t.stand_in(first) if t.mute else t for t in members]
        banks = split_evenly(members, clients_per_bank if first.work == "train" else 1)
        jobs += [Job(first.work, first.base, first.view, tuple(bank)) for bank in banks]
    return jobs


def split_evenly(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Consecutive groups of at most `size` items, as equal as can be: six in fours is 3 + 3, not 4 + 2."""
    count = -(-len(items) // size)
    bounds = [round(i * len(items) / count) for i in range(count + 1)] if count else [0]
    return [list(items[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
