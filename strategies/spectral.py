"""Spectral denoising: the ideal update, cut where its singular values stop standing out from noise.

The optimal hard threshold for singular values of a square matrix under white noise of unknown level, 2.858 times the
median singular value (Gavish & Donoho 2014, arXiv 1305.5870, with β = 1), applied to the square core of the stacked
factors, whose Σ r_i singular values are those of ΔW. Capped at the global rank; what is cut is handled as in
florist.py. ScreeNOT (Donoho et al. 2023), which allows for correlated noise, needs the full spectrum of a d×k noise
matrix; a sum of low-rank products has none.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedinit.config import positive
from strategies.florist import Cut


@dataclass(frozen=True, kw_only=True)
class Spectral(Cut):
    """threshold: the multiple of the median singular value below which a component is noise."""

    threshold: float = 2.858

    def __post_init__(self) -> None:
        positive("strategy.threshold", self.threshold)

    def kept(self, S: Tensor) -> int:
        alive = S[S > S[0] * 1e-12]
        return max(int((alive > self.threshold * alive.median()).sum()), 1) if len(alive) else 1
