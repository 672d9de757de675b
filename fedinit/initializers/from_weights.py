"""What starts have in common that are made from each layer's frozen weight alone, W0 = U S Vᵀ.

The decomposition is exact and in float64: a randomised one of the leading part has no minor components, and an
eigendecomposition of W0ᵀW0 loses half the digits of the small singular values.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.factors import Factors
from fedinit.initializers.initializer import InitContext, Initializer, taken_out
from fedinit.spectra import Spectrum
from fedinit.state.start import StartState
from fedinit.threads import server_pool


@dataclass(frozen=True, kw_only=True)
class FromWeights(Initializer):
    """A start that is known at once, from each layer's W0.

    init.scale multiplies the factors of `split`; the base gives up the product of the scaled ones.
    """

    def plan(self, context: InitContext) -> StartState:
        """Raises ValueError where the context has no weights, InputError where one is not finite."""

        def of_layer(name: str) -> Factors:
            return scaled(self.split(context.frozen(name), context.rank, context.scale), self.scale)

        layers = dict(zip(context.targets, server_pool().map(of_layer, context.targets), strict=True))
        if not self.takes_out:
            return StartState(layers=layers)
        return StartState(layers=layers, merge=taken_out(layers), notes=without_weight(layers))

    @abstractmethod
    def split(self, weight: Tensor, rank: int, scale: float) -> Factors:
        """The factors of a layer in float64.

        weight: W0, (d, k) in float64.
        rank: r of the factors.
        scale: s, by which the product is multiplied.
        """


def share(part: Spectrum, scale: float, largest: float) -> Factors:
    """B = U √(S/s), A = √(S/s) Vᵀ, so that s·BA = U S Vᵀ, in float64.

    part: the components U, S, Vᵀ that become the adapter.
    scale: s.
    largest: the largest singular value of the whole matrix.
    A component without weight (its singular value is rounding beside `largest`) has its row of A at length one and its
    column of B zero, as in LoRA's own start; with both of them zero it would have no gradient, ever.
    """
    root = (part.S / scale).sqrt()
    dead = part.S <= largest * max(part.U.shape[0], part.Vh.shape[1]) * torch.finfo(torch.float64).eps
    return Factors(torch.where(dead, 1.0, root)[:, None] * part.Vh, torch.where(dead, 0.0, root) * part.U)


def scaled(factors: Factors, scale: float) -> Factors:
    """Both factors times `scale`, init.scale, in float32, as they are sent."""
    return Factors((scale * factors.A).float().contiguous(), (scale * factors.B).float().contiguous())


def without_weight(layers: dict[str, Factors]) -> dict[str, dict[str, int]]:
    """{"without_weight": {layer: how many components had no weight to take out}}; empty where all had some."""
    counts = {name: int((~f.B.any(0)).sum()) for name, f in layers.items()}
    lacking = {name: count for name, count in counts.items() if count}
    return {"without_weight": lacking} if lacking else {}
