"""A server optimiser on the aggregated factors and head (`server_opt=`), on top of any aggregation method.

Reddi et al., ICLR 2021, arXiv 2003.00295. The round's pseudo-gradient is Δ = aggregate − start, taken factor by factor:

momentum  v ← βv + Δ;                              next = start + lr·v          (FedAvgM)
adam      m ← β₁m + (1−β₁)Δ, v ← β₂v + (1−β₂)Δ²;   next = start + lr·m/(√v + τ)  (FedAdam, Algorithm 2), where v begins
          at τ²: that keeps first steps small, and is why there is no bias correction

lr = 1 and β = 0 is the method itself. What the aggregate has at zero since nobody returned it (the components of
clients of a higher rank, in a round without them) is no step: it stays at zero, and its moments begin anew. It needs
starts that are the global factors, so it goes with reinit=average only.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedinit.config.build import NOTHING, create
from fedinit.config.checks import positive, within
from strategies.aggregator import Aggregate

Moments = Mapping[str, Tensor]


@dataclass(frozen=True)
class Moved(Aggregate):
    """An aggregate after the server optimiser's step. moments: of the optimiser after it."""

    moments: Moments = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ServerOptimizer(ABC):
    """A server optimiser. Its moments, {"<moment>/<tensor>": float64}, go in and come out.

    lr: the server's learning rate, > 0.
    """

    lr: float = 1.0

    def __post_init__(self) -> None:
        positive("server_opt.lr", self.lr)

    def step(self, start: Aggregate, aggregate: Aggregate, moments: Moments = NOTHING) -> Moved:
        """The aggregate moved on from the start by this optimiser's step.

        start: the global factors and head that the round began from. aggregate: what the method made of the round.
        moments: of this optimiser before the step; those after it are the result's.
        Raises ValueError where a tensor's shape is not the same in both.
        """
        after: dict[str, Tensor] = dict(moments)

        def moved(name: str, old: Tensor, reached: Tensor) -> Tensor:
            if reached.shape != old.shape:  # some would broadcast
                raise ValueError(f"{name} went from shape {tuple(old.shape)} to {tuple(reached.shape)} in a round")
            delta = reached.double() - old.double()
            next = old.double() + self.lr * self.direction(name, delta, after)
            if bool((gone := reached == 0).any()):
                next = next.masked_fill(gone, 0.0)
                for moment, first in self.begin_at.items():
                    key = f"{moment}/{name}"
                    after[key] = after[key].masked_fill(gone, first)
            return next.to(reached.dtype)

        layers = {}
        for name, factors in aggregate.layers.items():
            old = start.layers[name].parts
            parts = {p: moved(f"{name}/{p}", old[p], v) for p, v in factors.parts.items()}
            layers[name] = dataclasses.replace(factors, **parts)
        head = {k: moved(f"head/{k}", start.head[k], v) for k, v in aggregate.head.items()}
        return Moved(layers, aggregate.residual, head, aggregate.diagnostics, aggregate.by_layer, moments=after)

    @property
    @abstractmethod
    def begin_at(self) -> Mapping[str, float]:
        """{moment: every entry of it before the first step}."""

    @abstractmethod
    def direction(self, name: str, delta: Tensor, moments: dict[str, Tensor]) -> Tensor:
        """The step of a tensor, before lr, for its pseudo-gradient `delta`; its entries of `moments` are replaced."""


def _moment(
    moments: dict[str, Tensor], name: str, value: Tensor, beta: float, share: float, first: float = 0.0
) -> Tensor:
    """β·(the moment) + share·value, which replaces it; first: every entry of it before there is one."""
    moments[name] = beta * moments.get(name, torch.full_like(value, first)) + share * value
    return moments[name]


@dataclass(frozen=True, kw_only=True)
class Momentum(ServerOptimizer):
    """beta: β in [0, 1), the share of the moment that stays."""

    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        within("server_opt.beta", self.beta, 0, 1, open_high=True)

    @property
    def begin_at(self) -> Mapping[str, float]:
        return {"v": 0.0}

    def direction(self, name: str, delta: Tensor, moments: dict[str, Tensor]) -> Tensor:
        return _moment(moments, f"v/{name}", delta, self.beta, 1.0)


@dataclass(frozen=True, kw_only=True)
class Adam(ServerOptimizer):
    """beta1, beta2: in [0, 1), the shares of the moments that stay. tau: τ > 0, which bounds the step at a small v."""

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        within("server_opt.beta1", self.beta1, 0, 1, open_high=True)
        within("server_opt.beta2", self.beta2, 0, 1, open_high=True)
        positive("server_opt.tau", self.tau)

    @property
    def begin_at(self) -> Mapping[str, float]:
        return {"m": 0.0, "v": self.tau**2}

    def direction(self, name: str, delta: Tensor, moments: dict[str, Tensor]) -> Tensor:
        first = _moment(moments, f"m/{name}", delta, self.beta1, 1 - self.beta1)
        second = _moment(moments, f"v/{name}", delta.square(), self.beta2, 1 - self.beta2, first=self.begin_at["v"])
        return first / (second.sqrt() + self.tau)


@dataclass(frozen=True, kw_only=True)
class NoServerOptimizer:
    """The aggregate as it is."""


SERVER_OPTIMIZERS: dict[str, type[ServerOptimizer | NoServerOptimizer]] = {
    "adam": Adam,
    "momentum": Momentum,
    "none": NoServerOptimizer,
}


def create_server_optimizer(name: str, options: Mapping[str, Any] = NOTHING) -> ServerOptimizer | None:
    """A server optimiser by name, None for `none`. Raises InputError for an unknown name or option."""
    optimizer = create("server_opt", SERVER_OPTIMIZERS, name, options)
    return optimizer if isinstance(optimizer, ServerOptimizer) else None
