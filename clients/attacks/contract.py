"""What an attack makes of a client's change: pure values in, pure values out.

A client's change is what its training did to each tensor that it trains, by wire name, in float64. An attack answers
with the change that is sent in its place; the start is added again, and from there on the update goes the way of every
update. An omniscient attack also knows what the honest clients of the round changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from fedinit.config.attack import AttackConfig
from fedinit.errors import RunFailed, kind_of

Change = Mapping[str, Tensor]
Settings = TypeVar("Settings", bound=AttackConfig)


@dataclass(frozen=True)
class Seen:
    """What one attacker knows.

    own: what its honest training changed. honest: the same of the round's honest clients, in client order.
    attackers: how many bad clients are in the round. draw: for what is random, of its own.
    """

    own: Change
    honest: Sequence[Change]
    attackers: int
    draw: torch.Generator

    def moments(self) -> tuple[Change, Change]:
        """Mean and standard deviation of the honest changes, by coordinate; its own and zero where nobody is honest."""
        known = self.honest or [self.own]
        stacked = {name: torch.stack([change[name] for change in known]) for name in self.own}
        return {n: v.mean(0) for n, v in stacked.items()}, {n: v.std(0, correction=0) for n, v in stacked.items()}


class Attack(ABC, Generic[Settings]):
    """One attack, with the settings that `attack=` gave it."""

    def __init__(self, settings: Settings) -> None:
        """settings: of fedinit/config/attack.py."""
        self.settings = settings

    @abstractmethod
    def forge(self, seen: Seen) -> Change:
        """The change that this attacker sends, of the same names and shapes as its own."""


def refuse_unsendable(made: object, own: Change, attack: Attack[Any]) -> Change:
    """What an attack made of a change, as it is. Raises RunFailed where it has other tensors: a fault in its code, not
    what an attacker would send."""
    who = f"{type(attack).__name__} forges"
    if not isinstance(made, Mapping):
        raise RunFailed(f"{who} {type(made).__name__}, expected {{name: tensor}}")
    for name, value in made.items():
        shape = tuple(own[name].shape) if name in own else None
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            raise RunFailed(f"{who} {name} as {kind_of(value)}, expected {shape or 'no such tensor'}")
    return made


def times(change: Change, factor: float) -> Change:
    """Every tensor of the change, times a number."""
    return {name: factor * value for name, value in change.items()}
