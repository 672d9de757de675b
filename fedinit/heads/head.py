"""The contract of a head: the linear classifier (C classes, D features) that round 1, and a gradient, starts from.

As an initialiser does, a head plans, and either is known at once or asks the clients for statistics of the backbone's
pooled features; from their sum it is made, or asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from fedinit.errors import RunFailed, kind_of
from fedinit.norms import first_not_finite
from fedinit.statistics.planner import Planner
from fedinit.statistics.statistic import Request, Statistics


@dataclass(frozen=True, kw_only=True)
class HeadContext:
    """What the server knows when it makes a head.

    classes: the C names, in the order of the outputs.
    features: D, of the backbone.
    seed: the run's.
    """

    classes: Sequence[str]
    features: int
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        """(C, D), of the head's weight."""
        return len(self.classes), self.features


@dataclass(frozen=True, kw_only=True)
class HeadState:
    """A head that was made.

    tensors: {"weight": (C, D), "bias": (C,)} in float32; empty where there is no classifier.
    notes: plain values for the run's summary.
    """

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Head(Planner[HeadContext, HeadState]):
    """Makes the classifier that a run starts from."""

    # Whether every logit is zero, so that no gradient gets past the head.
    silent: ClassVar[bool] = False
    # Whether there is a classifier at all.
    classifies: ClassVar[bool] = True

    def run(self, context: HeadContext, ask: Callable[[Request], Statistics]) -> HeadState:
        """As Planner says; the head in float32. Raises RunFailed for one that is none."""
        return refuse_unfit(super().run(context, ask), context, self)


def refuse_unfit(made: object, context: HeadContext, head: Head) -> HeadState:
    """The head that was made, in float32. Raises RunFailed where it is no classifier of these classes and features: a
    fault in its code."""
    who = f"{type(head).__name__} makes"
    if not isinstance(made, HeadState):
        raise RunFailed(f"{who} {type(made).__name__}, expected a HeadState")
    shapes = {"weight": context.shape, "bias": context.shape[:1]} if head.classifies else {}
    if made.tensors.keys() != shapes.keys():
        given, wanted = (", ".join(keys) or "nothing" for keys in (made.tensors, shapes))
        raise RunFailed(f"{who} a head of {given}, expected {wanted}")
    for name, shape in shapes.items():
        value = made.tensors[name]
        if not isinstance(value, Tensor) or not value.is_floating_point() or tuple(value.shape) != shape:
            raise RunFailed(f"{who} {name} as {kind_of(value)}, expected float32 {shape}")
    if odd := first_not_finite(made.tensors):
        raise RunFailed(f"{who} {odd} with NaN or infinity")
    return replace(made, tensors={name: value.detach().float() for name, value in made.tensors.items()})
