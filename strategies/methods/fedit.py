"""FedIT: each factor averaged on its own, Ā and B̄.

Zhang et al., ICASSP 2024, arXiv 2305.05644. Biased: B̄Ā differs from Σ p_i B_i A_i by the covariance
Σ p_i (B_i − B̄)(A_i − Ā), which vanishes where one factor is shared. Mixed ranks are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedinit.adapters.kinds import EVERY_KIND
from fedinit.factors import Factors
from strategies.aggregator import Aggregator
from strategies.means import mean_factors


@dataclass(frozen=True, kw_only=True)
class FedIT(Aggregator):
    """The mean of each factor, Ā and B̄."""

    mixed_ranks: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = EVERY_KIND

    def sums(self, round: int) -> tuple[str, ...]:
        return ("A", "B")

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        return mean_factors(products, weights)
