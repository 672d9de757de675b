"""What clients start a round from, given what the server made of the round before (`reinit=`).

Law: re-initialising never changes the effective model. With the base offset O and start factors (A_start, B_start),
O′ + B_start A_start = O + B_global A_global + residual. `local` alone leaves it: each client starts from a model of its
own.

average      LoRA-FAIR's own choice (arXiv 2411.14961): the global factors.
local        a client that took part before starts from its own last factors, kept in its Flower state, over the base
             that all share. The drift this brings is measured by each client and shown in the metrics.
local_on_global  the same factors, and the difference to the global product is put into that client's base for the
             round, so the law holds client by client.
fresh        the run's initialiser again, with this round's draw; everything learned goes into the base (FLoRA).
svd          the balanced split of the global product, √S on both sides.
orthonormal  the rows of A orthonormal, the magnitude on B.
pissa        the top-r singular triplets of W0 + s·(everything learned), and the base gives them up.
gauge        one factor becomes β times orthonormal columns, the other takes up the rest; applied after aggregation, so
             LoRA-FAIR's correction is not disturbed.

With `reinit.at` this is done after those rounds alone, and after the others clients start from the global factors.
Where the global product has a higher rank than clients can have, the leading part is the start and the rest is merged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedinit import spectra
from fedinit.config.build import create
from fedinit.config.checks import at_least, positive
from fedinit.errors import InputError
from fedinit.factors import Factors, stack
from fedinit.initializers.pissa import PiSSA
from fedinit.threads import server_pool
from strategies.aggregator import Aggregate


@dataclass(frozen=True)
class ReinitContext:
    """What a re-initialiser is given to work with.

    ranks: {layer: the rank of its start factors}.
    scale: s = α/r.
    draw: {layer: the initialiser's start factors} for a round, anew where it draws at random.
    frozen: the weight W0 of a layer, (d, k).
    offset: {layer: O (d, k)}, the base offset that the weights are over; a layer without one has O = 0.
    """

    ranks: Mapping[str, int]
    scale: float
    draw: Callable[[int], Mapping[str, Factors]]
    frozen: Callable[[str], Tensor]
    offset: Mapping[str, Tensor] = field(default_factory=dict)

    def over(self, offset: Mapping[str, Tensor]) -> ReinitContext:
        """The same context, over this base offset."""
        return replace(self, offset=offset)

    def weight(self, name: str) -> Tensor:
        """W0 + s·O of a layer, (d, k), in float64."""
        frozen = self.frozen(name).double()
        return frozen + self.scale * self.offset[name] if name in self.offset else frozen


@dataclass(frozen=True)
class Start:
    """layers: the start factors. merge: products to be merged into the base; empty when nothing moves."""

    layers: Mapping[str, Factors]
    merge: Mapping[str, Factors]


@dataclass(frozen=True, kw_only=True)
class Reinit(ABC):
    """A re-initialiser.

    own_factors: whether clients start from their own last factors, not from the ones they are sent.
    on_global: whether such a client's base makes up for the difference to the global product.
    at: the rounds after which it is done; None: all. After the others clients start from the global factors.
    """

    own_factors: ClassVar[bool] = False
    on_global: ClassVar[bool] = False

    at: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.at is not None and not self.at:
            raise InputError("reinit.at=[]: expected a round or more, or null for all")
        for round in self.at or ():
            at_least("reinit.at", round, 1)

    def after(self, aggregate: Aggregate, round: int, context: ReinitContext) -> Start:
        """What clients start from after `round`: by `start` where it is done, else the global factors.

        It works on the layers' products (Factors.as_product). What is no part of them stays, such as the magnitudes of
        a weight that stays as it was.
        """
        if self.at is not None and round not in self.at:
            return Start(aggregate.layers, aggregate.residual)
        plain = {name: f.as_product() for name, f in aggregate.layers.items()}
        start = self.start(replace(aggregate, layers=plain), round, context)
        return replace(start, layers={n: aggregate.layers[n].from_product(f) for n, f in start.layers.items()})

    @abstractmethod
    def start(self, aggregate: Aggregate, round: int, context: ReinitContext) -> Start:
        """What clients start from after `round`; the law above holds to the rounding of the factors' dtype."""


@dataclass(frozen=True, kw_only=True)
class Average(Reinit):
    """The global factors."""

    def start(self, aggregate: Aggregate, round: int, context: ReinitContext) -> Start:
        return Start(aggregate.layers, aggregate.residual)


@dataclass(frozen=True, kw_only=True)
class Local(Average):
    """The global factors; a client that took part before puts its own last ones in their place."""

    own_factors: ClassVar[bool] = True
    name: ClassVar[str] = "local"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at is not None:
            raise InputError(
                f"reinit.at={list(self.at)}: with reinit={self.name} clients go on from their own factors in every "
                "round; expected null, or another reinit"
            )


@dataclass(frozen=True, kw_only=True)
class LocalOnGlobal(Local):
    """The same, with the difference to the global product in that client's base."""

    on_global: ClassVar[bool] = True
    name: ClassVar[str] = "local_on_global"


@dataclass(frozen=True, kw_only=True)
class Fresh(Reinit):
    """The initialiser's factors for this round; what was learned goes into the base."""

    def start(self, aggregate: Aggregate, round: int, context: ReinitContext) -> Start:
        start = context.draw(round)
        # A start whose product is zero takes nothing with it; any other is taken out of the base.
        merge = {}
        for name in aggregate.layers:
            total = _total(aggregate, name)
            merge[name] = _rest(total, start[name]) if start[name].A.any() and start[name].B.any() else total
        return Start(start, merge)


@dataclass(frozen=True, kw_only=True)
class Split(Reinit):
    """The best rank-r part of what was learned, in a gauge, and the rest to the base."""

    gauge: ClassVar[spectra.Gauge]

    def start(self, aggregate: Aggregate, round: int, context: ReinitContext) -> Start:
        layers, merge = {}, {}
        for name in aggregate.layers:
            total = _total(aggregate, name)
            layers[name] = spectra.truncate(total, context.ranks[name], self.gauge).to(total.A.dtype)
            if total.rank > context.ranks[name]:
                merge[name] = _rest(total, layers[name])
        return Start(layers, merge)


@dataclass(frozen=True, kw_only=True)
class SVD(Split):
    """√S on both sides."""

    gauge: ClassVar[spectra.Gauge] = "balanced"


@dataclass(frozen=True, kw_only=True)
class Orthonormal(Split):
    """The rows of A orthonormal, S on B."""

    gauge: ClassVar[spectra.Gauge] = "right"


@dataclass(frozen=True, kw_only=True)
class Pissa(Reinit):
    """The top-r singular triplets of W0 + s·(everything learned), √S on both sides; the base gives them up."""

    def start(self, aggregate: Aggregate, round: int, context: ReinitContext) -> Start:
        totals = {name: _total(aggregate, name) for name in aggregate.layers}

        def principal(name: str) -> Factors:
            weight = context.weight(name) + context.scale * totals[name].to(torch.float64).dense()
            return PiSSA().split(weight, context.ranks[name], context.scale).to(totals[name].A.dtype)

        layers = dict(zip(totals, server_pool().map(principal, totals), strict=True))
        return Start(layers, {name: _rest(total, layers[name]) for name, total in totals.items()})


@dataclass(frozen=True, kw_only=True)
class Gauge(Reinit):
    """The global factors in another gauge; a zero factor is left as it is.

    side: ``left``: with svd(B) = U S Vᵀ, B becomes βU and A becomes (1/β) S Vᵀ A; ``right``: the same for Aᵀ.
    beta: β > 0.

    Theory and figures: over-parameterised matrix sensing, where one such step makes the rate
    of gradient descent independent of the size of the start.
    """

    side: Literal["left", "right"] = "left"
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("reinit.beta", self.beta)

    def start(self, aggregate: Aggregate, round: int, context: ReinitContext) -> Start:
        fitted = SVD().start(aggregate, round, context) if aggregate.residual or _too_wide(aggregate, context) else None
        given = fitted or Start(aggregate.layers, {})
        return Start({name: self.turn(f) for name, f in given.layers.items()}, given.merge)

    def turn(self, product: Factors) -> Factors:
        """The same product in the chosen gauge."""
        if self.side == "right":
            turned = Gauge(side="left", beta=self.beta).turn(Factors(product.B.T, product.A.T))
            return Factors(turned.B.T, turned.A.T)
        if not product.B.any():
            return product
        U, S, Vh = torch.linalg.svd(product.B.double(), full_matrices=False)
        A = (S[:, None] * Vh) @ product.A.double() / self.beta
        return Factors(A, self.beta * U).to(product.A.dtype)


def _total(aggregate: Aggregate, name: str) -> Factors:
    """Everything that a round learned in a layer, global factors and residual, as one product in two factors."""
    parts = [aggregate.layers[name], *([aggregate.residual[name]] if name in aggregate.residual else [])]
    return stack(parts, [1.0] * len(parts)) if len(parts) > 1 else parts[0].absorb()


def _rest(total: Factors, start: Factors) -> Factors:
    """total − start, against the start as it will be sent, so that its rounding is made up for."""
    return stack([total, start], [1.0, -1.0])


def _too_wide(aggregate: Aggregate, context: ReinitContext) -> bool:
    return any(f.rank > context.ranks[name] for name, f in aggregate.layers.items())


REINITS: dict[str, type[Reinit]] = {
    "average": Average,
    "fresh": Fresh,
    "gauge": Gauge,
    "local": Local,
    "local_on_global": LocalOnGlobal,
    "orthonormal": Orthonormal,
    "pissa": Pissa,
    "svd": SVD,
}

create_reinit = partial(create, "reinit", REINITS)  # create_reinit("gauge", {"beta": 2.0})
