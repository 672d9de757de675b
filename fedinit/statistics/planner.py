"""How a start or a head is made in round 0: at once, or from sums that clients are asked for, step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from fedinit.statistics.statistic import Request, Statistics

Context = TypeVar("Context")
Outcome = TypeVar("Outcome")


class Planner(ABC, Generic[Context, Outcome]):
    """Makes something from what the server knows, and from what it asks the clients."""

    @abstractmethod
    def plan(self, context: Context) -> Request | Outcome:
        """What is made, or the first thing to ask clients for."""

    def step(self, context: Context, asked: Request, statistics: Statistics) -> Request | Outcome:
        """What is made, or the next thing to ask for, from the sum over all clients of what was asked."""
        raise NotImplementedError(f"{type(self).__name__} asks for nothing")

    def run(self, context: Context, ask: Callable[[Request], Statistics]) -> Outcome:
        """Plan and step until it is made; `ask` gives the sum over the clients."""
        outcome = self.plan(context)
        while isinstance(outcome, Request):
            outcome = self.step(context, outcome, ask(outcome))
        return outcome
