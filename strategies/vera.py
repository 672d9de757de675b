"""VeRA for the aggregation methods: its vectors as a pair of rank one, in which every method's own rule has a meaning.

With M = b dᵀ (d×r) a layer's update is ΔW = diag(b) B diag(d) A = (M ∘ B) A, linear in M. A and B are the same on all
clients, so Σ p_i ΔW_i = (M̄ ∘ B) A for M̄ = Σ p_i b_i d_iᵀ, exactly. M is a product of rank one, with b for B and dᵀ for
A: a method is given those factors, and what it makes of them is a pair again, and a rest that goes into the base. Plain
averaging takes b̄ d̄ᵀ, which misses the covariance of b and d.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedinit.factors import Factors


def pair(product: Factors) -> Factors:
    """M = b dᵀ as factors of rank one."""
    return Factors(product.d[None], product.b[:, None])


def frame(products: Sequence[Factors], start: Factors | None) -> Factors:
    """A and B in float64, with the vectors of the start or of the first client. Raises ValueError where they differ."""
    first = products[0] if start is None else start
    for product in products:
        if product.b is None or not torch.equal(product.A, first.A) or not torch.equal(product.B, first.B):
            raise ValueError("a client's A and B are not the frozen ones that all clients share, with vectors b and d")
    return first.to(torch.float64)


def dressed(frozen: Factors, made: Factors) -> Factors:
    """The layer's product for a pair. Raises ValueError for more than a pair."""
    if made.rank != 1:
        raise ValueError(f"vectors b and d from a product of rank {made.rank}; expected one")
    return Factors(frozen.A, frozen.B, b=made.B[:, 0], d=made.A[0])


def lifted(frozen: Factors, M: Factors) -> Factors:
    """(M ∘ B) A for an M of any rank, as a product of rank r."""
    return Factors(frozen.A, M.dense() * frozen.B)


def corrected_b(
    frozen: Factors,
    pairs: Sequence[Factors],
    weights: Sequence[float],
    average: Factors,
    lam: float,
    relative: bool,
) -> Tensor:
    """b̄ + Δb (d, 1) of the least ‖ΔW − diag(b̄ + Δb) B diag(d̄) A‖² + λ‖Δb‖² for the averaged d̄.

    Row j of the model is b_j·v_j with v_j = (B_j ∘ d̄) A, so each b_j has a least-squares problem of its own:
    Δb_j = (⟨ΔW_j, v_j⟩ − b̄_j‖v_j‖²)/(‖v_j‖² + λ); `relative` makes it λ‖v_j‖². A row of zeros keeps its b̄_j.
    """
    G = frozen.A @ frozen.A.T
    V = frozen.B * average.A[0]  # (d, r): v_j without A
    VG = V @ G
    size2 = (VG * V).sum(1)
    found = torch.zeros_like(size2)
    for one, weight in zip(pairs, weights, strict=True):
        found += weight * one.B[:, 0] * ((frozen.B * one.A[0]) * VG).sum(1)
    shifted = size2 * (1 + lam) if relative else size2 + lam
    step = torch.where(shifted > 0, (found - average.B[:, 0] * size2) / shifted.clamp(min=1e-300), 0.0)
    return average.B + step[:, None]


def correctable2(frozen: Factors, average: Factors, missed: Factors) -> float:
    """‖·‖² of the part of (C ∘ B) A that a change of b can repair: each row's projection on v_j = (B_j ∘ d̄) A."""
    VG = (frozen.B * average.A[0]) @ (frozen.A @ frozen.A.T)
    size2 = (VG * (frozen.B * average.A[0])).sum(1)
    dots = ((missed.dense() * frozen.B) * VG).sum(1)
    return float(torch.where(size2 > 0, dots.square() / size2.clamp(min=1e-300), 0.0).sum())
