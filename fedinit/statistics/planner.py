"""How a start or a head is made in round 0: at once, or from sums that clients are asked for, step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from fedinit.statistics.statistic import Request, Statistics

Context = TypeVar("Context")
Outcome = TypeVar("Outcome")


class Planner(ABC, Generic[Context, Outcome]):
    """Makes an outcome, a start or a head, from what the server knows (the context) and what it asks the clients."""

    @abstractmethod
    def plan(self, context: Context) -> Request | Outcome:
        """The outcome, where no client is needed for it, or the first request to the clients."""

    def step(self, context: Context, asked: Request, statistics: Statistics) -> Request | Outcome:
        """The outcome, or the next request, from the answer to the last one.

        asked: the last request.
        statistics: the clients' answers to it, added up over all of them.

        Raises NotImplementedError for a planner that asks for nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} asks for nothing")

    def run(self, context: Context, ask: Callable[[Request], Statistics]) -> Outcome:
        """The outcome, after as many requests as it takes. ask: request -> the clients' answers to it, added up."""
        outcome = self.plan(context)
        while isinstance(outcome, Request):
            outcome = self.step(context, outcome, ask(outcome))
        return outcome
