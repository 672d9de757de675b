"""The contract of an initialiser: what the adapters of every layer start from before round 1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedinit.config import at_least, positive
from fedinit.factors import Factors
from fedinit.seeding import torch_generator


@dataclass(frozen=True, kw_only=True)
class Initializer(ABC):
    """Draws the start factors of every adapted layer.

    scale: multiplies both factors; below 1 it is the small-initialisation axis of matrix recovery.
    """

    # Whether the product has a core, B R A. Methods that train A or B get it absorbed into B.
    cores: ClassVar[bool] = False

    scale: float = 1.0

    def __post_init__(self) -> None:
        positive("init.scale", self.scale)

    def check(self, rank: int) -> None:
        """Raise InputError for a rank this start cannot have. Any will do, unless a start says otherwise."""
        at_least("adapter.rank", rank, 1)

    def start(
        self,
        targets: Mapping[str, tuple[int, int]],
        rank: int,
        seed: int,
        weight: Callable[[str], Tensor] | None = None,
    ) -> dict[str, Factors]:
        """{layer: Factors in float32} for targets {layer: (d, k)}; each layer has a stream of its own.

        weight: the frozen weight of a layer, (d, k), for starts that are made from it.
        """
        self.check(rank)
        made = {}
        for name, (d, k) in targets.items():
            generator = torch_generator(seed, "init", name)
            drawn = self.draw(d, k, rank, generator, None if weight is None else weight(name))
            made[name] = Factors(drawn.A * self.scale, drawn.B * self.scale, drawn.R)
        return made

    @abstractmethod
    def draw(self, d: int, k: int, rank: int, generator: torch.Generator, weight: Tensor | None) -> Factors:
        """The factors of one layer; weight is (d, k), or None where `start` was given none."""
