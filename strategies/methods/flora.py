"""FLoRA: the clients' factors stacked, so that the global update is the ideal one.

Wang et al., NeurIPS 2024, arXiv 2409.05976. [B_1 … B_K] and [p_1 A_1; …; p_K A_K] multiply to Σ p_i B_i A_i exactly,
for any mix of ranks, at rank Σ r_i. No client can start from factors of that rank: `reinit=fresh` merges them into the
base and redraws the adapters, as the paper does; a factorised start keeps their leading part and merges the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedinit.factors import Factors, stack
from strategies.aggregator import Aggregator


@dataclass(frozen=True, kw_only=True)
class FLoRA(Aggregator):
    """The ideal update itself, as factors of rank Σ r_i."""

    mixed_ranks: ClassVar[bool] = True
    reinits: ClassVar[tuple[str, ...]] = ("fresh", "svd", "orthonormal", "pissa", "gauge")
    unmoved: ClassVar[str] = "whose clients do not start from the global factors"
    why: ClassVar[str] = "whose global factors have the rank of all clients together"

    def sums(self, round: int) -> tuple[str, ...]:
        return ("BA",)

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        return stack([p.to(torch.float64) for p in products], weights)
