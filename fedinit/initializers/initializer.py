"""The contract of an initialiser: what the adapters of every layer start from before round 1.

An initialiser plans (`plan`), and either knows the start at once or asks the clients for statistics; from their sum it
makes the start, or asks again (`step`). The server computes the start once and sends it to all, so signs that an SVD
leaves open can differ nowhere; they are fixed all the same: the largest entry of a right vector is positive.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedinit.adapters.kinds import PRODUCT_KINDS
from fedinit.config.checks import at_least, check_rank, positive
from fedinit.errors import InputError, RunFailed
from fedinit.factors import Factors, refuse_misfit
from fedinit.norms import first_not_finite
from fedinit.seeding import torch_generator
from fedinit.state.start import StartState
from fedinit.statistics.planner import Planner
from fedinit.threads import server_pool


@dataclass(frozen=True, kw_only=True)
class InitContext:
    """What the server knows before it has asked anyone.

    targets: {layer: (d, k)} of the adapted layers, in the model's order.
    rank: r of the adapters, min(d, k) of every layer at most.
    scale: s = α/r, which stays the same where a layer has another rank.
    seed: of all that a start draws.
    weight: layer -> its frozen weight W0, (d, k); None: the server has no weights.
    groups: {layer: the first layer with the very same input}; a layer that is absent has an input of its own.
    rows: {layer: how many rows its input has of an image}; a layer that is absent has any number.
    head: {key: tensor} of the classifier that training starts from; empty: there is none.

    Raises InputError for a rank above min(d, k) of a layer.
    """

    targets: Mapping[str, tuple[int, int]]
    rank: int
    scale: float
    seed: int
    weight: Callable[[str], Tensor] | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_rank(self.targets, self.rank)

    def reseed(self, seed: int) -> InitContext:
        """The same context with another seed, for a start that is drawn anew."""
        return replace(self, seed=seed)

    def frozen(self, name: str) -> Tensor:
        """W0 of a layer, (d, k) in float64. Raises ValueError where there are no weights, InputError for NaN or
        infinity in this one."""
        if self.weight is None:
            raise ValueError("this start is made from the frozen weights, and there are none")
        weight = self.weight(name).to(torch.float64)
        if not torch.isfinite(weight).all():
            raise InputError(f"model.checkpoint: the weight of {name} holds NaN or infinity, so no start is made of it")
        return weight


@dataclass(frozen=True, kw_only=True)
class Initializer(Planner[InitContext, StartState]):
    """Makes the start of every adapted layer.

    scale: multiplies both factors, so the product B0A0 by its square; what a start takes out of the base is the scaled
    product. Below 1 it is the small-initialisation axis of matrix recovery.
    """

    # Whether the product has a core, B R A. Methods that train A or B get it absorbed into B.
    cores: ClassVar[bool] = False
    # The kinds of adapters that this is a start for (fedinit/adapters/kinds.py).
    kinds: ClassVar[tuple[str, ...]] = PRODUCT_KINDS
    # What clients are asked for; "none" needs no round 0.
    needs: ClassVar[str] = "none"
    # Whether a re-drawn start (reinit=fresh) differs from the first.
    random: ClassVar[bool] = False

    scale: float = 1.0

    def __post_init__(self) -> None:
        positive("init.scale", self.scale)

    @property
    def takes_out(self) -> bool:
        """Whether the start's product is taken out of the base, so that a model without it lacks a part of W0."""
        return False

    @property
    def zero(self) -> str:
        """The factor that starts at zero, "A" or "B", or "" for neither: a method that freezes it can learn nothing."""
        return "" if self.takes_out else "B"

    @property
    def indivisible(self) -> str:
        """Why the leading components of the start are no start for a client of a lower rank, as the end of a sentence;
        "": they are one."""
        lacking = "whose components are taken out of the base, which such a client would then lack"
        return lacking if self.takes_out else ""

    def check(self, rank: int) -> None:
        """Raise InputError for a rank this start cannot have. Any will do, unless a start says otherwise."""
        at_least("adapter.rank", rank, 1)

    def fit(self, targets: Mapping[str, tuple[int, int]], rank: int) -> None:  # noqa: B027 (most starts fit any layer)
        """Raise InputError for layers {name: (d, k)} that are too small for what this start is made of."""


@dataclass(frozen=True, kw_only=True)
class LayerWise(Initializer):
    """A start that needs no clients: each layer's from its weight, its shape and a stream of its own."""

    def plan(self, context: InitContext) -> StartState:
        return StartState(layers=self.start(context.targets, context.rank, context.seed, context.weight))

    def start(
        self,
        targets: Mapping[str, tuple[int, int]],
        rank: int,
        seed: int,
        weight: Callable[[str], Tensor] | None = None,
    ) -> dict[str, Factors]:
        """{layer: factors in float32}.

        targets: {layer: (d, k)}.
        rank: r of every layer.
        seed: of which each layer has a stream of its own.
        weight: layer -> W0, (d, k), for starts that are made from it.

        Raises InputError for a rank that this start, or a layer, cannot have, RunFailed for a `draw` that gives no
        factors of its layer.
        """
        self.check(rank)
        check_rank(targets, rank)

        def of_layer(name: str) -> Factors:
            generator = torch_generator(seed, "init", name)
            who = f"{type(self).__name__} draws for {name}"
            made = self.draw(*targets[name], rank, generator, None if weight is None else weight(name))
            drawn = refuse_misfit(made, targets[name], who).to(torch.float32)
            if drawn.rank != rank or first_not_finite(drawn.parts):
                raise RunFailed(f"{who} {drawn.shapes}, expected finite numbers and the rank {rank}")
            return replace(drawn, A=drawn.A * self.scale, B=drawn.B * self.scale)

        return dict(zip(targets, server_pool().map(of_layer, targets), strict=True))

    @abstractmethod
    def draw(self, d: int, k: int, rank: int, generator: torch.Generator, weight: Tensor | None) -> Factors:
        """The factors of one layer, before init.scale.

        d, k: outputs and inputs of the layer.
        rank: r.
        generator: the layer's own stream.
        weight: W0, (d, k), or None where `start` was given none.
        """


def taken_out(layers: Mapping[str, Factors]) -> dict[str, Factors]:
    """−B0A0 of every layer, from the factors as they are sent, so that their rounding is made up for."""
    return {name: Factors(f.A, -f.B) for name, f in layers.items()}
