"""The contract of a head: the linear classifier (C classes, D features) that round 1, and a gradient, starts from.

As an initialiser does, a head plans, and either is known at once or asks the clients for statistics of the backbone's
pooled features; from their sum it is made, or asks again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from fedinit.statistics import Request, Statistics


@dataclass(frozen=True, kw_only=True)
class HeadContext:
    """classes: their names. features: D."""

    classes: Sequence[str]
    features: int
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.classes), self.features


@dataclass(frozen=True, kw_only=True)
class HeadState:
    """tensors: weight (C, D) and bias (C,) in float32. notes: plain values for the run's summary."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Head(ABC):
    # Whether every logit is zero, so that no gradient gets past the head.
    silent: ClassVar[bool] = False
    # Whether there is a classifier at all.
    classifies: ClassVar[bool] = True

    @abstractmethod
    def plan(self, setting: HeadContext) -> Request | HeadState:
        """The head, or the first thing to ask clients for."""

    def step(self, setting: HeadContext, asked: Request, found: Statistics) -> Request | HeadState:
        """The head, or the next thing to ask for, from the sum over all clients of what was asked."""
        raise NotImplementedError(f"{type(self).__name__} asks for nothing")


def run(head: Head, setting: HeadContext, ask: Callable[[Request], Statistics]) -> HeadState:
    """Plan and step until there is a head; `ask` gives the sum over the clients."""
    made = head.plan(setting)
    while isinstance(made, Request):
        made = head.step(setting, made, ask(made))
    return made
