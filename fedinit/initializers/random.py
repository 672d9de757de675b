"""Starts drawn from the run's seed alone: the same on every client, and no data needed.

Each leaves the model as it was, B A = 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedinit.config import at_least, positive
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.seeding import torch_generator


@dataclass(frozen=True, kw_only=True)
class Initializer(ABC):
    """Draws the start factors of every adapted layer.

    scale: multiplies both factors; below 1 it is the small-initialisation axis of matrix recovery.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        positive("init.scale", self.scale)

    def check(self, rank: int) -> None:
        """Raise InputError for a rank this start cannot have. Any will do, unless a start says otherwise."""
        at_least("adapter.rank", rank, 1)

    def start(self, targets: Mapping[str, tuple[int, int]], rank: int, seed: int) -> dict[str, Factors]:
        """{layer: Factors in float32} for targets {layer: (d, k)}; each layer has a stream of its own."""
        self.check(rank)
        made = {}
        for name, (d, k) in targets.items():
            drawn = self.draw(d, k, rank, torch_generator(seed, "init", name))
            made[name] = Factors(drawn.A * self.scale, drawn.B * self.scale)
        return made

    @abstractmethod
    def draw(self, d: int, k: int, rank: int, generator: torch.Generator) -> Factors: ...


@dataclass(frozen=True, kw_only=True)
class Kaiming(Initializer):
    """A ~ U(−1/√k, 1/√k), B = 0: LoRA's own start (arXiv 2106.09685), kaiming_uniform with a = √5."""

    def draw(self, d: int, k: int, rank: int, generator: torch.Generator) -> Factors:
        bound = k**-0.5
        return Factors(torch.empty(rank, k).uniform_(-bound, bound, generator=generator), torch.zeros(d, rank))


@dataclass(frozen=True, kw_only=True)
class Gaussian(Initializer):
    """A ~ N(0, 1/r²), B = 0. The standard deviation is 1/r, as PEFT has it."""

    def draw(self, d: int, k: int, rank: int, generator: torch.Generator) -> Factors:
        return Factors(torch.randn(rank, k, generator=generator) / rank, torch.zeros(d, rank))


@dataclass(frozen=True, kw_only=True)
class Orthogonal(Initializer):
    """Both factors non-zero, their product zero: A and B both learn from the first step.

    With Q a random (r, r) orthogonal matrix, A = (X Q_odd)ᵀ/10 and B = Y Q_even/10 for Gaussian X (k, r/2) and
    Y (d, r/2); Q_even Q_oddᵀ = 0, so B A = 0. Needs an even rank. Source: PEFT's orthogonal LoRA start.
    """

    def check(self, rank: int) -> None:
        if rank % 2:
            raise InputError(f"init=orthogonal: needs an even rank, got adapter.rank={rank}")

    def draw(self, d: int, k: int, rank: int, generator: torch.Generator) -> Factors:
        q, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))
        a = torch.randn(k, rank // 2, generator=generator, dtype=torch.float64) @ q[1::2]
        b = torch.randn(d, rank // 2, generator=generator, dtype=torch.float64) @ q[0::2]
        return Factors((a.T / 10).float().contiguous(), (b / 10).float())
