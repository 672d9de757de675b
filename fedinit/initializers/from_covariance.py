"""What starts have in common that are made from a layer's weight and the second moment of its inputs, C = Σ x xᵀ.

C is exact (statistic `gram`): minor components do not come out of a sketch. It is not centred, since what a layer does
to the mean of its inputs counts too, and it is scaled to trace k, so that the gauge of the factors does not depend on
how large the inputs are or how many were measured.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedinit.factors import Factors
from fedinit.initializers.from_weights import scaled, without_weight
from fedinit.initializers.initializer import InitContext, taken_out
from fedinit.initializers.measured import Measured, covariance, stand_in
from fedinit.state.start import StartState
from fedinit.statistics import Request, Statistics
from fedinit.threads import server_pool


@dataclass(frozen=True, kw_only=True)
class FromCovariance(Measured):
    """A start from W0 and C of each layer.

    A layer whose inputs were zero everywhere gets LoRA's own start, and the notes say so.
    """

    def plan(self, context: InitContext) -> Request:
        return self.of_inputs(context, dict.fromkeys(context.targets, "gram"))

    def step(self, context: InitContext, asked: Request, statistics: Statistics) -> StartState:
        """Raises ValueError where the context has no weights, InputError where one is not finite."""

        def of_layer(name: str) -> tuple[Factors | None, dict[str, Any]]:
            k = context.targets[name][1]
            moment = covariance(statistics.of(context.groups.get(name, name)), k, centred=False)
            trace = float(moment.trace())
            if not trace > 0:
                return None, {"replaced": "its input was zero everywhere: kaiming"}
            factors, notes = self.split(context.frozen(name), moment * (k / trace), context.rank, context.scale)
            return scaled(factors, self.scale), notes

        starts = dict(zip(context.targets, server_pool().map(of_layer, context.targets), strict=True))
        living = {name: factors for name, (factors, _) in starts.items() if factors is not None}
        layers = {name: living.get(name) or stand_in(context, name, context.rank, self.scale) for name in starts}
        notes = by_kind({name: facts for name, (_, facts) in starts.items()})
        if not self.takes_out:
            return StartState(layers=layers, notes=notes)
        return StartState(layers=layers, merge=taken_out(living), notes=notes | without_weight(living))

    @abstractmethod
    def split(self, weight: Tensor, moment: Tensor, rank: int, scale: float) -> tuple[Factors, dict[str, Any]]:
        """(the factors of a layer in float64, {kind of note: fact} about it).

        weight: W0, (d, k) in float64.
        moment: C, (k, k) in float64, with trace k.
        rank: r of the factors.
        scale: s, by which the product is multiplied.
        """


def by_kind(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{layer: {kind: fact}} as {kind: {layer: fact}}."""
    kinds = sorted({kind for noted in facts.values() for kind in noted})
    return {kind: {name: noted[kind] for name, noted in facts.items() if kind in noted} for kind in kinds}


def emptiest(moment: Tensor, count: int) -> tuple[Tensor, int]:
    """((k, m) orthonormal columns, the directions in which C is least; how many directions the inputs leave empty).

    m is `count`, or the number of directions without any input where these are more: the rounding of the decomposition
    would choose among them. Directions with little input are not pooled with those: clients' messages hold C to
    float32's rounding of each entry about their means, and the least of what is left of them is the least leak.
    """
    values, vectors = torch.linalg.eigh(moment)  # rising
    empty = int((values <= values[-1] * len(moment) * torch.finfo(moment.dtype).eps).sum())
    return vectors[:, : max(count, empty)], empty
