"""Centred clipping: changes are clipped to a ball about a centre, which moves with what was let through.

Karimireddy, He and Jaggi, ICML 2021, arXiv 2012.10333, Algorithm 2: v ← v + Σ p_i (U_i − v)·min(1, τ/‖U_i − v‖). The
centre begins at zero change, the last global model; with one iteration this is norm bounding (bounded.py). The radius
is in medians of the round's lengths, where the paper's is a constant. Its workers also send momenta; here clients send
what they trained, so what the paper says of attacks over many rounds is not had.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.config.checks import at_least, positive
from strategies.robust.contract import Changes, Robust, shrink


@dataclass(frozen=True, kw_only=True)
class CenteredClipping(Robust):
    """tau: τ, the radius, in medians of the round's lengths. iterations: how often the centre moves."""

    tau: float = 0.5
    iterations: int = 5

    def __post_init__(self) -> None:
        positive("robust.tau", self.tau)
        at_least("robust.iterations", self.iterations, 1)

    def weigh(self, changes: Changes) -> Tensor:
        shares, radius = changes.shares, self.tau * changes.median_norm
        center = torch.zeros_like(shares)
        for _ in range(self.iterations):
            let = shares * shrink(changes.distances(center), radius)
            center = (1 - let.sum()) * center + let
        return center
