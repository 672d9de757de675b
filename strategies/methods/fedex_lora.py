"""FedEx-LoRA: averaged factors, and what the average misses merged into the base.

Singhal et al., ACL 2025, arXiv 2410.09432. W0 takes up s·(ΔW − B̄Ā), so that the effective model is the ideal one. The
residual is sent as factors: with centred factors it is Σ p_i (B_i − B̄)(A_i − Ā), of rank K·r at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedinit.adapters.kinds import EVERY_KIND
from fedinit.factors import Factors
from strategies.aggregator import Aggregator
from strategies.means import centred, mean_factors


@dataclass(frozen=True, kw_only=True)
class FedExLoRA(Aggregator):
    """The averaged factors; the residual ΔW − B̄Ā goes into the base, which makes the two together exact."""

    kinds: ClassVar[tuple[str, ...]] = EVERY_KIND
    reinits: ClassVar[tuple[str, ...]] = ("average", "fresh", "svd", "orthonormal", "pissa", "gauge")
    why: ClassVar[str] = "whose residual clients' own factors still hold when it is merged, so each round adds it anew"

    def sums(self, round: int) -> tuple[str, ...]:
        return ("A", "B", "BA")

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        return mean_factors(products, weights)

    def left_out(self, products: Sequence[Factors], weights: Sequence[float], merged: Factors) -> Factors | None:
        return centred(products, weights, merged)
