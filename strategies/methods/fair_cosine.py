"""The minimiser of LoRA-FAIR's own objective, f(X) = 1 − cos(ΔW, XĀ) + λ‖X − B̄‖² over X = B̄ + ΔB, by one equation.

With M = ΔWĀᵀ, G = ĀĀᵀ, N = ‖ΔW‖ and n² = ⟨XG, X⟩ = ‖XĀ‖², the gradient is −M/(Nn) + cos·XG/n² + 2λ(X − B̄). It is
zero where, for p = 1/(2λNn) and w = cos/(2λn²),

    X = (pM + B̄)(I + wG)⁻¹.

In the eigenvectors of G every norm in this is a sum over r numbers. Inserting X in cos·N·n = ⟨M, X⟩ gives p for each
w > 0 as the one positive root of a quadratic, so that 2λNpn = 1 is left, an equation in w alone. At p = w = 1/(2λN²) X
is the ridge solution of ‖ΔW − XĀ‖² + 2λN²‖X − B̄‖², which is where the search starts; a second root is rare, and the
lower f is taken.

The equation has no root where the direction of the best cosine, MG⁺, turns away from B̄: f then falls all the way to a
product of zero, and has no minimum. Nor has it one where B̄ itself turns away from M and λ is so large that it has to
stay there. `cosine_fit` says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TRIED = np.linspace(-12.0, 12.0, 25)  # log10 of w over the ridge's
STEPS, ACCURACY = 60, 1e-13  # of log w between two of these; a search takes six or so
NOUGHT = 1e-300  # for a divisor of zero


@dataclass(frozen=True)
class Axes:
    """What f depends on, in axes v_j that G = Σ g_j v_j v_jᵀ is diagonal in; one number an axis in each.

    g: g_j > 0. m: ‖M v_j‖². x: ⟨M v_j, B̄ v_j⟩. b: ‖B̄ v_j‖². ideal: N = ‖ΔW‖ > 0.

    w and p are arrays of any length below, and so is what comes back.
    """

    g: np.ndarray
    m: np.ndarray
    x: np.ndarray
    b: np.ndarray
    ideal: float

    def on_curve(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p at w > 0, and n² = ‖XĀ‖² there: p is the positive root of
        Σ m/(1+wg)²·p² + Σ x(1−wg)/(1+wg)²·p − w·Σ gb/(1+wg)² = 0."""
        inverse = 1 / (1 + w[:, None] * self.g)
        a, x, gb, gm, gx = (
            inverse**2 @ np.stack([self.m, self.x, *(self.g * v for v in (self.b, self.m, self.x))]).T
        ).T
        half = x - inverse @ self.x / 2  # (1 − wg)/(1 + wg)² is 2/(1 + wg)² − 1/(1 + wg)
        wide = np.abs(half) + np.sqrt(half**2 + a * w * gb)  # of the root's two forms the one without cancellation
        p = np.where(half > 0, w * gb / np.maximum(wide, NOUGHT), wide / np.maximum(a, NOUGHT))
        return p, np.maximum(p * p * gm + 2 * p * gx + gb, 0)

    def excess(self, w: np.ndarray, lam: float) -> np.ndarray:
        """log(2λNpn), which a stationary point of f has zero of. Its slope in log w is near 1."""
        p, size2 = self.on_curve(w)
        return np.log(np.maximum(2 * lam * self.ideal * p * np.sqrt(size2), NOUGHT))

    def objective(self, p: np.ndarray, w: np.ndarray, lam: float) -> np.ndarray:
        """f at X = (pM + B̄)(I + wG)⁻¹, with a cosine of 0 where XĀ is zero."""
        p, wg = p[:, None], w[:, None] * self.g
        dots = ((p * self.m + self.x) / (1 + wg)).sum(1)
        size2 = (self.g * (p * p * self.m + 2 * p * self.x + self.b) / (1 + wg) ** 2).sum(1).clip(min=0)
        moved2 = ((p * p * self.m - 2 * p * wg * self.x + wg * wg * self.b) / (1 + wg) ** 2).sum(1).clip(min=0)
        return 1 - dots / np.maximum(self.ideal * np.sqrt(size2), NOUGHT) + lam * moved2


@dataclass(frozen=True)
class Fit:
    """X = (pM + B̄)(I + wG)⁻¹. converged: whether it is a minimum of f; f has none where it is not."""

    p: float
    w: float
    converged: bool


def cosine_fit(axes: Axes, lam: float) -> Fit:
    """The minimiser of f, for λ > 0; where f has no minimum, the better of the ridge solution and B̄ itself."""
    ridge = 1 / (2 * lam * axes.ideal**2)
    tried = ridge * 10**TRIED
    value = axes.excess(tried, lam)
    rising = np.nonzero((value[:-1] < 0) & (value[1:] >= 0))[0]
    roots = np.array([_root(axes, lam, tried[i : i + 2], value[i : i + 2]) for i in rising])
    w = roots if len(roots) else np.array([ridge, 0.0])
    p = axes.on_curve(roots)[0] if len(roots) else w
    best = 0 if len(w) == 1 else int(axes.objective(p, w, lam).argmin())
    return Fit(float(p[best]), float(w[best]), bool(len(roots)))


def _root(axes: Axes, lam: float, bracket: np.ndarray, values: np.ndarray) -> float:
    """w with `excess` zero, between the two of the bracket, where it is below zero and not below: the secant method in
    log w, and a bisection where that leaves the bracket."""
    low, high = np.log(bracket)
    before, y, former, value = low, high, values[0], values[1]
    for _ in range(STEPS):
        moved = y - value * (y - before) / (value - former) if value != former else math.nan
        moved = moved if low <= moved <= high else (low + high) / 2
        before, y, former = y, moved, value
        if abs(y - before) <= ACCURACY * max(1.0, abs(y)):
            break
        value = axes.excess(np.exp([y]), lam)[0]
        low, high = (y, high) if value < 0 else (low, y)
    return math.exp(y)
