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

from dataclasses import dataclass
from functools import cached_property

import numpy as np

TRIED = np.linspace(-12.0, 12.0, 25)  # log10 of w over the ridge's
STEPS, ACCURACY = 60, 1e-13  # of log w between two of these; a search takes six or so
NOUGHT = 1e-300  # for a divisor of zero


@dataclass(frozen=True)
class Axes:
    """What f of each of L problems depends on, in axes v_j that G = Σ g_j v_j v_jᵀ is diagonal in; (L, r) each. An axis
    of zeros counts for nothing.

    g: g_j ≥ 0. m: ‖M v_j‖². x: ⟨M v_j, B̄ v_j⟩. b: ‖B̄ v_j‖². ideal: N = ‖ΔW‖ > 0, (L,).

    w and p are (L, n) below for any n, and so is what comes back; λ is (L,).
    """

    g: np.ndarray
    m: np.ndarray
    x: np.ndarray
    b: np.ndarray
    ideal: np.ndarray

    def of(self, rows: np.ndarray) -> Axes:
        """Those of these problems, some of them perhaps several times."""
        return Axes(*(values[rows] for values in (self.g, self.m, self.x, self.b, self.ideal)))

    @cached_property
    def _weights(self) -> np.ndarray:
        """(L, r, 5)"""
        return np.stack([self.m, self.x, *(self.g * v for v in (self.b, self.m, self.x))], axis=-1)

    def on_curve(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p at w > 0, and n² = ‖XĀ‖² there: p is the positive root of
        Σ m/(1+wg)²·p² + Σ x(1−wg)/(1+wg)²·p − w·Σ gb/(1+wg)² = 0."""
        inverse = 1 / (1 + w[..., None] * self.g[:, None])  # (L, n, r)
        a, x, gb, gm, gx = np.moveaxis(inverse**2 @ self._weights, -1, 0)
        half = x - (inverse @ self.x[..., None])[..., 0] / 2  # (1 − wg)/(1 + wg)² is 2/(1 + wg)² − 1/(1 + wg)
        wide = np.abs(half) + np.sqrt(half**2 + a * w * gb)  # of the root's two forms the one without cancellation
        p = np.where(half > 0, w * gb / np.maximum(wide, NOUGHT), wide / np.maximum(a, NOUGHT))
        return p, np.maximum(p * p * gm + 2 * p * gx + gb, 0)

    def excess(self, w: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """log(2λNpn), which a stationary point of f has zero of. Its slope in log w is near 1."""
        p, size2 = self.on_curve(w)
        return np.log(np.maximum((2 * lam * self.ideal)[:, None] * p * np.sqrt(size2), NOUGHT))

    def objective(self, p: np.ndarray, w: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """f at X = (pM + B̄)(I + wG)⁻¹, with a cosine of 0 where XĀ is zero."""
        g, m, x, b = (values[:, None] for values in (self.g, self.m, self.x, self.b))
        p, wg = p[..., None], w[..., None] * g
        dots = ((p * m + x) / (1 + wg)).sum(-1)
        size2 = (g * (p * p * m + 2 * p * x + b) / (1 + wg) ** 2).sum(-1).clip(min=0)
        moved2 = ((p * p * m - 2 * p * wg * x + wg * wg * b) / (1 + wg) ** 2).sum(-1).clip(min=0)
        return 1 - dots / np.maximum(self.ideal[:, None] * np.sqrt(size2), NOUGHT) + lam[:, None] * moved2


@dataclass(frozen=True)
class Fit:
    """X = (pM + B̄)(I + wG)⁻¹ of each problem; (L,) each.

    converged: whether it is a minimum of f; f has none where it is not."""

    p: np.ndarray
    w: np.ndarray
    converged: np.ndarray


@np.errstate(over="ignore", invalid="ignore")  # of sizes that float64 does not hold squared: the round says so
def cosine_fit(axes: Axes, lam: np.ndarray) -> Fit:
    """The minimisers of f, for λ > 0; where f has no minimum, the better of the ridge solution and B̄ itself."""
    ridge = 1 / (2 * lam * axes.ideal**2)
    tried = ridge[:, None] * 10**TRIED
    value = axes.excess(tried, lam)
    problem, at = np.nonzero((value[:, :-1] < 0) & (value[:, 1:] >= 0))
    ends = np.stack([at, at + 1])
    w = _roots(axes.of(problem), lam[problem], np.log(tried[problem, ends]), value[problem, ends])
    p = axes.of(problem).on_curve(w[:, None])[0][:, 0]
    rootless = np.setdiff1d(np.arange(len(lam)), problem)
    nought = np.zeros(len(rootless))
    # Whatever may be the one of a problem: its roots, or where it has none w = p of the ridge solution and of B̄.
    problem = np.concatenate([problem, rootless, rootless])
    w, p = (np.concatenate([values, ridge[rootless], nought]) for values in (w, p))
    loss = axes.of(problem).objective(p[:, None], w[:, None], lam[problem])[:, 0]
    order = np.lexsort((loss, problem))
    best = order[np.unique(problem[order], return_index=True)[1]]
    return Fit(p[best], w[best], ~np.isin(np.arange(len(lam)), rootless))


def _roots(axes: Axes, lam: np.ndarray, bracket: np.ndarray, values: np.ndarray) -> np.ndarray:
    """w of each problem with `excess` zero, (L,), between the two log w of its bracket (2, L), at which it is below
    zero and not below: the secant method in log w, and a bisection where that leaves the bracket."""
    low, high = bracket
    before, y, former, value = low, high, *values
    done = np.zeros(len(lam), bool)
    for _ in range(STEPS):
        if done.all():
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            secant = y - value * (y - before) / (value - former)
        moved = np.where((low <= secant) & (secant <= high), secant, (low + high) / 2)
        before, y, former = np.where(done, before, y), np.where(done, y, moved), np.where(done, former, value)
        done = done | (np.abs(y - before) <= ACCURACY * np.maximum(1.0, np.abs(y)))
        value = np.where(done, value, axes.excess(np.exp(y)[:, None], lam)[:, 0])
        low, high = np.where(~done & (value < 0), y, low), np.where(~done & (value >= 0), y, high)
    return np.exp(y)
