"""LoRA-Null: an adapter in the directions that the inputs leave empty, so that what the model knows stays.

Tang et al., 2025, arXiv 2503.02659. U_n are the r directions with the least of the inputs, P = U_nU_nᵀ and
W0 P = U S Vᵀ. ``v1``: B = U_r √(S_r/s) and A = √(S_r/s) V_rᵀ, so s·BA = W0 P, and the base gives it up. ``v2``:
A = V_rᵀ, an orthonormal basis of the same directions, and B = 0 over the untouched base; a frozen A (strategy=ffa_lora)
keeps every update among them. The model stays as it was. Where more than r directions are empty to float64's rounding,
as of inputs that are zero, that rounding would choose U_n; there all of them are U_n, and of W0 P the r largest
components are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fedinit.factors import Factors
from fedinit.initializers.from_covariance import FromCovariance, emptiest
from fedinit.initializers.from_weights import share
from fedinit.spectra import spectrum


@dataclass(frozen=True, kw_only=True)
class LoRANull(FromCovariance):
    """The start in the directions that the inputs leave empty.

    variant: ``v1`` takes W0 P out of the base and into the adapter; ``v2`` has A in these directions, B = 0, and leaves
        the base alone.
    """

    variant: Literal["v1", "v2"] = "v1"

    @property
    def takes_out(self) -> bool:
        return self.variant == "v1"

    def split(self, weight: Tensor, moment: Tensor, rank: int, scale: float) -> tuple[Factors, dict[str, Any]]:
        directions, empty = emptiest(moment, rank)
        projected = spectrum(Factors(directions.T, weight @ directions))  # of W0 P
        part = projected.cut(0, rank)
        notes = {"empty_directions": empty} if empty > rank else {}
        if self.takes_out:
            return share(part, scale, float(projected.S[0])), notes
        return Factors(part.Vh, torch.zeros(len(weight), rank, dtype=weight.dtype)), notes
