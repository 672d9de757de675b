"""OLoRA: orthonormal columns of B from the QR decomposition of the weight.

Büyükakyüz, 2024, arXiv 2406.01775. With W0 = Q R, B is the first r columns of Q and A the first r rows of R, and the
base gives up s·BA. The model stays as it was. No pivoting: Q_r spans the first r columns of W0, whichever these are, so
BA is no best approximation; and the part taken out grows with s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.factors import Factors
from fedinit.initializers.from_weights import FromWeights
from fedinit.spectra import signs


@dataclass(frozen=True, kw_only=True)
class OLoRA(FromWeights):
    """B = Q_r and A = R_r of W0 = Q R, with the signs of A's rows fixed."""

    @property
    def takes_out(self) -> bool:
        return True

    def split(self, weight: Tensor, rank: int, scale: float) -> Factors:
        exact = weight.to(torch.float64)
        Q = torch.linalg.qr(exact[:, :rank]).Q  # the first r columns of W0's own Q
        A = Q.T @ exact
        sign = signs(A)
        return Factors(A * sign, Q * sign.T)
