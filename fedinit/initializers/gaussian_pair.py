"""Both factors drawn, neither zero: the start of the theory of over-parameterised matrix recovery.

With `init.scale` α it is (αA, αB), whose product is α² of the drawn one: the small-initialisation axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedinit.factors import Factors
from fedinit.initializers.initializer import InitContext, LayerWise, taken_out
from fedinit.state.start import StartState


@dataclass(frozen=True, kw_only=True)
class GaussianPair(LayerWise):
    """A ~ N(0, 1/k), B ~ N(0, 1/r): at scale 1 the product of a unit input has unit length a output on average.

    preserve: take the product out of the base, −B0A0, so that the model stays as it was. Theory counts it as part of
    the model.
    """

    random: ClassVar[bool] = True

    preserve: bool = False

    @property
    def takes_out(self) -> bool:
        return self.preserve

    @property
    def zero(self) -> str:
        return ""

    def plan(self, context: InitContext) -> StartState:
        layers = super().plan(context).layers
        return StartState(layers=layers, merge=taken_out(layers) if self.preserve else {})

    def draw(self, d: int, k: int, rank: int, generator: torch.Generator, weight: Tensor | None) -> Factors:
        A = torch.randn(rank, k, generator=generator) * k**-0.5
        return Factors(A, torch.randn(d, rank, generator=generator) * rank**-0.5)
