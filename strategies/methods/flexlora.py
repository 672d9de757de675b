"""FlexLoRA: the best rank-r approximation of the ideal update, split again into factors.

Bai et al., NeurIPS 2024, arXiv 2402.11505. The paper forms ΔW and takes its SVD; here the spectrum comes from a QR of
the stacked factors and the SVD of their small core. Components are ordered by weight, so a client of rank r_i takes the
leading r_i, which is its own best approximation. The split is balanced, √S on both sides. Where the round's clients
reach fewer than r components together, the others have no weight and a direction in A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedinit.adapters.kinds import EVERY_KIND
from fedinit.factors import Factors, stack
from fedinit.spectra import truncate
from strategies.aggregator import Aggregator


@dataclass(frozen=True, kw_only=True)
class FlexLoRA(Aggregator):
    """The best approximation of the ideal update at the rank of the start, or, without one, the clients' highest."""

    mixed_ranks: ClassVar[bool] = True
    unmoved: ClassVar[str] = "whose factors are split anew in every round, so that their difference is no step"
    kinds: ClassVar[tuple[str, ...]] = EVERY_KIND

    def sums(self, round: int) -> tuple[str, ...]:
        return ("BA",)

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        rank = max(p.rank for p in products) if start is None else start.rank
        return truncate(stack([p.to(torch.float64) for p in products], weights), rank)
