"""LoRA-XS: the frozen weight's own leading directions as A and B, and a small random core R between them.

Bałazy et al., 2024, arXiv 2405.17604. With W0 = U S Vᵀ, B = U_r S_r and A = V_rᵀ stay frozen and only R (r, r), drawn
from N(0, std²), is trained: the product is B R A. The public code has the singular values on A instead, which scales
R's gradient from the other side (`sigma_side=A`). The server computes it once and sends it, since two machines may
choose other signs; here the largest entry of each row of Vᵀ is positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedinit.adapters.core import CoreFactors
from fedinit.config.checks import within
from fedinit.initializers.initializer import LayerWise
from fedinit.spectra import matrix_spectrum


@dataclass(frozen=True, kw_only=True)
class LoRAXS(LayerWise):
    """The start with W0's leading directions around a drawn core.

    sigma_side: which factor carries the singular values S_r.
    std: standard deviation of the entries of R; the paper's 1e-5 changes the model hardly, 0 not at all.
    """

    cores: ClassVar[bool] = True

    sigma_side: Literal["A", "B"] = "B"
    std: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        within("init.std", self.std, 0, float("inf"), open_high=True)

    @property
    def zero(self) -> str:
        """A core of zero, multiplied into B, makes B zero."""
        return "" if self.std else "B"

    def draw(self, d: int, k: int, rank: int, generator: torch.Generator, weight: Tensor | None) -> CoreFactors:
        """Raises ValueError without the weight."""
        if weight is None:
            raise ValueError("init=lora_xs is made from the frozen weights, and start() was given none")
        spectrum = matrix_spectrum(weight)
        A, B, S = spectrum.Vh[:rank], spectrum.U[:, :rank], spectrum.S[:rank]
        A, B = (A * S[:, None], B) if self.sigma_side == "A" else (A, B * S)
        R = self.std * torch.randn(rank, rank, generator=generator)
        return CoreFactors(A.float().contiguous(), B.float().contiguous(), R)
