"""Random A and B, to be frozen, and a zero core R between them: the model is as it was, and R learns at once.

Ravan's start (Raje et al., NeurIPS 2025, arXiv 2506.05568), and the control that says what a start from weights or
gradients is worth to a method that trains cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedinit.adapters.core import CoreFactors
from fedinit.initializers.initializer import LayerWise


@dataclass(frozen=True, kw_only=True)
class RandomCore(LayerWise):
    """Drawn A and B around R = 0.

    kind: ``orthonormal`` makes the rows of A and the columns of B orthonormal (QR of Gaussian draws), so that no two
        components overlap; ``gaussian`` draws entries N(0, 1/k) and N(0, 1/d), of unit length on average.
    """

    cores: ClassVar[bool] = True
    random: ClassVar[bool] = True

    kind: Literal["orthonormal", "gaussian"] = "orthonormal"

    def draw(self, d: int, k: int, rank: int, generator: torch.Generator, weight: Tensor | None) -> CoreFactors:
        A, B = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (k, d))
        if self.kind == "orthonormal":
            A, B = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q
        else:
            A, B = A * k**-0.5, B * d**-0.5
        return CoreFactors(A.T.float().contiguous(), B.float().contiguous(), torch.zeros(rank, rank))
