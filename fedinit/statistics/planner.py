"""How a start or a head is made in round 0: at once, or from sums that clients are asked for, step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from fedinit.statistics.statistic import Request, Statistics

Context = TypeVar("Context")
Made = TypeVar("Made")


class Planner(ABC, Generic[Context, Made]):
    """Makes something from what the server knows, and from what it asks the clients."""

    @abstractmethod
    def plan(self, context: Context) -> Request | Made:
        """What is made, or the first thing to ask clients for."""

    def step(self, context: Context, asked: Request, found: Statistics) -> Request | Made:
        """What is made, or the next thing to ask for, from the sum over all clients of what was asked."""
        raise NotImplementedError(f"{type(self).__name__} asks for nothing")

    def run(self, context: Context, ask: Callable[[Request], Statistics]) -> Made:
        """Plan and step until it is made; `ask` gives the sum over the clients."""
        made = self.plan(context)
        while isinstance(made, Request):
            made = self.step(context, made, ask(made))
        return made
