"""Who does which job, and what happens where actors die, on actors that only a script makes die."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Hashable
from typing import Any

import pytest
import torch

from clients.engine.dispatch import DEATHS, STARTS, ActorDied, Death, Dispatch
from clients.task import ClientFailed, Job, Measured, Task
from fedinit.errors import InputError, RunFailed

JOBS = [Job("train", "", "", (Task(2 * i, 3, torch.arange(1), {}, {}, frozenset()),
                              Task(2 * i + 1, 3, torch.arange(1), {}, {}, frozenset()))) for i in range(6)]  # fmt: skip


class Scripted:
    """A pool whose calls end in an order that is drawn. dies: says whether an actor dies at (what, place, job)."""

    def __init__(self, seed: int = 0, dies: Callable[[str, int, Job | None], bool] = lambda *_: False) -> None:
        self.draw, self.dies, self.number = random.Random(seed), dies, itertools.count()
        self.calls: dict[Hashable, tuple[str, int, Job | None]] = {}
        self.log: list[tuple[str, int, Job | None]] = []
        self.stuck = False

    def ask(self, what: str, place: int, job: Job | None = None) -> Hashable:
        call = next(self.number)
        self.calls[call] = what, place, job
        self.log.append((what, place, job))
        return call

    def start(self, place: int) -> Hashable:
        return self.ask("start", place)

    def check(self, place: int) -> Hashable:
        return self.ask("check", place)

    def give(self, place: int, job: Job) -> Hashable:
        busy = [at for what, at, _ in self.calls.values() if at == place]
        assert not busy, f"place {place} was given a second call"
        return self.ask("give", place, job)

    def first(self, calls: Collection[Hashable], seconds: float | None) -> Hashable | None:
        assert set(calls) == set(self.calls)
        return None if self.stuck and seconds is not None else self.draw.choice(sorted(self.calls))

    def value(self, call: Hashable) -> Any:
        what, place, job = self.calls.pop(call)
        if self.dies(what, place, job):
            raise ActorDied(f"{what} was too much")
        if what == "start":
            return f"actor {place}"
        return None if job is None else tuple(Measured(task.client, {}, place) for task in job.tasks)

    def given(self, job: Job) -> int:
        return sum(entry[2] is job for entry in self.log)


def dispatch(pool: Scripted, places: int = 3) -> tuple[Dispatch, list[Death]]:
    deaths: list[Death] = []
    made = Dispatch(pool, places, deaths.append)
    made.start()
    return made, deaths


def clients(answers: Any) -> list[list[int]]:
    return [[answer.client for answer in of_job] for of_job in answers]


WHOLE = [[2 * i, 2 * i + 1] for i in range(6)]


@pytest.mark.parametrize("places", [1, 3, 9])
@pytest.mark.parametrize("seed", range(5))
def test_answers_come_in_the_order_of_the_jobs_and_each_is_given_once(seed: int, places: int) -> None:
    pool = Scripted(seed)
    made, deaths = dispatch(pool, places)
    assert made.said == {place: f"actor {place}" for place in range(places)}
    for _ in range(2):
        assert clients(made.run(JOBS)) == WHOLE
    assert clients(made.run([])) == [] and not deaths
    assert [pool.given(job) for job in JOBS] == [2] * 6
    assert sum(what == "start" for what, *_ in pool.log) == places


@pytest.mark.parametrize("seed", range(10))
def test_a_job_whose_actor_died_is_given_again_and_no_answer_is_lost(seed: int) -> None:
    """Any actor dies at any call with probability 0.2: at a job at most twice, and never before it is ready."""
    draw, times = random.Random(seed), {id(job): 0 for job in JOBS}

    def dies(what: str, place: int, job: Job | None) -> bool:
        if what == "start" or draw.random() > 0.2 or (job is not None and times[id(job)] == DEATHS - 1):
            return False
        times[id(job)] = times.get(id(job), 0) + 1
        return True

    pool = Scripted(seed, dies)
    made, deaths = dispatch(pool)
    for _ in range(5):
        answers = list(made.run(JOBS))
        assert clients(answers) == WHOLE and not any(isinstance(a, ClientFailed) for of in answers for a in of)
        times.update(dict.fromkeys(times, 0))
    assert deaths and all(death.times < DEATHS and death.why == "give was too much" for death in deaths)
    assert sum(map(pool.given, JOBS)) == 30 + len(deaths)


def test_a_job_at_which_every_actor_dies_ends_the_run() -> None:
    """Without its clients the round would be another, and the run as done as any; engine.actors changes no result."""
    pool = Scripted(1, lambda what, place, job: job is JOBS[2])
    made, deaths = dispatch(pool)
    said = (
        r"^3 actors of Ray died at one job of clients 4, 5 \(train\), the last one alone and thus: give was too much; "
    )
    with pytest.raises(RunFailed, match=said):
        list(made.run(JOBS))
    assert pool.given(JOBS[2]) == DEATHS == len(deaths)
    assert [death.times for death in deaths] == [1, 2, 3] and all(death.job is JOBS[2] for death in deaths)
    assert clients(made.run(JOBS[:2])) == WHOLE[:2]  # what is left of the actors can be asked


@pytest.mark.parametrize("seed", range(20))
def test_where_actors_die_of_each_others_memory_every_job_is_done(seed: int) -> None:
    """Two at work are one too many. The last time a job is given, it is alone."""
    pool = Scripted(seed, lambda what, *_: what == "give" and any(w == "give" for w, *_ in pool.calls.values()))
    made, deaths = dispatch(pool)
    assert clients(made.run(JOBS)) == WHOLE
    assert deaths and max(death.times for death in deaths) < DEATHS


def test_actors_that_died_together_are_not_held_against_the_job_that_comes_to_them_next() -> None:
    """A machine with all five free actors is lost: one job finds out, and the other four are found out by asking."""
    lost: set[int] = set()

    def dies(what: str, place: int, job: Job | None) -> bool:
        if what == "start":
            lost.discard(place)
        return place in lost

    pool = Scripted(0, dies)
    made, deaths = dispatch(pool, 5)
    lost |= set(range(5))
    assert clients(made.run(JOBS[:1])) == WHOLE[:1]
    assert len(deaths) == 1 and pool.given(JOBS[0]) == 2
    assert sum(what == "check" for what, *_ in pool.log) >= 4


def test_a_run_that_was_given_up_does_not_answer_the_next() -> None:
    made, _ = dispatch(Scripted(4))
    begun = made.run(JOBS)
    next(begun)
    begun.close()
    other = [Job(job.work, "", "", job.tasks[::-1]) for job in JOBS]
    assert clients(made.run(other)) == [row[::-1] for row in WHOLE]


def test_an_actor_that_says_what_is_wrong_ends_the_run() -> None:
    pool = Scripted()
    pool.value = lambda call: (pool.calls.pop(call), InputError("the images are in a file"))[1]
    with pytest.raises(InputError, match="the images are in a file"):
        dispatch(pool)


def test_actors_that_do_not_start() -> None:
    with pytest.raises(RunFailed, match="Ray starts no actor: start was too much"):
        dispatch(dying := Scripted(0, lambda what, *_: what == "start"))
    assert sum(what == "start" for what, *_ in dying.log) == 3 + STARTS - 1
    pool = Scripted()
    pool.stuck = True
    with pytest.raises(RunFailed, match=r"3 of 3 actors of Ray did not start within 300 s: .* use fewer"):
        dispatch(pool)
