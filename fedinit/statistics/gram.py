"""The exact second moment of a layer's inputs: G = Σ x xᵀ (its upper triangle), Σ x, and the number of rows.

Inputs of a mean m and a deviation σ lose (m/σ)² of float32's digits where x xᵀ is summed in it. So a batch is summed
about its own mean, and a client sends G about its own; what the means add is put back in float64, where sums over
batches and over clients are taken. That is the parallel form of the covariance (Chan, Golub, LeVeque, 1979), with sums
that stay plain sums.
"""

from __future__ import annotations

from collections.abc import Mapping
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

    On the way gram is about the client's mean, and rest (k,) is what sum lacks in float32.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        k = self.shape[1]
        return {"count": (), "sum": (k,), "gram": (k * (k + 1) // 2,)}

    def measure(self, values: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
        rows, centre, total = about_mean(values)
        count = torch.tensor(len(values), dtype=torch.float64)
        gram = (rows.T @ rows).double() + shift(centre, total, len(values))
        return {"count": count, "sum": total + len(values) * centre, "gram": pack(gram)}

    def sensitivity(self, clip: float, rows: int) -> dict[str, float]:
        return {"sum": rows * clip, "gram": rows * clip**2}

    def sent(self) -> dict[str, tuple[int, ...]]:
        return self.shapes() | {"rest": self.shape[1:]}

    def reduced(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """G about the client's own mean, and what Σ x lacks in float32."""
        centre, rest, count = split_total(sums)
        return sums | {"rest": rest, "gram": sums["gram"] - pack(shift(centre, rest, count))}

    def restored(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        centre, rest, count = joined_total(sums)
        gram = sums["gram"].double() + pack(shift(centre, rest, count))
        return {"count": sums["count"], "sum": rest + count * centre, "gram": gram}


def split_total(sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    """(c (k,), the mean of the rows as Σ x in float32 gives it; Σ (x − c) (k,), which is the rest; the rows)."""
    count = max(float(sums["count"]), 1e-12)
    centre = sums["sum"].float().double() / count
    return centre, sums["sum"] - count * centre, count


def joined_total(sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    """The same three, of sums as they were sent."""
    count = max(float(sums["count"]), 1e-12)
    return sums["sum"].double() / count, sums["rest"].double(), count


def about_mean(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(the rows (n, k) less a centre next to their mean, that centre (k,), Σ of those rows (k,)), the last in float64.

    Σ x is n·centre + Σ of the rows, without the rounding of the mean to the rows' dtype.
    """
    centre = (values.sum(0, dtype=torch.float64) / max(len(values), 1)).to(values.dtype)
    rows = values - centre
    return rows, centre.double(), rows.sum(0, dtype=torch.float64)


def shift(centre: Tensor, total: Tensor, count: float) -> Tensor:
    """(k, k): Σ x xᵀ less Σ (x − c)(x − c)ᵀ, for the centre c (k,) and Σ (x − c) = total (k,) over `count` rows."""
    mixed = torch.outer(centre, total + count / 2 * centre)
    return mixed + mixed.T


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
