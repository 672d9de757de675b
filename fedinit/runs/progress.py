"""What a person sees while a run goes on: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live

from fedinit.data.reporter import counted
from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.runs.table import privacy_ahead
from fedinit.runs.verbose import VerboseConsole
from fedinit.runs.view import Round, View, figure
from fedinit.said import upwards
from fedinit.scores import SCORES
from fedinit.stopping import standing, unbroken
from fedinit.telling import tell

MOST = 5  # clients of a round of whom one thing is said on the screen


class ProgressObserver(Observer):
    """Shows a run's rounds while they pass."""

    def __init__(self, console: Console, label: str) -> None:
        """
        console: where it prints.
        label: what is being run, at the start of every line.
        """
        self.console, self.label = console, label
        self.view = View(label)
        self.live: Live | None = None
        self._shown = contextlib.ExitStack()  # holds the live view, while it is up
        self.score = ""
        self._befell: Counter[tuple[str, object]] = Counter()  # clients, by kind of event and round

    def started(self, rounds: int, roster: Roster) -> None:
        self.view.rounds, self.view.total, self.view.score = rounds, len(roster.examples), roster.score
        if self.console.is_terminal and not self.console.quiet:
            self.live = Live(self.view, console=self.console, refresh_per_second=2)
            self._shown.enter_context(standing(self.live))
        else:
            self._line(f"{self.label}: {counted(rounds, 'round')}, {counted(len(roster.examples), 'client')}")

    def doing(self, text: str) -> None:
        self.view.doing = text
        if self.live is not None:
            self.live.refresh()
        elif self.view.rounds:
            self._line(f"{self.label}: {text}")

    def resumed(self, round: int) -> None:
        self.view.add(Round(round, 0.0, (), 0, None, {}, 0, 0))
        self._line(f"{self.label}: goes on after round {round}" + ", its last" * (round >= self.view.rounds))

    def round_done(self, report: RoundReport) -> None:
        self._rest()
        self.view.add(shown(report))
        if report.score is not None:
            self.score = f", {report.score}"
        loss = "" if report.train_loss is None else f", loss {figure(report.train_loss)}"
        epsilon = report.diagnostics.get("epsilon") if report.epsilon is None else report.epsilon
        spent = "" if epsilon is None else f", ε {upwards(epsilon)}"
        facts = f"{counted(len(report.clients), 'client')}{loss}{spent}{self.score}"
        if self.live is not None:
            self.live.refresh()
            if report.round == self.view.rounds:
                self._shown.close()
        elif report.score is not None:
            self._line(f"{self.label}: round {report.round}/{self.view.rounds}, {facts}, {report.seconds:.1f} s")
        if isinstance(self.console, VerboseConsole):
            self._tell(report)

    def _tell(self, report: RoundReport) -> None:
        """A line a client, and the score by domain."""
        for c in report.clients:
            loss = "" if c.loss is None else f", loss {figure(c.loss)}"
            loss += "" if c.epsilon is None else f", ε {upwards(c.epsilon)}"
            steps = "" if c.steps is None else f", {counted(c.steps, 'step')}"
            done = f"{counted(c.examples, 'image')}{steps}"
            self._line(f"  round {report.round}, client {c.client}: {done}{loss}")
        if report.score is not None:
            by_domain = [f"{name} {report.score.show(value)}" for name, value in report.score.by_domain.items()]
            self._line(f"  round {report.round}, {report.score.title}: {', '.join(by_domain)}")

    def _line(self, text: str, style: str = "") -> None:
        """On one line, however long: a file or a pipe has no width. Names of domains are of clients."""
        with unbroken():  # rich keeps what it was writing when a signal came, and writes it again with the next line
            tell(self.console, text, style)

    def round_zero_done(self, report: RoundReport) -> None:
        if not report.clients:  # nobody had anything to measure
            return
        self.view.add(shown(report))
        facts = f"statistics of {counted(len(report.clients), 'client')}, {report.bytes_up / 1e6:.1f} MB up"
        if self.live is None:
            self._line(f"{self.label}: round 0, {facts}, {report.seconds:.1f} s")

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        if kind == "resumed":  # which is told by `resumed`
            return
        if kind == "privacy":
            self._line(f"privacy {privacy_ahead(facts)}")
            return
        if "client" in facts:  # one reason may be all clients', who may be thousands
            about = kind, facts.get("round")
            self._befell[about] += 1
            if self._befell[about] > MOST:
                return
        text = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
        self._line(f"{kind.replace('_', ' ')}: {text}", "yellow")

    def _rest(self) -> None:
        """Of how many more clients the same could have been said."""
        for (kind, round), clients in self._befell.items():
            if clients > MOST:
                more = counted(clients - MOST, "more client")
                self._line(f"{kind.replace('_', ' ')}: {more} in round {round}; ledger.jsonl has all of them", "yellow")
        self._befell.clear()

    def waiting(self, text: str) -> None:
        self._line(f"{self.label}: {text}", "yellow")

    def close(self) -> None:
        """Stop the live view, so that the terminal is in order, also after a failure."""
        self._rest()
        self._shown.close()


def shown(report: RoundReport) -> Round:
    """What is shown of a round that was reported."""
    score = report.score
    return Round(
        number=report.round,
        seconds=report.seconds,
        clients=[c.client for c in report.clients],
        count=len(report.clients),
        loss=report.train_loss,
        scores={} if score is None or score.name not in SCORES else score.by_domain,
        bytes_up=report.bytes_up,
        bytes_down=report.bytes_down,
    )
