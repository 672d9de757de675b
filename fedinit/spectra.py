"""The singular value decomposition of a low-rank product, from its factors, and the factorisations made of it.

With thin QR B = Q_B R_B and Aᵀ = Q_A R_A, the product B A = Q_B (R_B R_Aᵀ) Q_Aᵀ has the spectrum of an R×R core, at
O((d + k)R²) for a sum of rank R. Only where R exceeds min(d, k), and a core would be the larger matrix, is the d×k
product formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.factors import Factors


@dataclass(frozen=True)
class Spectrum:
    """B A = U diag(S) Vh in float64. U: (d, q) and Vh: (q, k) with orthonormal columns and rows, S: (q,) falling;
    q = min(R, d, k). Signs are fixed: the largest entry of each row of Vh is positive, the first one of equals."""

    U: Tensor
    S: Tensor
    Vh: Tensor

    def cut(self, low: int, high: int) -> Spectrum:
        """The components from `low` on, up to but not with `high`."""
        return Spectrum(self.U[:, low:high], self.S[low:high], self.Vh[low:high])


def spectrum(product: Factors) -> Spectrum:
    """The decomposition of a product of any rank R."""
    whole = product.absorb().to(torch.float64)
    if whole.rank > min(whole.shape):
        return matrix_spectrum(whole.dense())
    left, core_left = torch.linalg.qr(whole.B)  # (d, R), (R, R)
    right, core_right = torch.linalg.qr(whole.A.T)  # (k, R), (R, R)
    U, S, Vh = torch.linalg.svd(core_left @ core_right.T)
    return _signed(left @ U, S, Vh @ right.T)


def matrix_spectrum(matrix: Tensor) -> Spectrum:
    """The decomposition of a (d, k) matrix that is there as such, such as a frozen weight."""
    return _signed(*torch.linalg.svd(matrix.to(torch.float64), full_matrices=False))


def _signed(U: Tensor, S: Tensor, Vh: Tensor) -> Spectrum:
    sign = signs(Vh)
    return Spectrum(U * sign.T, S, Vh * sign)


def signs(rows: Tensor) -> Tensor:
    """(n, 1), ±1: what makes the largest entry of each row positive, the first one of equals."""
    sign = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    sign[sign == 0] = 1
    return sign


def fix_signs(rows: Tensor) -> Tensor:
    """The rows with their largest entry positive."""
    return rows * signs(rows)


def truncate(product: Factors, rank: int, gauge: str = "balanced") -> Factors:
    """The best approximation of rank `rank` (Eckart–Young), its components by falling weight, in float64.

    gauge: how the singular values are shared. ``balanced``: √S on both sides, BᵀB = AAᵀ. ``right``: the rows of A are
    orthonormal and B carries S. Above the rank of the product the rest is filled with components of weight zero:
    zero in ``balanced``, orthonormal rows of A and zero columns of B in ``right``.
    """
    found = spectrum(product)
    q = min(rank, len(found.S))
    U, S, Vh = found.U[:, :q], found.S[:q], found.Vh[:q]
    if gauge == "balanced":
        made = Factors(S.sqrt()[:, None] * Vh, U * S.sqrt())
    elif gauge == "right":
        made = Factors(Vh, U * S)
    else:
        raise ValueError(f"gauge={gauge}: expected balanced or right")
    missing = rank - q
    if missing == 0:
        return made
    A = torch.zeros(missing, made.shape[1], dtype=torch.float64)
    if gauge == "right":  # complete the rows to an orthonormal set
        basis = torch.linalg.qr(torch.cat([Vh.T, torch.eye(Vh.shape[1], dtype=torch.float64)], dim=1))[0]
        A = basis[:, q : q + missing].T
    return Factors(torch.cat([made.A, A]), torch.cat([made.B, torch.zeros(len(U), missing, dtype=torch.float64)], 1))
