"""The clients' factors of a layer side by side in float64, as few clients at a time as a cache holds.

A rule's sums over clients are a few large products of matrices then, instead of several small ones a client.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from fedinit.factors import Factors, stack
from strategies.means import mean_factors

GROUP = 2**21  # numbers of a factor side by side at once, 16 MB


class SideBySide:
    """Sums over the clients of a layer, in float64 and in their order."""

    def __init__(self, products: Sequence[Factors], weights: Sequence[float]) -> None:
        """products: A_i (r_i, k), B_i (d, r_i). weights: p_i."""
        self.products, self.weights = products, weights
        few = max(1, GROUP // max(max(p.A.numel(), p.B.numel()) for p in products))
        self._groups = [slice(i, i + few) for i in range(0, len(products), few)]

    @cached_property
    def means(self) -> Factors:
        """Ā = Σ p_i A_i (r, k) and B̄ = Σ p_i B_i (d, r), as `mean_factors` has them to the bit; lower ranks are padded
        with zeros."""
        first = self.products[0]
        if len({p.rank for p in self.products}) > 1:
            return mean_factors(self.products, self.weights)
        means = Factors(*(torch.zeros_like(t, dtype=torch.float64) for t in (first.A, first.B)))
        for group in self._groups:
            sides = self._sides(group)
            for total, values in ((means.A, sides.A.split(first.rank)), (means.B, sides.B.split(first.rank, 1))):
                for value, weight in zip(values, self.weights[group], strict=True):
                    total.add_(value, alpha=weight)
        return means

    def ideal(self) -> Factors:
        """ΔW = Σ p_i B_i A_i as one product of rank Σ r_i."""
        return stack([p.to(torch.float64) for p in self.products], self.weights)

    def image(self, rows: Tensor) -> Tensor:
        """ΔW rowsᵀ = Σ p_i B_i (A_i rowsᵀ), (d, c), for rows (c, k)."""
        # Transposed: a few long rows on the left are faster in the product than a few columns on the right.
        out = rows.new_zeros(rows.shape[0], self.products[0].B.shape[0])
        for group in self._groups:
            sides = self._sides(group)
            shares = [w for p, w in zip(self.products[group], self.weights[group], strict=True) for _ in range(p.rank)]
            cores = rows @ sides.A.T  # (c, k) @ (k, Σ r_i)
            out.addmm_(cores.mul_(torch.tensor(shares, dtype=cores.dtype)), sides.B.T)
        return out.T

    def _sides(self, group: slice) -> Factors:
        """The A_i one below the other (Σ r_i, k), and the B_i beside each other (d, Σ r_i), of a group."""
        return self._whole if len(self._groups) == 1 else self._laid(group)

    @cached_property
    def _whole(self) -> Factors:
        return self._laid(self._groups[0])

    def _laid(self, group: slice) -> Factors:
        those, first = self.products[group], self.products[0]
        ranks = [p.rank for p in those]
        A = first.A.new_empty(sum(ranks), first.A.shape[1], dtype=torch.float64)
        B = first.B.new_empty(first.B.shape[0], sum(ranks), dtype=torch.float64)
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            [*A.split(ranks), *B.split(ranks, 1)], [*(p.A for p in those), *(p.B for p in those)]
        )
        return Factors(A, B)
