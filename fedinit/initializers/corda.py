"""CorDA: the components of the weight as the inputs see it, W0 C, as the adapter.

Yang et al., NeurIPS 2024, arXiv 2406.05223. With C̃ = C + δ·I and W0 C̃ = U S Vᵀ, B = U_r √(S_r/s) and
A = √(S_r/s) V_rᵀ C̃⁻¹ of the first r components (``ipm``, instruction-previewed: the adapter is what the inputs use
most) or of the last r (``kpm``, knowledge-preserved: what they use least). The base gives up s·BA, and the model stays
as it was.

The authors' code and PEFT divide every batch by its largest entry before they sum, so that C depends on what was in a
batch with what; here C is the plain second moment, the same for any split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fedinit.config.checks import positive
from fedinit.factors import Factors
from fedinit.initializers.from_covariance import FromCovariance
from fedinit.initializers.from_weights import share
from fedinit.spectra import matrix_spectrum

CLOSE = 0.05  # ‖C̃C̃⁻¹ − I‖_F of an inverse that is good enough: the authors'


@dataclass(frozen=True, kw_only=True)
class CorDA(FromCovariance):
    """The start from W0 C̃.

    mode: ``ipm`` takes the first r components as the adapter, ``kpm`` the last r.
    damping: δ to begin with, in units of the mean of C's diagonal. It is doubled until C̃ is positive definite, which
        noise on the statistic may keep it from, and its inverse is good; the notes name the layers where it was.
    """

    mode: Literal["ipm", "kpm"] = "ipm"
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("init.damping", self.damping)

    @property
    def takes_out(self) -> bool:
        return True

    def split(self, weight: Tensor, moment: Tensor, rank: int, scale: float) -> tuple[Factors, dict[str, Any]]:
        damped, inverse, damping = invert(moment, self.damping)
        spectrum = matrix_spectrum(weight @ damped)
        low = 0 if self.mode == "ipm" else len(spectrum.S) - rank
        factors = share(spectrum.cut(low, low + rank), scale, float(spectrum.S[0]))
        return Factors(factors.A @ inverse, factors.B), {} if damping == self.damping else {"damping": damping}


def invert(moment: Tensor, damping: float) -> tuple[Tensor, Tensor, float]:
    """(C̃ = C + δ·I, C̃⁻¹, δ), for the least δ = damping·2ⁿ at which C̃ is positive definite and C̃C̃⁻¹ − I within CLOSE.

    moment: C, (k, k) in float64.
    """
    identity = torch.eye(len(moment), dtype=moment.dtype)
    while True:
        damped = moment + damping * identity
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            if float((damped @ inverse - identity).norm()) < CLOSE:
                return damped, inverse, damping
        damping *= 2
