"""Which actor does which job, where actors may die: what was lost with one is given again.

A job makes the same bytes wherever and however often it is done, so nothing of this is seen in what comes out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from clients.task import Answer, Job
from fedinit.errors import GOES_ON, RunFailed
from fedinit.said import first_ten

DEATHS = 3  # of actors at one job, after which the run has failed
STARTS = 3  # actors that die one after another before they are ready, after which no more are begun
START = 300.0  # seconds until an actor is ready: imports, the backbone, on a machine that is busy with others'


class ActorDied(Exception):
    """An actor is gone, and what it was at with it. The message, one line, says why."""


class Pool(Protocol):
    """Actors, each in a place 0 … n − 1. What one is asked to do is a call, which ends with a value or as ActorDied."""

    def start(self, place: int) -> Hashable:
        """Put a new actor into the place; the call ends, with what it says of itself, when it is ready."""
        ...

    def check(self, place: int) -> Hashable:
        """A call that does nothing."""
        ...

    def give(self, place: int, job: Job) -> Hashable:
        """A call that ends with the answers to the job's tasks."""
        ...

    def first(self, calls: Collection[Hashable], seconds: float | None) -> Hashable | None:
        """One of the calls that has ended; None where none has within so many seconds."""
        ...

    def value(self, call: Hashable) -> Any:
        """What the call ended with; an exception that is foreseen is a value too. Raises ActorDied."""
        ...


@dataclass(frozen=True)
class Death:
    """An actor died at a job, for the `times`-th time."""

    job: Job
    times: int
    why: str


@dataclass(frozen=True)
class _Asked:
    """What a call is about. run: the one that the job, by its number, is of; None: of no job."""

    place: int
    run: object = None
    index: int = -1


class Dispatch:
    """Gives jobs to the actors of a pool, one each at a time, and replaces those that die.

    said: {place: what its actor said of itself when it was ready}.
    """

    def __init__(self, pool: Pool, places: int, died: Callable[[Death], None]) -> None:
        """places: how many actors there are. died: is told of every death at a job."""
        self.said: dict[int, Any] = {}
        self._pool, self._places, self._died = pool, places, died
        self._asked: dict[Hashable, _Asked] = {}
        self._free: list[int] = []
        self._failed_starts = 0

    def start(self) -> None:
        """Begin all actors, and wait until they are ready. Raises RunFailed where they do not come."""
        for place in range(self._places):
            self._asked[self._pool.start(place)] = _Asked(place)
        while self._asked:
            self._end()

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Answer, ...]]:
        """The answers to each job's tasks, in the order of the jobs. Raises RunFailed where no actor is left, or
        DEATHS have died at one job, and what a call ended with where that is an exception.

        The last of these has the job for itself: where memory is what they died of, that may be enough."""
        run, waiting, deaths = object(), deque(range(len(jobs))), Counter[int]()
        done: dict[int, tuple[Answer, ...]] = {}
        for wanted in range(len(jobs)):
            while wanted not in done:
                while waiting and self._free and not (self._busy(run) and self._last(deaths, run, waiting[0])):
                    place, index = self._free.pop(), waiting.popleft()
                    self._asked[self._pool.give(place, jobs[index])] = _Asked(place, run, index)
                asked, value = self._end()
                if asked.run is not run:
                    continue  # an actor that is ready, or what is left of a run that was given up
                if not isinstance(value, ActorDied):
                    done[asked.index] = value
                    continue
                deaths[asked.index] += 1
                death = Death(jobs[asked.index], deaths[asked.index], str(value))
                self._died(death)
                if death.times >= DEATHS:
                    raise RunFailed(told(death, self._places))
                waiting.appendleft(asked.index)
            yield done.pop(wanted)

    def _busy(self, run: object) -> list[int]:
        """The jobs of this run that actors are at."""
        return [asked.index for asked in self._asked.values() if asked.run is run]

    def _last(self, deaths: Mapping[int, int], run: object, index: int) -> bool:
        """Whether this job, or one that an actor is at, is given for the last time."""
        return any(deaths.get(i, 0) == DEATHS - 1 for i in (index, *self._busy(run)))

    def _end(self) -> tuple[_Asked, Any]:
        """Wait for a call to end: what it was about, and its value or the ActorDied, whose place has a new actor."""
        at_work = any(asked.run is not None for asked in self._asked.values())
        call = self._pool.first(self._asked, None if at_work else START)
        if call is None:
            missing = len(self._asked)
            raise RunFailed(
                f"{missing} of {self._places} actors of Ray did not start within {START:.0f} s: no machine of the "
                "cluster has room for them now; use fewer, engine.actors=…"
            )
        asked = self._asked.pop(call)
        try:
            value = self._pool.value(call)
        except ActorDied as died:
            value = died
            self._replace(asked, died)
        else:
            self._free.append(asked.place)
            self._failed_starts = 0
            if isinstance(value, Exception):
                raise value
            if asked.run is None and value is not None:
                self.said[asked.place] = value
        return asked, value

    def _replace(self, asked: _Asked, died: ActorDied) -> None:
        """Put a new actor into the dead one's place. Actors often die together, with their machine, and a job is not to
        be blamed for what happened before it came: those that are free are asked whether they are there."""
        if asked.place not in self.said:  # it never was ready
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise RunFailed(f"Ray starts no actor: {died}") from died
        self.said.pop(asked.place, None)
        self._asked[self._pool.start(asked.place)] = _Asked(asked.place)
        for place in self._free:
            self._asked[self._pool.check(place)] = _Asked(place)
        self._free = []


def told(death: Death, places: int) -> str:
    """Of the last death of actors at a job: the machine's fault and no client's, so that no round is made without those
    whose turn it was. places: how many actors there are."""
    clients = sorted({task.client for task in death.job.tasks if not task.mute and task.client >= 0})
    whose = f" of client{'s' * (len(clients) > 1)} {first_ten(clients)}" if clients else ""
    job = f"one job{whose} ({death.job.work})"
    fewer = "fewer, engine.actors=1, need less memory and change no result; " * (places > 1)
    return f"{death.times} actors of Ray died at {job}, the last one alone and thus: {death.why}; {fewer}{GOES_ON}"
