"""What a run is at now, in a small file in its folder, for those who watch it from another process.

It is there while the run goes on, and gone behind it. A run goes on without it where it cannot be written.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedinit.opening import read_bytes
from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.state import disk

FILE = ".status.json"


class Status(NamedTuple):
    """label: what is being run, the run itself or its reference. doing: in words; "" while clients train.
    round: the last that is done. rounds: how many there will be. clients: how many there are.
    since: when this was written, seconds of the epoch. process: whether the one that wrote it is alive; None: it is of
    another machine, or cannot be asked."""

    label: str
    doing: str
    round: int
    rounds: int
    clients: int
    since: float
    process: bool | None


class StatusObserver(Observer):
    """Keeps the file."""

    def __init__(self, folder: Path, label: str) -> None:
        """folder: of the run. label: what is being run."""
        self.file = folder / FILE
        self.values: dict[str, Any] = {"label": label, "doing": "", "round": 0, "rounds": 0, "clients": 0}
        self.values |= {"pid": os.getpid(), "host": _host()}

    def started(self, rounds: int, roster: Roster) -> None:
        self._say(rounds=rounds, clients=len(roster.examples))

    def doing(self, text: str) -> None:
        self._say(doing=text)

    def waiting(self, text: str) -> None:
        self._say(doing=text)

    def resumed(self, round: int) -> None:
        self._say(round=round, doing="")

    def round_zero_done(self, report: RoundReport) -> None:
        self._say(doing="")

    def round_done(self, report: RoundReport) -> None:
        self._say(round=report.round, doing="")

    def _say(self, **changes: Any) -> None:
        self.values |= changes
        with contextlib.suppress(OSError):
            disk.replace_json(self.file, {**self.values, "since": time.time()})


def remove(folder: Path) -> None:
    """Of a run that ends, done or not: it is at nothing any more."""
    with contextlib.suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)


def status_of(folder: Path) -> Status | None:
    """What the run in this folder is at; None where it does not say."""
    try:
        values = json.loads(read_bytes(folder / FILE))
        known = {key: type(default)(values[key]) for key, default in _TYPES.items()}
        return Status(**known, process=_alive(values["pid"]) if values["host"] == _host() else None)
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


_TYPES: Mapping[str, Any] = {"label": "", "doing": "", "round": 0, "rounds": 0, "clients": 0, "since": 0.0}


def _host() -> str:
    import platform

    return platform.node()


def _alive(process: int) -> bool | None:
    """Whether there is a process of this number; None on a system that cannot be asked without ending it."""
    if disk.WINDOWS:
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
