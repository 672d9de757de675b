"""The exact second moment of a layer's inputs: G = Σ x xᵀ (its upper triangle), Σ x, and the number of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.statistics.statistic import Statistic


@dataclass(frozen=True)
class Gram(Statistic):
    """The sums of a layer's k inputs over the rows.

    count: the rows.
    sum: (k,), Σ x.
    gram: (k(k + 1)/2,), the upper triangle of Σ x xᵀ.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        k = self.shape[1]
        return {"count": (), "sum": (k,), "gram": (k * (k + 1) // 2,)}

    def measure(self, values: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
        count = torch.tensor(len(values), dtype=torch.float64)
        return {"count": count, "sum": values.sum(0, dtype=torch.float64), "gram": pack(values.T @ values)}

    def sensitivity(self, clip: float, rows: int) -> dict[str, float]:
        return {"sum": rows * clip, "gram": rows * clip**2}


def pack(symmetric: Tensor) -> Tensor:
    """The upper triangle of (k, k), row by row, as (k(k + 1)/2,)."""
    k = len(symmetric)
    rows, columns = torch.triu_indices(k, k, device=symmetric.device)
    return symmetric[rows, columns]


def unpack(triangle: Tensor, k: int) -> Tensor:
    """The inverse of `pack`."""
    rows, columns = torch.triu_indices(k, k)
    symmetric = torch.empty(k, k, dtype=triangle.dtype)
    symmetric[rows, columns] = triangle
    symmetric[columns, rows] = triangle
    return symmetric
