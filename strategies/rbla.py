"""RBLA: each rank slice averaged over the clients that own it, so that low-rank clients do not dilute the others.

arXiv 2408.08699, 2024. Row j of A and column j of B are means over the clients with r_i > j, their
weights rescaled to sum to one; zero padding would count the others as zeros. Equal ranks make it FedIT, with its bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedinit.factors import Factors
from strategies.aggregator import Aggregator, mean_factors


@dataclass(frozen=True, kw_only=True)
class RBLA(Aggregator):
    mixed_ranks: ClassVar[bool] = True

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        padded = mean_factors(products, weights)
        owners = torch.zeros(padded.rank, dtype=torch.float64)  # Σ p_i over the clients that own slice j
        for product, weight in zip(products, weights, strict=True):
            owners[: product.rank] += weight
        return Factors(padded.A / owners[:, None], padded.B / owners)
