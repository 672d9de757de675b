"""LoRA-FAIR's corrected B̄′ = B̄ + ΔB in closed form, of all layers of a shape at once, from their moments and B̄.

The letters are those of Moments: d×r matrices of L layers are (L, d, r).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from strategies.methods.fair_cosine import Axes, cosine_fit
from strategies.methods.fair_moments import Moments


def cosine_correction(known: Moments, B: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """B̄ + ΔB of the least 1 − cos(ΔW, (B̄ + ΔB)Ā) + λ‖ΔB‖², λ > 0, for B̄ (L, d, r), and whether it is a minimum
    (`cosine_fit`), (L,)."""
    fitted, done = fit_axes(replace(known, M=known.turned), B @ known.V, lam)
    return fitted @ known.V.mT, done


def fit_axes(known: Moments, B: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """The same where G = diag(g), g ascending or not, whatever V is. Columns with no g stay as they are."""
    kept = known.alive & (known.size > 0)[:, None]
    posed = kept.any(1)
    if not posed.any():
        return B, ~posed
    g, M = known.g, known.M
    axes = torch.stack([g, M.square().sum(1), (M * B).sum(1), B.square().sum(1)])
    axes = torch.where(kept, axes, 0.0)[:, posed]  # an axis of zeros counts for nothing
    size, (gs, ms, xs, bs) = known.size[posed].numpy(), axes.numpy()
    # Below this λ the minimiser moves no more: it is MG⁺, as long as ⟨MG⁺, B̄⟩ has it.
    fit = cosine_fit(Axes(gs, ms, xs, bs, size), np.maximum(lam, 1e-40 * gs.max(1) / size**2))
    w, p, done = g.new_zeros(len(g)), g.new_zeros(len(g)), ~posed
    w[posed], p[posed], done[posed] = (torch.from_numpy(found) for found in (fit.w, fit.p, fit.converged))
    w, p, g = w[:, None, None], p[:, None, None], g[:, None]
    moved = (w * (M - B * g) + (p - w) * M) / (1 + w * g)  # ΔB; nought where M = B̄G
    return torch.where(kept[:, None], B + moved, B), done


def ridge_correction(known: Moments, B: Tensor, lam: Tensor | float) -> Tensor:
    """ΔB = (M − B G)(G + λI)⁺ for B (L, d, r) and λ, one or (L,).

    By the eigenvectors of G. In those of no g nothing moves: M and B G are zero there but for rounding, which a small λ
    would make large. So a rank-deficient Ā (zero padding) gives the least-norm solution.
    """
    left = known.turned - (B @ known.V) * known.g[:, None]
    return (left * known.inverse(lam)[:, None]) @ known.V.mT


def near_the_least(known: Moments, B: Tensor, delta: Tensor, lam: float) -> bool:
    """Whether 1 − cos(ΔW, (B̄ + ΔB)Ā) + λ‖ΔB‖² of the one layer is within 1 % of its least value, or 1e-12; not where it
    has none."""
    size = float(known.size)

    def loss(corrected: Tensor) -> float:
        n = float(((corrected @ known.V).square() * known.g[:, None]).sum().clamp(min=0).sqrt())
        cosine = float((known.M * corrected).sum()) / (size * n) if n else 0.0
        return 1 - cosine + lam * float((corrected - B).square().sum())

    if not size:
        return True
    least, exists = cosine_correction(known, B, lam) if lam else (B + ridge_correction(known, B, 0.0), True)
    return bool(exists) and loss(B + delta) <= 1.01 * loss(least) + 1e-12
