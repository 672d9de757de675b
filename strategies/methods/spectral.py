"""Spectral denoising: the ideal update, cut where its singular values stop standing out from noise.

``screenot``, the default, is ScreeNOT (Donoho, Gavish, Romanov, Annals of Statistics 2023, arXiv 2009.12297), the
optimal hard threshold for a low-rank matrix under noise of unknown level and correlations. The noise is read off the
spectrum of ΔW itself, which but for its largest values, `bound` of them, imputed from as many below, is that of noise.
ΔW is d×k with R = Σ r_i components at most: the other min(d, k) − R singular values are zeros, and need no matrix.

``median`` is ω(β) times the median singular value, optimal under white noise (Gavish & Donoho 2014, arXiv 1305.5870),
β = m/n for an m×n matrix, m ≤ n: 2.858 for a square one, 1.41 for a flat one. ΔW is no white matrix but the product of
a d×R and an R×k one, with as many singular values as the smallest of the three sizes m₁ ≤ m₂ ≤ m₃. Of such a product of
Gaussian matrices the squared singular values have a relative variance of m₁/m₂ + m₁/m₃, and those of a white matrix one
of β. So β is that, 1 at most. The spectrum of clients' updates falls steeply: half of its components are as good as
none, the median is far below what noise there is, and this rule keeps two to three times what ScreeNOT does.

Capped at the global rank; what is cut is handled as in florist.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from fedinit.config.checks import at_least, positive, refuse_unread
from strategies.methods.florist import Cut


@dataclass(frozen=True, kw_only=True)
class Spectral(Cut):
    """rule: ``screenot`` or ``median``, see above.
    bound: of ScreeNOT, how many components may be signal at most, its k; None: a quarter of them.
    threshold: the multiple of the median singular value below which a component is noise, instead of the rule's; None:
        the rule's.
    """

    rule: Literal["screenot", "median"] = "screenot"
    bound: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.bound is not None:
            at_least("strategy.bound", self.bound, 1)
        if self.threshold is not None:
            positive("strategy.threshold", self.threshold)
            refuse_unread("strategy", self, ("rule", "bound"), "with strategy.threshold, which is there instead")
        elif self.rule != "screenot":
            refuse_unread("strategy", self, ("bound",), f"with strategy.rule={self.rule}, but with screenot")

    def kept(self, S: Tensor, sizes: tuple[int, int, int]) -> int:
        alive = S[S > S[0] * 1e-12]
        if self.threshold is not None:
            least = self.threshold * float(alive.median()) if len(alive) else 0.0
        elif self.rule == "median":
            least = omega(spread(sizes)) * float(alive.median()) if len(alive) else 0.0
        else:
            bound = len(alive) // 4 if self.bound is None else self.bound
            least = screenot(alive, sizes[0], sizes[1], max(bound, 1))
        return max(int((alive > least).sum()), 1)


def screenot(S: Tensor, d: int, k: int, bound: int) -> float:
    """ScreeNOT's threshold for the singular values of a (d, k) matrix: the y above the noise with y D′(y)/D(y) = −4.

    S: (n,) its values above zero, falling, in float64; the other min(d, k) − n are zero.
    bound: how many of them may be signal, at most; (n − 1)/2 at most is used, and of fewer than three values none is
        noise, so the threshold is zero.

    D(y) = φ(y)·(γφ(y) + (1 − γ)/y), φ(y) the mean of y/(y² − z²) over the noise's values z, γ = min(d, k)/max(d, k).
    The z are S, with its first `bound` values imputed from as many below them as if the noise ended in an edge.
    """
    bound = min(bound, (len(S) - 1) // 2)
    if bound < 1:
        return 0.0
    z, count, gamma = S.clone(), min(d, k), min(d, k) / max(d, k)
    edge = torch.arange(bound, dtype=S.dtype) / bound
    z[:bound] = S[bound] + (1 - edge ** (2 / 3)) / (2 ** (2 / 3) - 1) * (S[bound] - S[2 * bound])

    def slope(y: float) -> float:
        gap = y * y - z.square()
        phi = float((y / gap).sum() + (count - len(z)) / y) / count
        falls = -float(((y * y + z.square()) / gap.square()).sum() + (count - len(z)) / y**2) / count
        return y * (falls / phi + (gamma * falls - (1 - gamma) / y**2) / (gamma * phi + (1 - gamma) / y))

    low, high = float(z.max()), 2 * float(z.max())
    while slope(high) < -4:  # it rises, from −∞ at the largest z to −2
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < -4 else (low, middle)
    return high


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
