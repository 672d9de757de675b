"""The singular value decomposition of a low-rank product, from its factors, and the factorisations made of it.

With thin QR B = Q_B R_B and Aᵀ = Q_A R_A, the product B A = Q_B (R_B R_Aᵀ) Q_Aᵀ has the spectrum of an R×R core, at
O((d + k)R²) for a sum of rank R. Only where R exceeds min(d, k), and a core would be the larger matrix, is the d×k
product formed.

Decompositions are made on the CPU, wherever the product is: they are many steps that wait for each other, and methods
look at single values of what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedinit.factors import Factors

Gauge = Literal["balanced", "right"]


@dataclass(frozen=True)
class Spectrum:
    """B A = U diag(S) Vh in float64, on the CPU. U: (d, q) and Vh: (q, k) with orthonormal columns and rows, S: (q,)
    falling; q = min(R, d, k). Signs are fixed: the largest entry of each row of Vh is positive, the first one of
    equals."""

    U: Tensor
    S: Tensor
    Vh: Tensor

    def cut(self, low: int, high: int) -> Spectrum:
        """The components from number `low` up to, but not with, number `high`, counted from zero."""
        return Spectrum(self.U[:, low:high], self.S[low:high], self.Vh[low:high])

    def factors(self, rank: int, gauge: Gauge = "balanced", kept: int | None = None) -> Factors:
        """The leading components as a product in float64, by falling weight: the best approximation of rank
        min(kept, rank) (Eckart–Young).

        rank: r of the product.
        gauge: how the singular values are shared. ``balanced``: √S on both sides, BᵀB = AAᵀ. ``right``: the rows of A
            are orthonormal and B carries S.
        kept: how many components have weight; None: as many as there are, `rank` at most.

        Components that are not kept, not there, or within rounding of zero have no weight: zero columns of B. Their
        rows of A go on as an orthonormal set, in ``balanced`` as large as the last one kept, so that they can learn; a
        zero column over a zero row would never get a gradient.
        """
        alive = int((self.S > self.S[:1] * 1e-12).sum())
        count = min(rank, alive, alive if kept is None else kept)
        part, rows = self.cut(0, count), _completed(self.Vh[:rank], rank)
        root = part.S.sqrt()
        sizes, columns = (torch.ones_like(root), part.U * part.S) if gauge == "right" else (root, part.U * root)
        last = sizes[-1:] if count else torch.ones(1, dtype=torch.float64)
        A = torch.cat([sizes, last.expand(rank - count)])[:, None] * rows
        return Factors(A, torch.cat([columns, columns.new_zeros(len(columns), rank - count)], dim=1))


def spectrum(product: Factors) -> Spectrum:
    """The decomposition of a product of any rank R, its other tensors than A and B absorbed."""
    exact = product.absorb().to(torch.float64)
    if exact.rank > min(exact.shape):
        return matrix_spectrum(exact.dense())
    exact = exact.to(torch.device("cpu"))
    left, core_left = torch.linalg.qr(exact.B)  # (d, R), (R, R)
    right, core_right = torch.linalg.qr(exact.A.T)  # (k, R), (R, R)
    U, S, Vh = torch.linalg.svd(core_left @ core_right.T)
    return _signed(left @ U, S, Vh @ right.T)


def matrix_spectrum(matrix: Tensor) -> Spectrum:
    """The decomposition of a dense (d, k) matrix, such as a frozen weight."""
    return _signed(*torch.linalg.svd(matrix.to("cpu", torch.float64), full_matrices=False))


def _completed(rows: Tensor, count: int) -> Tensor:
    """Orthonormal rows, completed to `count` of them."""
    missing = count - len(rows)
    if missing <= 0:
        return rows
    basis = torch.linalg.qr(torch.cat([rows.T, torch.eye(rows.shape[1], dtype=torch.float64)], dim=1))[0]
    return torch.cat([rows, basis[:, len(rows) : count].T])


def _signed(U: Tensor, S: Tensor, Vh: Tensor) -> Spectrum:
    sign = signs(Vh)
    return Spectrum(U * sign.T, S, Vh * sign)


def signs(rows: Tensor) -> Tensor:
    """(n, 1), ±1 for each row: the sign of its largest entry in size, the first one of equals; 1 for a row of zeros."""
    sign = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    sign[sign == 0] = 1
    return sign


def fix_signs(rows: Tensor) -> Tensor:
    """The rows, each multiplied by ±1 so that its largest entry is positive."""
    return rows * signs(rows)


def truncate(product: Factors, rank: int, gauge: Gauge = "balanced") -> Factors:
    """The best approximation of rank `rank` of a product, in float64 and where that is, as `Spectrum.factors` makes
    it."""
    return spectrum(product).factors(rank, gauge).to(product.A.device)
