"""LoRA-FAIR with a cosine a column: (1/k)·Σ_j (1 − cos(ΔW_j, (B′Ā)_j)) + λ‖ΔB‖², B′ = B̄ + ΔB (similarity=columns).

This is what code that descends from the paper's takes, torch's cosine_similarity along dim 0 of the d×k matrices. A
column has a norm of its own, so M, G and ‖ΔW‖ are not enough; but ΔW, B̄ and the minimiser all lie in the span of the
clients' B, so d is taken down to Σ r_i by one QR where that is smaller.

At λ = 0 nothing in it sees the size of B′Ā, which is then that of least squares, ⟨ΔW, B′Ā⟩ = ‖B′Ā‖², as with one
cosine; where the columns' cosines add up to a direction with ⟨ΔW, B′Ā⟩ ≤ 0 there is none, and the size stays. Where it
has no minimum, or one beyond what float32 factors could say, as of clients of turned signs whom no λ holds, a search
goes on and on: one that has gone FAR is not followed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedinit.factors import Factors, inner, norm

SEARCH, FLAT = 500, 1e-6  # iterations of L-BFGS, and how flat the objective is where it has converged
FAR = 100  # ‖B̄ + ΔB‖ over ‖[p_1B_1 … p_KB_K]‖, what clients have themselves


def columns_loss(ideal: Tensor, average: Factors, delta: Tensor, lam: float) -> Tensor:
    """The objective at ΔB; a column of zeros has a cosine of 0. ideal: ΔW, (d, k)."""
    product = (average.B + delta) @ average.A
    sizes = ideal.norm(dim=0) * product.norm(dim=0)
    cosines = (ideal * product).sum(0) / sizes.clamp(min=1e-300)
    return 1 - cosines.mean() + lam * delta.square().sum()


def columns_fit(ideal: Factors, average: Factors, start: Tensor, lam: float) -> tuple[Tensor, bool]:
    """ΔB (d, r) of the least objective, and whether the search has converged; its start, or nought, where it went FAR.

    ideal: the stacked factors of ΔW, in float64. start: the ΔB it starts from, (d, r), in the span of their B.

    L-BFGS in units of ‖B̄‖ and in coordinates in which the curvature of one cosine, G/‖B̄Ā‖² + 2λI, is the identity.
    """
    size2, n2 = float(average.B.square().sum()), float((average.B @ average.A).square().sum())
    if not n2 or not ideal.B.any():
        return start, not ideal.B.any()
    basis = torch.linalg.qr(ideal.B).Q if ideal.rank < ideal.B.shape[0] else None
    low = ideal if basis is None else Factors(ideal.A, basis.T @ ideal.B)
    mean = average.B if basis is None else basis.T @ average.B
    whole, values = low.dense(), average.A @ average.A.T * (size2 / n2)
    values, vectors = torch.linalg.eigh(values)
    scaled = vectors * (size2 / (values.clamp(min=0) + 2 * lam * size2 + 1e-12)).sqrt()  # from coordinates to ΔBᵀ
    begun = start if basis is None else basis.T @ start
    point = torch.linalg.solve(scaled, begun.T).T.contiguous().requires_grad_(True)
    search = torch.optim.LBFGS([point], 1.0, SEARCH, 2 * SEARCH, FLAT / 10, 0.0, 20, "strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = columns_loss(whole, Factors(average.A, mean), point @ scaled.T, lam)
        loss.backward()
        return loss

    search.step(closure)
    closure()
    gradient = point.grad
    flat = gradient is not None and float(gradient.norm()) <= FLAT
    delta = point.detach() @ scaled.T
    found = average.B + (delta if basis is None else basis @ delta)
    if not lam:
        image = Factors(average.A, found)
        share = inner(ideal, image) / (norm(image) ** 2 or 1.0)
        found = found * (share if share > 0 else 1.0)
    if float(found.norm()) <= (most := FAR * float(ideal.B.norm())):
        return found - average.B, flat
    return (start if float((average.B + start).norm()) <= most else torch.zeros_like(start)), False
