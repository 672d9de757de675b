"""Geometric median: the point with the least sum of distances, not of their squares, to the clients' changes.

RFA, Pillutla, Kakade and Harchaoui, IEEE TSP 2022, arXiv 1912.13445, Algorithm 2: min_v Σ p_i ‖v − U_i‖ by the smoothed
Weiszfeld iteration, v ← Σ w_i U_i with w_i ∝ p_i / max(ν, ‖v − U_i‖), from the mean. v stays a combination of the
changes, so all is done on their inner products. Half of the weight may lie anywhere without moving v beyond a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedinit.config.checks import at_least, positive
from strategies.robust.contract import Changes, Robust


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Robust):
    """iterations: of Weiszfeld's rule; the paper finds a few enough.
    nu: ν, the least distance that is divided by, in medians of the round's lengths."""

    iterations: int = 32
    nu: float = 1e-6

    def __post_init__(self) -> None:
        at_least("robust.iterations", self.iterations, 1)
        positive("robust.nu", self.nu)

    def weigh(self, changes: Changes) -> Tensor:
        floor = self.nu * (changes.median_norm or 1.0)
        weights = shares = changes.shares
        for _ in range(self.iterations):
            weights = shares / changes.distances(weights).clamp(min=floor)
            weights = weights / weights.sum()
        return weights
