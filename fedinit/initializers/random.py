"""Starts drawn from the run's seed alone: the same on every client, and no data needed.

Each leaves the model as it was, B A = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.initializers.initializer import LayerWise


@dataclass(frozen=True, kw_only=True)
class Kaiming(LayerWise):
    """A ~ U(−1/√k, 1/√k), B = 0: LoRA's own start (arXiv 2106.09685), kaiming_uniform with a = √5."""

    random: ClassVar[bool] = True

    def draw(self, d: int, k: int, rank: int, generator: torch.Generator, weight: Tensor | None) -> Factors:
        bound = k**-0.5
        return Factors(torch.empty(rank, k).uniform_(-bound, bound, generator=generator), torch.zeros(d, rank))


@dataclass(frozen=True, kw_only=True)
class Gaussian(LayerWise):
    """A ~ N(0, 1/r²), B = 0. The standard deviation is 1/r, as PEFT has it."""

    random: ClassVar[bool] = True

    def draw(self, d: int, k: int, rank: int, generator: torch.Generator, weight: Tensor | None) -> Factors:
        return Factors(torch.randn(rank, k, generator=generator) / rank, torch.zeros(d, rank))


@dataclass(frozen=True, kw_only=True)
class Orthogonal(LayerWise):
    """Both factors non-zero, their product zero: A and B both learn from the first step.

    With Q a random (r, r) orthogonal matrix, A = (X Q_odd)ᵀ/10 and B = Y Q_even/10 for Gaussian X (k, r/2) and
    Y (d, r/2); Q_even Q_oddᵀ = 0, so B A = 0. Needs an even rank. Source: PEFT's orthogonal LoRA start.
    """

    random: ClassVar[bool] = True

    @property
    def zero(self) -> str:
        return ""

    @property
    def indivisible(self) -> str:
        return "whose product is zero only as a whole"

    def check(self, rank: int) -> None:
        if rank % 2:
            raise InputError(f"init=orthogonal: needs an even rank, got adapter.rank={rank}")

    def draw(self, d: int, k: int, rank: int, generator: torch.Generator, weight: Tensor | None) -> Factors:
        q, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))
        a = torch.randn(k, rank // 2, generator=generator, dtype=torch.float64) @ q[1::2]
        b = torch.randn(d, rank // 2, generator=generator, dtype=torch.float64) @ q[0::2]
        return Factors((a.T / 10).float().contiguous(), (b / 10).float())
