"""Which clients share a bank is fixed by the tasks alone."""

from __future__ import annotations

import dataclasses

import torch

from clients.engine.plan import plan
from clients.task import Task
from fedinit.factors import Factors


def task(client: int, **changes) -> Task:
    rank = changes.pop("rank", 2)
    adapter = {"layer": Factors(torch.ones(rank, 3), torch.ones(4, rank))}
    return Task(client, 1, torch.arange(5), adapter, {"bias": torch.ones(2)}, frozenset("AB"), **changes)


def members(jobs) -> list[tuple[str, str, str, list[int]]]:
    return [(job.work, job.base, job.view, [t.client for t in job.tasks]) for job in jobs]


def test_clients_of_one_kind_are_split_evenly_in_their_order():
    assert members(plan([task(c) for c in range(7)], 3)) == [
        ("train", "", "", [0, 1]),
        ("train", "", "", [2, 3, 4]),
        ("train", "", "", [5, 6]),
    ]
    assert plan([], 3) == []


def test_work_base_and_view_do_not_mix():
    mixed = [task(0), task(1, base="x"), task(2, view="half"), task(3), task(4, work="evaluate"), task(5, base="x")]
    assert members(plan(mixed, 3)) == [
        ("evaluate", "", "", [4]),
        ("train", "", "", [0, 3]),
        ("train", "", "half", [2]),
        ("train", "x", "", [1, 5]),
    ]


def test_only_training_is_done_together():
    for work in ("measure", "evaluate", "features"):
        assert [len(job.tasks) for job in plan([task(c, work=work) for c in range(3)], 8)] == [1, 1, 1]


def test_a_mute_task_keeps_its_place_at_its_own_rank():
    """The banks are those of a round in which nobody failed; the stand-in is blank, in the shapes of who works."""
    tasks = [task(0), dataclasses.replace(task(1, rank=3), mute=True, head={}), task(2), task(3)]
    (first, second) = plan(tasks, 2)
    assert members([first, second]) == members(plan([task(c) for c in range(4)], 2))
    stand_in = first.tasks[1]
    assert stand_in.mute and stand_in.adapter["layer"].rank == 3 and stand_in.head.keys() == {"bias"}
    assert not any(t.any() for t in (stand_in.adapter["layer"].A, stand_in.adapter["layer"].B, stand_in.head["bias"]))
    assert first.tasks[0] is tasks[0]  # who works is given to do what it was


def test_where_nobody_works_there_is_no_job():
    assert plan([task(0, mute=True)], 3) == []
    assert members(plan([task(0, mute=True), task(1, base="x")], 3)) == [("train", "x", "", [1])]
