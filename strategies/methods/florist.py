"""FLoRIST: the ideal update, cut at the rank that holds a share of its energy.

arXiv 2506.09199. From the spectrum of the stacked factors, the smallest rank r* with Σ_{j ≤ r*} σ_j² ≥ τ Σ σ_j², capped
at the global rank. Components beyond r* lose their weight (their column of B is zero) and keep a direction in A, so
that they can learn again; rows of A and columns of B that are both zero would never get a gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedinit.config.checks import within
from fedinit.factors import Factors, stack
from fedinit.spectra import spectrum
from strategies.aggregator import Aggregator


@dataclass(frozen=True, kw_only=True)
class Cut(Aggregator):
    """The ideal update at a rank that its spectrum decides."""

    mixed_ranks: ClassVar[bool] = True
    unmoved: ClassVar[str] = "whose factors are split anew in every round, so that their difference is no step"
    cuts: ClassVar[bool] = True
    reinits: ClassVar[tuple[str, ...]] = ("average", "local", "local_on_global", "fresh", "svd", "orthonormal", "gauge")
    why: ClassVar[str] = "which drops components by their size, and with these would drop parts of W0"

    def sums(self, round: int) -> tuple[str, ...]:
        return ("BA",)

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        ideal = stack([p.to(torch.float64) for p in products], weights)
        components = spectrum(ideal)
        rank = max(p.rank for p in products) if start is None else start.rank
        return components.factors(rank, kept=self.kept(components.S, (*ideal.shape, ideal.rank))).to(ideal.A.device)

    @abstractmethod
    def kept(self, S: Tensor, sizes: tuple[int, int, int]) -> int:
        """How many components of a spectrum S, falling, are kept; one at least. sizes: (d, k, R) of the ideal update,
        the product of a d×R and an R×k matrix."""


@dataclass(frozen=True, kw_only=True)
class FLoRIST(Cut):
    """energy: τ in (0, 1], the share of ‖ΔW‖² that is kept."""

    energy: float = 0.99

    def __post_init__(self) -> None:
        within("strategy.energy", self.energy, 0, 1, open_low=True)

    def kept(self, S: Tensor, sizes: tuple[int, int, int]) -> int:
        cumulative = S.square().cumsum(0)
        # A share that differs from τ by rounding only counts as reached.
        return int((cumulative < self.energy * cumulative[-1] * (1 - 1e-12)).sum()) + 1 if cumulative[-1] > 0 else 1
