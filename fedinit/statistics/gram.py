"""The exact second moment of a layer's inputs: G = Σ x xᵀ (its upper triangle), Σ x, and the number of rows.

Inputs of a mean m and a deviation σ lose (m/σ)² of float32's digits where x xᵀ is summed in it. So a batch is summed
about its own mean, and a client sends G about its own; what the means add is put back in float64, where sums over
batches and over clients are taken. That is the parallel form of the covariance (Chan, Golub, LeVeque, 1979), with sums
that stay plain sums.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedinit.statistics.statistic import Statistic

COLUMNS = 64  # whose float64 copies are there at once


@dataclass(frozen=True)
class Gram(Statistic):
    """The sums of a layer's k inputs over the rows.

    count: the rows.
    sum: (k,), Σ x.
    gram: (k(k + 1)/2,), the upper triangle of Σ x xᵀ.

    On the way gram is about the client's mean, and rest (k,) is what sum lacks in float32.
    """

    per_row: ClassVar[bool] = True

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

    def fault(self, sums: Mapping[str, Tensor], examples: int) -> str:
        if said := super().fault(sums, examples):
            return said
        count, total, gram = float(sums["count"]), sums["sum"].double(), unpack(sums["gram"].double(), self.shape[1])
        slack = self.slack("gram", sums, examples)
        trace, beside = float(gram.trace()), 6 * slack * len(gram) ** 0.5
        if not trace <= self.energy(count) + beside:
            return f"{self.layer}: a second moment of trace {trace:.3g} over {count:g} rows"
        if is_longer(total, count * (trace + beside), self.slack("sum", sums, examples)):
            return f"{self.layer}: a sum of rows that is longer than rows of such a moment have"
        covariance = gram if slack else gram - torch.outer(total, total) / max(count, 1e-12)
        if not is_positive(covariance, 3 * slack * len(gram) ** 0.5, trace):
            return f"{self.layer}: its second moment is not positive semi-definite"
        return ""

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
    centre = (_sum(values) / max(len(values), 1)).to(values.dtype)
    rows = values - centre
    return rows, centre.double(), _sum(rows)


def _sum(rows: Tensor) -> Tensor:
    """(k,) in float64, Σ of the rows (n, k), some columns at a time: torch makes a float64 copy of what it adds up."""
    return torch.cat([columns.sum(0, dtype=torch.float64) for columns in rows.split(COLUMNS, dim=1)])


def shift(centre: Tensor, total: Tensor, count: float) -> Tensor:
    """(k, k): Σ x xᵀ less Σ (x − c)(x − c)ᵀ, for the centre c (k,) and Σ (x − c) = total (k,) over `count` rows."""
    mixed = torch.outer(centre, total + count / 2 * centre)
    return mixed + mixed.T


def is_longer(total: Tensor, square: float, slack: float) -> bool:
    """Whether Σ x (k,) is longer than ‖Σ x‖² ≤ n Σ ‖x‖², at most `square`, lets it be; slack: as `Statistic.slack`."""
    return not float(total.norm()) <= (1 + 1e-6) * max(square, 0.0) ** 0.5 + slack * (len(total) ** 0.5 + 6)


def is_positive(matrix: Tensor, slack: float, scale: float, whole: Tensor | None = None) -> bool:
    """Whether a symmetric matrix (k, k) has no eigenvalue below -slack, up to the rounding of its entries in float32.

    Without a slack this is asked of the correlations, which no row's scale has a part in. scale: of the sums that the
    matrix is what is left of. whole: the diagonal (k,) of the matrix that another was taken from to give this one,
    which has that one's rounding; None: there is none.
    """
    k, diagonal = len(matrix), matrix.diagonal()
    floor = 1e-6 * max(scale, 0.0) + slack
    if not bool((diagonal >= -floor).all()):
        return False
    if not slack:
        floor, noise = 1e-2, 1e-9 * max(scale, 0.0) + 1e-30
        if whole is not None:  # whose entries are off by a few 2⁻²⁴ √(whole_i whole_j), k times that in norm at most
            noise = noise + 4 * k * 2**-24 / floor * whole.clamp(min=0)
        size = (diagonal.clamp(min=0) + noise).rsqrt()
        matrix = matrix * size * size[:, None]
    matrix = matrix + floor * torch.eye(k, dtype=matrix.dtype)
    # Cholesky's own rounding in float32 is k·2⁻²⁴ of a correlation.
    return int(torch.linalg.cholesky_ex(matrix if slack or k <= 1024 else matrix.float()).info) == 0


def pack(symmetric: Tensor) -> Tensor:
    """The upper triangle of (k, k), row by row, as (k(k + 1)/2,)."""
    upper, _ = _places(len(symmetric), symmetric.device)
    return symmetric.reshape(-1).index_select(0, upper)


def unpack(triangle: Tensor, k: int) -> Tensor:
    """The inverse of `pack`."""
    symmetric = triangle.new_empty(k * k)
    for places in _places(k, triangle.device):
        symmetric.index_copy_(0, places, triangle)
    return symmetric.view(k, k)


@functools.lru_cache(maxsize=4)
def _places(k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in (k, k), row by row, its upper triangle is, and the same of the lower: (k(k + 1)/2,) each. Thousands of
    clients pack matrices of the few widths that a backbone has; looking for the places takes five times as long as
    taking what is there."""
    rows, columns = torch.triu_indices(k, k, device=device)
    return rows * k + columns, columns * k + rows
