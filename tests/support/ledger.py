"""An observer that keeps what it is told of."""

from __future__ import annotations

from collections.abc import Mapping

from fedinit.runs.observer import Observer


class Ledger(Observer):
    """lines: (kind, facts) of every event. heard: what the run waited for."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []
        self.heard: list[str] = []

    def event(self, kind: str, facts: Mapping[str, object]) -> None:
        self.lines.append((kind, dict(facts)))

    def waiting(self, text: str) -> None:
        self.heard.append(text)
