"""MiCA: the minor left singular vectors of the weight as a B that stays frozen, A = 0.

arXiv 2604.01694. With W0 = U S Vᵀ, B is the last r columns of U, the most minor one first, so that clients of lower
rank get those. The model stays as it was, and nothing leaves the base. Frozen B makes the average of A exact: under
strategy=ffa_lora strategy.frozen=B this is FFA-LoRA with the roles of the factors turned round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.factors import Factors
from fedinit.initializers.from_weights import FromWeights
from fedinit.spectra import matrix_spectrum


@dataclass(frozen=True, kw_only=True)
class MiCA(FromWeights):
    """B = the last r columns of U, the most minor first; A = 0."""

    @property
    def zero(self) -> str:
        return "A"

    def split(self, weight: Tensor, rank: int, scale: float) -> Factors:
        minor = matrix_spectrum(weight).U[:, -rank:].flip(1)
        return Factors(torch.zeros(rank, weight.shape[1], dtype=torch.float64), minor)
