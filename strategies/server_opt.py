"""A server optimiser on the aggregated factors and head (`server_opt=`), on top of any aggregation method.

Reddi et al., ICLR 2021, arXiv 2003.00295. The round's pseudo-gradient is Δ = aggregate − start, taken factor by factor:

momentum  v ← βv + Δ;                              next = start + lr·v          (FedAvgM)
adam      m ← β₁m + (1−β₁)Δ, v ← β₂v + (1−β₂)Δ²;   next = start + lr·m/(√v + τ)  (FedAdam, without bias correction,
          as the paper has it)

lr = 1 and β = 0 is the method itself. It needs starts that are the global factors, so it goes with reinit=average only.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedinit.config.schema import build, positive, within
from fedinit.errors import choose
from strategies.aggregator import Aggregate


@dataclass(frozen=True, kw_only=True)
class ServerOptimizer(ABC):
    """`moments` is the state, {"<name>/<tensor>": …} in float64; it changes with every step."""

    lr: float = 1.0
    moments: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        positive("server_opt.lr", self.lr)

    def step(self, start: Aggregate, aggregate: Aggregate) -> Aggregate:
        """The aggregate moved on from the start by this optimiser's step. Raises ValueError where the two have other
        shapes."""
        layers = {}
        for name, factors in aggregate.layers.items():
            old = start.layers[name].parts
            moved = {p: self._move(f"{name}/{p}", old[p], v) for p, v in factors.parts.items()}
            layers[name] = dataclasses.replace(factors, **moved)
        head = {k: self._move(f"head/{k}", start.head[k], v) for k, v in aggregate.head.items()}
        return dataclasses.replace(aggregate, layers=layers, head=head)

    def _move(self, name: str, start: Tensor, reached: Tensor) -> Tensor:
        if reached.shape != start.shape:  # some would broadcast
            raise ValueError(f"{name} went from shape {tuple(start.shape)} to {tuple(reached.shape)} in a round")
        delta = reached.double() - start.double()
        return (start.double() + self.lr * self.direction(name, delta)).to(reached.dtype)

    def _moment(self, name: str, value: Tensor, beta: float, share: float) -> Tensor:
        self.moments[name] = beta * self.moments.get(name, torch.zeros_like(value)) + share * value
        return self.moments[name]

    @abstractmethod
    def direction(self, name: str, delta: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Momentum(ServerOptimizer):
    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        within("server_opt.beta", self.beta, 0, 1, open_high=True)

    def direction(self, name: str, delta: Tensor) -> Tensor:
        return self._moment(f"v/{name}", delta, self.beta, 1.0)


@dataclass(frozen=True, kw_only=True)
class Adam(ServerOptimizer):
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        within("server_opt.beta1", self.beta1, 0, 1, open_high=True)
        within("server_opt.beta2", self.beta2, 0, 1, open_high=True)
        positive("server_opt.tau", self.tau)

    def direction(self, name: str, delta: Tensor) -> Tensor:
        first = self._moment(f"m/{name}", delta, self.beta1, 1 - self.beta1)
        second = self._moment(f"v/{name}", delta.square(), self.beta2, 1 - self.beta2)
        return first / (second.sqrt() + self.tau)


SERVER_OPTIMIZERS: dict[str, type[ServerOptimizer]] = {"adam": Adam, "momentum": Momentum}


def create_server_optimizer(name: str, options: Mapping[str, Any] | None = None) -> ServerOptimizer | None:
    """A server optimiser by name, None for `none`. Raises InputError for an unknown name or option."""
    if name == "none":
        return None
    known = SERVER_OPTIMIZERS
    return build(known[choose("server_opt", name, [*known, "none"])], options or {}, "server_opt")
