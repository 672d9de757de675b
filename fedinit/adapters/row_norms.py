"""Norms of the rows of W + s·BA without that matrix: what DoRA divides by. Liu et al., ICML 2024, arXiv 2402.09353.

‖W_j + s(BA)_j‖² = ‖W_j‖² + 2s⟨W_j, (BA)_j⟩ + s²‖(BA)_j‖² needs W Aᵀ (d×r) and A Aᵀ (r×r) only.
"""

from __future__ import annotations

from torch import Tensor

FLOOR = 1e-12  # below which a row counts as this long: a row of zeros is divided by something


def row_norms(weight: Tensor, squares: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """(…, d): weight W (d, k), squares (d,) its ‖W_j‖², A (…, r, k), B (…, d, r)."""
    cross = ((weight @ A.mT) * B).sum(-1)  # (d, k) @ (…, k, r) -> (…, d, r)
    change = ((B @ (A @ A.mT)) * B).sum(-1)
    # Rounding can make a row that the adapter takes out almost whole slightly negative.
    return (squares + 2 * scale * cross + scale**2 * change).clamp(min=0).sqrt().clamp(min=FLOOR)


def magnitudes(weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """m (d,) in float64 with which diag(m/‖·‖) leaves W + s·BA as it is."""
    whole = weight.double()
    return row_norms(whole, whole.square().sum(1), A.double(), B.double(), scale)
