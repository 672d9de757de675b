"""LoRA-SB: A and B frozen at the leading directions of the first full step, and the core R trained between them.

Ponkshe et al., 2024, arXiv 2411.19557; its federated form is `strategy=fed_sb`, whose mean of the cores is exact. With
Δ = −η·sign(G), Adam's first step, or −η·G, and Δ = U S Vᵀ: B = U_r, A = V_rᵀ, R = diag(S_r)/s. The base stays W0, so
the model starts at W0 + best_r(Δ), exactly; or, with `r_init=zero`, as it was.

The sign is taken of the gradient of all clients' examples, after they were added up: the mean of the clients' signs is
another matrix. It needs the whole gradient, since a sketch of G says nothing of the sketch of sign(G).

A gradient step on R moves the weight by s² U Uᵀ G V Vᵀ: along the projection of G, the best there is in these factors,
at s² times its length. The papers set s = 1 by α = r; `gauge=projected` divides A and B by √s and multiplies R by s
instead, so that the step is the projection for every s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedinit.adapters.core import CoreFactors
from fedinit.config.checks import positive, refuse_unread
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.initializers.from_gradients import FromGradients
from fedinit.initializers.initializer import InitContext
from fedinit.initializers.random_core import RandomCore
from fedinit.seeding import torch_generator
from fedinit.spectra import Spectrum, matrix_spectrum


@dataclass(frozen=True, kw_only=True)
class LoRASB(FromGradients):
    """The start from r components of the first full step Δ.

    update: Δ is −η·sign(G) for ``sign``, −η·G for ``sgd``.
    eta: η; the sign step has norm η√(dk) a layer, as far as a first step of Adam at that rate goes.
    r_init: R is diag(S_r)/s for ``update``, zero for ``zero``.
    gauge: ``paper`` leaves A and B orthonormal; ``projected`` divides both by √s and multiplies R by s.
    """

    key: ClassVar[str] = "lora_sb"
    cores: ClassVar[bool] = True

    update: Literal["sign", "sgd"] = "sign"
    eta: float = 1e-4
    r_init: Literal["update", "zero"] = "update"
    gauge: Literal["paper", "projected"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("init.eta", self.eta)
        if self.update == "sign" and self.sketch == "sketch":
            raise InputError(
                "init.sketch=sketch: a sketch of the gradient lacks its signs; use init.sketch=exact or init.update=sgd"
            )
        if self.update == "sign":
            refuse_unread("init", self, ("width",), "with init.update=sign, but with sgd")
        if self.r_init == "zero":
            refuse_unread("init", self, ("eta",), "with init.r_init=zero, but with update")

    @property
    def zero(self) -> str:
        """A core of zero, multiplied into B, makes B zero."""
        return "" if self.r_init == "update" else "B"

    def sends_whole(self, targets: Mapping[str, tuple[int, int]]) -> bool:
        return self.update == "sign" or super().sends_whole(targets)

    def decompose(self, gradient: Tensor | Factors) -> Spectrum:
        if self.update == "sign" and isinstance(gradient, Tensor):
            # What float32 cannot tell from zero has no sign, so that rounding cannot choose one.
            floor = torch.finfo(torch.float32).eps * gradient.abs().max()
            return matrix_spectrum(-self.eta * gradient.sign().where(gradient.abs() > floor, 0))
        spectrum = super().decompose(gradient)
        return Spectrum(-spectrum.U, self.eta * spectrum.S, spectrum.Vh)

    def start_of(self, spectrum: Spectrum, name: str, context: InitContext) -> Factors:
        core = torch.diag(spectrum.S if self.r_init == "update" else torch.zeros_like(spectrum.S))
        return self._around(spectrum.Vh, spectrum.U, core, context.scale)

    def replacement(self, context: InitContext, name: str) -> Factors:
        """Random orthonormal factors around a zero core."""
        drawn = RandomCore().draw(
            *context.targets[name], context.rank, torch_generator(context.seed, "init", name), None
        )
        return self._around(drawn.A, drawn.B, drawn.R, context.scale)

    def _around(self, A: Tensor, B: Tensor, core: Tensor, s: float) -> CoreFactors:
        """The factors of the weight update B core A, for products that are multiplied by s."""
        size, core = (self.scale, core / s) if self.gauge == "paper" else (self.scale * s**-0.5, core)
        return CoreFactors((size * A).float().contiguous(), (size * B).float().contiguous(), core.float())
