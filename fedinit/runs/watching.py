"""A run of another process, as its files have it: the same view as the run itself shows."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from fedinit.report.runs.finding import find
from fedinit.report.runs.reading import RecordedRun, read
from fedinit.runs import lock
from fedinit.runs.status import status_of
from fedinit.runs.view import Round, View

EVERY = 1.0  # seconds between two looks
BEGINS = 60.0  # from a run's folder to its first word


def newest(folder: Path) -> Path:
    """The run that is meant: the folder's own, or, of a folder with runs below it, the one that was written to last:
    of those that go on, else of those that are not done, else of all. Raises InputError where there is none."""
    runs = find([folder])
    open_ones = [run for run in runs if run.summary is None]
    going = [run for run in open_ones if goes_on(run.folder)]
    return max(going or open_ones or runs, key=lambda run: _written(run.folder)).folder


def view_of(run: RecordedRun, clock: Callable[[], float] = time.monotonic) -> View:
    """What the run's files say now."""
    title = f"{run.name} on {run.config['data']['name']}, {run.model}"
    view = View(title, score=run.score, rounds=run.rounds, done=rounds_of(run), clock=clock)
    view.going = run.summary is None and goes_on(run.folder)
    status = status_of(run.folder)
    if status is not None:
        view.total, view.doing = status.clients, status.doing
        if status.label != run.name:  # its reference, before it
            view.doing = f"{status.label}, round {status.round}/{status.rounds}" + f": {view.doing}" * bool(view.doing)
        view.began = clock() - max(time.time() - max(status.since, _written(run.folder)), 0.0)
    return view


def rounds_of(run: RecordedRun) -> list[Round]:
    """A value a row of metrics.csv."""
    cohorts: dict[int, list[int]] = defaultdict(list)
    for round, client in zip(run.clients.numbers("round"), run.clients.numbers("client"), strict=True):
        if not math.isnan(client):
            cohorts[int(round)].append(int(client))
    table = run.metrics
    columns = {name: table.numbers(name).tolist() for name in ("seconds", "clients", "train_loss")}
    columns |= {name: table.numbers(name).tolist() for name in ("bytes_up", "bytes_down")}
    scores = {domain: table.numbers(f"{run.score}_{domain}").tolist() for domain in run.domains}
    return [
        Round(
            number=int(number),
            seconds=_or(columns["seconds"][row], 0.0),
            clients=cohorts[int(number)],
            count=int(_or(columns["clients"][row], 0)),
            loss=None if math.isnan(columns["train_loss"][row]) else columns["train_loss"][row],
            scores={name: values[row] for name, values in scores.items() if not math.isnan(values[row])},
            bytes_up=int(_or(columns["bytes_up"][row], 0)),
            bytes_down=int(_or(columns["bytes_down"][row], 0)),
        )
        for row, number in enumerate(table.numbers("round"))
    ]


def watch(folder: Path, pause: Callable[[float], None] = time.sleep) -> Iterator[tuple[RecordedRun, View]]:
    """What the run's files say, again every EVERY seconds, until the run is done or nobody is at it any more.

    Raises InputError for a folder that holds no run.
    """
    while True:
        run = read(folder)
        yield run, view_of(run)
        if run.summary is not None or not goes_on(folder):
            if (last := read(folder)) != run:  # it ended between the two looks
                yield last, view_of(last)
            return
        pause(EVERY)


def goes_on(folder: Path) -> bool:
    """Whether a process is at the run, as far as can be told: its own word, unless that process is gone. One that has
    just begun has the folder's lock, and has not said anything yet."""
    status = status_of(folder)
    if status is None:
        return (folder / lock.NAME).exists() and time.time() - _written(folder) < BEGINS
    return status.process is not False


def _written(folder: Path) -> float:
    """When the run last wrote to its tables, seconds of the epoch."""
    times = [0.0]
    for name in ("config.yaml", "metrics.csv", "ledger.jsonl", ".status.json"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _or(value: float, instead: float) -> float:
    return instead if math.isnan(value) else value
