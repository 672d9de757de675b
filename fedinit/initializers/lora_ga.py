"""LoRA-GA: the first step of A and B together moves the weight as a step of full fine-tuning would.

Wang, Yu, Li, 2024, arXiv 2407.05000. With G = U S Vᵀ, A = V_{1:r}ᵀ and B = U_{r+1:2r}: after one step from there the
product moves along G AᵀA + BBᵀG, which is the best approximation of G of rank 2r. The base gives up s·B A, so the model
stays as it was. Needs 2r ≤ min(d, k).

The variant `peft` is what PEFT 0.21 does, which is another start: B also carries the singular values S_{r+1:2r}, and
where the paper and its code multiply both factors, only B (`gd` excepted) is. As gradients are small, so is that B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedinit.config.checks import positive, refuse_unread
from fedinit.factors import Factors
from fedinit.initializers.from_gradients import FromGradients
from fedinit.initializers.initializer import InitContext
from fedinit.spectra import Spectrum


@dataclass(frozen=True, kw_only=True)
class LoRAGA(FromGradients):
    """The start from 2r components of the gradient.

    variant: ``paper``, or ``peft``, where B carries S_{r+1:2r} too and only B is multiplied by `size`.
    size: what the orthonormal factors are multiplied by. ``stable``: d^¼/√γ. ``gd``: 1/s, on both factors in either
        variant. ``unit``: 1. ``weightS``: the mean of √(σ_i(W0)/s) over the r largest singular values of the weight; in
        the variant `peft` σ_1(W0)/S_{r+1}.
    gamma: γ of ``stable``.
    """

    key: ClassVar[str] = "lora_ga"
    components: ClassVar[int] = 2

    variant: Literal["paper", "peft"] = "paper"
    size: Literal["stable", "gd", "unit", "weightS"] = "stable"
    gamma: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("init.gamma", self.gamma)
        if self.size != "stable":
            refuse_unread("init", self, ("gamma",), f"with init.size={self.size}, but with stable")

    @property
    def takes_out(self) -> bool:
        return True

    def start_of(self, spectrum: Spectrum, name: str, context: InitContext) -> Factors:
        r = context.rank
        A, B = spectrum.cut(0, r).Vh, spectrum.cut(r, 2 * r).U
        if self.variant == "peft":
            B = B * spectrum.S[r:]
        on_a, on_b = self._sizes(spectrum, name, context)
        return Factors((self.scale * on_a * A).float().contiguous(), (self.scale * on_b * B).float().contiguous())

    def _sizes(self, spectrum: Spectrum, name: str, context: InitContext) -> tuple[float, float]:
        """(what A is multiplied by, what B is multiplied by), init.scale left out. Raises ValueError for `weightS`
        without the weights."""
        both, peft = 1.0, self.variant == "peft"
        if self.size == "stable":
            both = len(spectrum.U) ** 0.25 / self.gamma**0.5
        elif self.size == "gd":
            return 1 / context.scale, 1 / context.scale
        elif self.size == "weightS":
            if context.weight is None:
                raise ValueError("init.size=weightS is made from the frozen weights, and there are none")
            sizes = torch.linalg.svdvals(context.weight(name).double())
            tail = float(spectrum.S[context.rank])
            if peft:
                both = float(sizes[0]) / tail if tail > 0 else 1.0
            else:
                both = float((sizes[: context.rank] / context.scale).sqrt().mean())
        return (1.0 if peft else both), both
