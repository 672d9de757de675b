"""Bounded: no client's change is longer than a multiple of the median length.

Norm bounding, Sun et al. 2019, arXiv 1911.07963, with the bound taken from the round: c_i = min(1, τ·median/‖U_i‖).
Stops what is loud, and not what has an honest length in a bad direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedinit.config.checks import positive
from strategies.robust.contract import Changes, Robust, shrink


@dataclass(frozen=True, kw_only=True)
class Bounded(Robust):
    """tau: τ, the longest change, in medians of the round's lengths."""

    tau: float = 1.0

    def __post_init__(self) -> None:
        positive("robust.tau", self.tau)

    def weigh(self, changes: Changes) -> Tensor:
        return changes.shares * shrink(changes.norms, self.tau * changes.median_norm)
