"""Spectral denoising: the ideal update, cut where its singular values stop standing out from noise.

The optimal hard threshold for singular values of a matrix under white noise of unknown level is ω(β) times their median
(Gavish & Donoho 2014, arXiv 1305.5870), β = m/n for an m×n matrix, m ≤ n: 2.858 for a square one, 1.41 for a flat one.

ΔW is no white matrix but the product of a d×R and an R×k one, R = Σ r_i, with as many singular values as the smallest
of the three sizes m₁ ≤ m₂ ≤ m₃. Of such a product of Gaussian matrices the squared singular values have a relative
variance of m₁/m₂ + m₁/m₃, and those of a white matrix one of β. So β is that, 1 at most: min(d, k)/max(d, k), the white
matrix, where R is large; small where R is. The core of the QR factorisations, square as it is, has the singular values
of the product, and not those of a white square matrix.

Capped at the global rank; what is cut is handled as in florist.py. ScreeNOT (Donoho et al. 2023), which allows for
correlated noise, needs the full spectrum of a d×k noise matrix; a sum of low-rank products has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fedinit.config.checks import positive
from strategies.methods.florist import Cut


@dataclass(frozen=True, kw_only=True)
class Spectral(Cut):
    """threshold: the multiple of the median singular value below which a component is noise; None: ω(β)."""

    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            positive("strategy.threshold", self.threshold)

    def kept(self, S: Tensor, sizes: tuple[int, int, int]) -> int:
        alive = S[S > S[0] * 1e-12]
        threshold = omega(spread(sizes)) if self.threshold is None else self.threshold
        return max(int((alive > threshold * alive.median()).sum()), 1) if len(alive) else 1


def spread(sizes: tuple[int, int, int]) -> float:
    """β of the white matrix whose singular values are spread as those of a d×R times an R×k one; sizes: (d, k, R)."""
    low, middle, high = sorted(sizes)
    return min(1.0, low / middle + low / high)


@lru_cache
def omega(beta: float) -> float:
    """ω(β) = λ(β)/√μ(β), 0 < β ≤ 1, to 1e-4: the optimal threshold for noise of a known level over the median singular
    value of that noise.

    λ(β)² = 2(β + 1) + 8β/(β + 1 + √(β² + 14β + 1)); μ(β) is the median of the Marchenko–Pastur law, whose density is
    √((b − x)(x − a))/(2πβx) between a, b = (1 ∓ √β)².
    """
    lam2 = 2 * (beta + 1) + 8 * beta / (beta + 1 + (beta**2 + 14 * beta + 1) ** 0.5)
    # x = 1 + β + 2√β·sin θ, at the middles of the steps: the density is infinite at x = 0, which β = 1 reaches.
    theta = torch.pi * ((torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16) - 0.5)
    x = 1 + beta + 2 * beta**0.5 * theta.sin()
    mass = (theta.cos().square() / x).cumsum(0)
    return float((lam2 / x[torch.searchsorted(mass, mass[-1] / 2)]).sqrt())
