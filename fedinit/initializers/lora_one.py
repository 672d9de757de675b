"""LoRA-One: the adapter starts as one step of gradient descent on the weight, the best one of rank r.

Zhang, Liu, Chen, 2025, arXiv 2502.01235. With −G = U S Vᵀ, B = U_r √S_r/√γ and A = √S_r V_rᵀ/√γ, balanced; the base
stays W0, so the model starts at W0 − (s/γ)·best_r(G) and is no longer the pretrained one. The public code divides both
factors by √S_1 besides (`normalize=sigma1`), which makes the start's size independent of the loss's; its README has S
on both factors in place of √S, which contradicts both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedinit.config.checks import positive
from fedinit.factors import Factors
from fedinit.initializers.from_gradients import FromGradients
from fedinit.initializers.initializer import InitContext
from fedinit.spectra import Spectrum


@dataclass(frozen=True, kw_only=True)
class LoRAOne(FromGradients):
    """The start from r components of −G.

    A component without a gradient has a zero column of B, and its row of A is as large as the strongest component's, so
    that it can learn.

    normalize: ``sigma1`` divides both factors by √S_1 besides, ``none`` does not.
    gamma: γ; the step's learning rate is s/γ, or s/(γ S_1) with `normalize=sigma1`.
    """

    key: ClassVar[str] = "lora_one"

    normalize: Literal["none", "sigma1"] = "sigma1"
    gamma: float = 128.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("init.gamma", self.gamma)

    def decompose(self, gradient: Tensor | Factors) -> Spectrum:
        spectrum = super().decompose(gradient)
        return Spectrum(-spectrum.U, spectrum.S, spectrum.Vh)

    def start_of(self, spectrum: Spectrum, name: str, context: InitContext) -> Factors:
        unit = self.gamma * (spectrum.S[0] if self.normalize == "sigma1" else 1.0)
        half = (spectrum.S / unit).sqrt()
        on_a = half.where(spectrum.S > 0, half[0])
        A, B = self.scale * on_a[:, None] * spectrum.Vh, self.scale * half * spectrum.U
        return Factors(A.float().contiguous(), B.float().contiguous())
