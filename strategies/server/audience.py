"""Several observers as one, who are told of clients' words what may be printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.said import LONGEST, said


class Audience(Observer):
    """Passes everything on, in the order of the observers; texts as one printable line, cut where they are too long."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = list(observers)

    def started(self, rounds: int, roster: Roster) -> None:
        for observer in self.observers:
            observer.started(rounds, roster)

    def round_zero_done(self, report: RoundReport) -> None:
        for observer in self.observers:
            observer.round_zero_done(report)

    def resumed(self, round: int) -> None:
        for observer in self.observers:
            observer.resumed(round)

    def round_done(self, report: RoundReport) -> None:
        for observer in self.observers:
            observer.round_done(report)

    def model(self, round: int, tensors: Mapping[str, Tensor]) -> None:
        for observer in self.observers:
            observer.model(round, tensors)

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        told = {key: said(value, LONGEST) if isinstance(value, str) else value for key, value in facts.items()}
        for observer in self.observers:
            observer.event(kind, told)

    def doing(self, text: str) -> None:
        for observer in self.observers:
            observer.doing(text)

    def waiting(self, text: str) -> None:
        for observer in self.observers:
            observer.waiting(said(text, LONGEST))

    def finished(self, summary: Mapping[str, Any]) -> None:
        for observer in self.observers:
            observer.finished(summary)
