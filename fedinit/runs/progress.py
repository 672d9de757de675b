"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.runs.verbose import VerboseConsole


class ProgressObserver(Observer):
    """Shows a run's rounds while they pass."""

    def __init__(self, console: Console, label: str) -> None:
        """
        console: where it prints.
        label: what is being run, at the start of every line.
        """
        self.console, self.label = console, label
        self.bar: Progress | None = None
        self.score = ""

    def started(self, rounds: int, roster: Roster) -> None:
        self.rounds = rounds
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=rounds, facts=f"{len(roster.examples)} clients")
        else:
            self.console.print(f"{self.label}: {rounds} rounds, {len(roster.examples)} clients")

    def resumed(self, round: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=round)
        else:
            self.console.print(f"{self.label}: goes on after round {round}")

    def round_done(self, report: RoundReport) -> None:
        if report.score is not None:
            self.score = f", {report.score}"
        loss = "" if report.train_loss is None else f", loss {_shown(report.train_loss)}"
        facts = f"{len(report.clients)} clients{loss}{self.score}"
        if self.bar is not None:
            self.bar.update(self.task, advance=1, facts=facts)
            if report.round == self.rounds:
                self.bar.stop()
        elif report.score is not None:
            self.console.print(f"{self.label}: round {report.round}/{self.rounds}, {facts}, {report.seconds:.1f} s")
        if isinstance(self.console, VerboseConsole):
            self._tell(report)

    def _tell(self, report: RoundReport) -> None:
        """A line a client, and the score by domain."""
        for c in report.clients:
            loss = "" if c.loss is None else f", loss {_shown(c.loss)}"
            self._line(f"  round {report.round}, client {c.client}: {c.examples:,} images, {c.steps} steps{loss}")
        if report.score is not None:
            by_domain = [f"{name} {report.score.show(value)}" for name, value in report.score.by_domain.items()]
            self._line(f"  round {report.round}, {report.score.title}: {', '.join(by_domain)}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def round_zero_done(self, report: RoundReport) -> None:
        if not report.clients:  # nobody had anything to measure
            return
        facts = f"statistics of {len(report.clients)} clients, {report.bytes_up / 1e6:.1f} MB up"
        if self.bar is not None:
            self.bar.update(self.task, facts=facts)
        else:
            self.console.print(f"{self.label}: round 0, {facts}, {report.seconds:.1f} s")

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        text = ", ".join(f"{key} {value}" for key, value in facts.items())
        self.console.print(f"{kind.replace('_', ' ')}: {text}", style="yellow", markup=False, highlight=False)

    def waiting(self, text: str) -> None:
        self.console.print(f"{self.label}: {text}", style="yellow", markup=False, highlight=False)

    def close(self) -> None:
        """Stop the progress bar, so that the terminal is in order, also after a failure."""
        if self.bar is not None:
            self.bar.stop()


def _shown(loss: float) -> str:
    return f"{loss:.3f}" if loss >= 0.001 else f"{loss:.1e}"
