"""RoLoRA: the factors take turns. In one round B is trained and averaged with A frozen, in the next A with B frozen.

Chen et al., NeurIPS 2025, arXiv 2502.01755. Each half-round is exact, since the frozen factor is the same on all
clients: Σ p_i B_i A = B̄A and Σ p_i B A_i = BĀ. B goes first: while it is zero, A has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedinit.adapters.kinds import EVERY_KIND
from fedinit.factors import Factors
from strategies.aggregator import Aggregator
from strategies.means import mean_factors


@dataclass(frozen=True, kw_only=True)
class RoLoRA(Aggregator):
    """The mean of B in odd rounds, of A in even ones; the other is frozen. Raises ValueError where both differ."""

    reinits: ClassVar[tuple[str, ...]] = ("average", "svd", "orthonormal", "gauge")
    kinds: ClassVar[tuple[str, ...]] = EVERY_KIND
    why: ClassVar[str] = "whose frozen factor must be the same on all clients and hold what was learned"

    def trainable(self, round: int) -> frozenset[str]:
        return frozenset({"B" if round % 2 else "A"})

    def sums(self, round: int) -> tuple[str, ...]:
        return ("B" if round % 2 else "A",)

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        widest, average = max(products, key=lambda p: p.rank), mean_factors(products, weights)
        if all(torch.equal(p.A, widest.A[: p.rank]) for p in products):
            return Factors(widest.A.to(torch.float64), average.B)
        if all(torch.equal(p.B, widest.B[:, : p.rank]) for p in products):
            return Factors(average.A, widest.B.to(torch.float64))
        raise ValueError("neither factor is the same on all clients; one must be frozen in every round")
