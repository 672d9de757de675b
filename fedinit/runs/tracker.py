"""What trackers have in common: a service is told of every round, and whatever goes wrong there becomes one warning."""

from __future__ import annotations

import re
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

from rich.console import Console

from fedinit.config.schema import Config, to_dict
from fedinit.runs.observer import Observer, RoundReport
from fedinit.said import said
from fedinit.telling import announce

LONGEST = 240  # characters of what a service says


class Tracker(Observer):
    """A service that keeps a run's figures. A subclass says how it is begun, told and ended; it may raise anywhere, and
    the run goes on without it.

    name: of the service, for the warning.
    """

    name: ClassVar[str]

    def __init__(self, config: Config, folder: Path, console: Console) -> None:
        """
        config: the run's, which the service is told whole; its `logger` says the project.
        folder: of the run, which names it there.
        console: where a warning goes.
        """
        self.config, self.folder, self.console = config, folder, console
        self.values = to_dict(config)
        self.on, self.over = True, False
        self._try(self.begin)

    @abstractmethod
    def begin(self) -> None:
        """Begin the run there, or go on with it."""

    @abstractmethod
    def log(self, values: Mapping[str, float], round: int) -> None:
        """Take the figures of a round, by name."""

    @abstractmethod
    def conclude(self, figures: Mapping[str, int | float | str]) -> None:
        """Take the figures of a run that is done."""

    def keep(self, report: Path) -> None:
        """Take the run's report, a file, where the service keeps files."""

    @abstractmethod
    def end(self, code: int) -> None:
        """End the run there. code: 0 for one that is done, else what ended it."""

    def round_zero_done(self, report: RoundReport) -> None:
        if report.clients:  # a round of its own, where clients measured something
            self.round_done(report)

    def round_done(self, report: RoundReport) -> None:
        values: dict[str, Any] = {
            **({} if report.train_loss is None else {"train_loss": report.train_loss}),
            "bytes_up": report.bytes_up,
            "bytes_down": report.bytes_down,
            **report.diagnostics,
        }
        if report.score is not None:
            values[report.score.name] = report.score.mean
            values |= {f"{report.score.name}/{name}": value for name, value in report.score.by_domain.items()}
        self._try(lambda: self.log(values, report.round))

    def finished(self, summary: Mapping[str, Any]) -> None:
        self.over = True
        self._try(lambda: self.conclude({k: v for k, v in summary.items() if isinstance(v, (int, float, str))}))

    def reported(self, path: Path) -> None:
        self._try(lambda: self.keep(path))

    def close(self) -> None:
        """End the run there, also one that a signal or an error ended: what was logged is kept."""
        stopped = sys.exc_info()[1]
        self._try(lambda: self.end(0 if self.over else getattr(stopped, "code", 1)))
        self.on = False

    def _try(self, work: Callable[[], Any]) -> None:
        try:
            if self.on:
                work()
        except Exception as error:  # noqa: BLE001 (tracking must never stop a run)
            self.on = False
            why = said(re.sub(r"//[^/@\s]*@", "//", str(error)), LONGEST) or type(error).__name__
            self.say(f"warning: {self.name} is off for this run: {why}")

    def say(self, text: str) -> None:
        """One line, however long, in a file too."""
        announce(self.console, text)


def group_of(folder: Path) -> str:
    """What runs of one configuration share, whatever their seed: the folder's name without it."""
    return f"{folder.parent.name}/{folder.name.rpartition('-s')[0]}"


def shown_address(url: str) -> str:
    """A service's address without the name and password that may stand in it."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
