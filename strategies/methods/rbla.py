"""RBLA: each rank slice averaged over the clients that own it, so that low-rank clients do not dilute the others.

arXiv 2408.08699, 2024. Row j of A and column j of B are means over the clients with r_i > j, their
weights rescaled to sum to one; zero padding would count the others as zeros. Equal ranks make it FedIT, with its bias.
A slice that no client of the round owns stays as it was; one whose owners weigh nothing together is their plain mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedinit.factors import Factors, mean
from strategies.aggregator import Aggregator


@dataclass(frozen=True, kw_only=True)
class RBLA(Aggregator):
    """The mean of each rank slice over the clients that own it."""

    mixed_ranks: ClassVar[bool] = True

    def sums(self, round: int) -> tuple[str, ...]:
        """Row j of a padded sum is that of its owners; their weight, by which it is divided, follows from the ranks."""
        return ("A", "B")

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        rows, columns, low = [], [], 0
        for high in sorted({p.rank for p in products}):  # the slices from `low` to `high` have the same owners
            owners = [(p, w) for p, w in zip(products, weights, strict=True) if p.rank >= high]
            total = sum(w for _, w in owners)
            if total and len(owners) == len(products):
                total = 1.0  # the weights are shares as they are, though in floats they may sum to a little less
            shares = [w / total if total else 1 / len(owners) for _, w in owners]
            rows.append(mean([p.A[low:high] for p, _ in owners], shares))
            columns.append(mean([p.B[:, low:high] for p, _ in owners], shares))
            low = high
        if start is not None:
            rows.append(start.A[low:].double())
            columns.append(start.B[:, low:].double())
        return Factors(torch.cat(rows), torch.cat(columns, dim=1))
