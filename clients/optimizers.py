"""Client optimisers on the bank's leading axis: each client has its own momentum, clipping norm and step count.

The bank's clients are in order of falling number of steps, so the ones still training are the first `active`; a step
touches only those rows, and a client that is done keeps its values and its state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from fedinit.config import ClientConfig
from fedinit.errors import choose


class BankOptimizer(ABC):
    """Updates leaves {name: (K, …)} in place."""

    def __init__(self, leaves: Mapping[str, Tensor], settings: ClientConfig) -> None:
        self.leaves, self.settings = dict(leaves), settings
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], active: int) -> None:
        """One step of the first `active` clients, with gradients of the leaves' shapes."""
        rows = {name: gradient[:active] for name, gradient in gradients.items()}
        if self.settings.clip_norm is not None:
            clip(rows, self.settings.clip_norm)
        self.steps += 1
        for name, gradient in rows.items():
            self.update(name, self.leaves[name][:active], gradient, active)

    @abstractmethod
    def update(self, name: str, value: Tensor, gradient: Tensor, active: int) -> None:
        """Change `value` (active, …) in place."""


def clip(gradients: Mapping[str, Tensor], max_norm: float) -> None:
    """Scale each client's gradients, in place, so that their joint norm is at most `max_norm`.

    As torch.nn.utils.clip_grad_norm_ for every client alone, with its 1e-6 in the denominator.
    """
    squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
    norms = torch.stack(squares).sum(0).sqrt()  # (active,)
    factor = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients.values():
        gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))


class SGD(BankOptimizer):
    """torch.optim.SGD: g ← g + λp; v ← μv + g (v = g at the first step); p ← p − lr·v."""

    def __init__(self, leaves: Mapping[str, Tensor], settings: ClientConfig) -> None:
        super().__init__(leaves, settings)
        self.velocity = {name: torch.zeros_like(v) for name, v in leaves.items()} if settings.momentum else {}

    def update(self, name: str, value: Tensor, gradient: Tensor, active: int) -> None:
        if self.settings.weight_decay:
            gradient = gradient.add(value, alpha=self.settings.weight_decay)
        if self.settings.momentum:
            gradient = self.velocity[name][:active].mul_(self.settings.momentum).add_(gradient)
        value.add_(gradient, alpha=-self.settings.lr)


class AdamW(BankOptimizer):
    """torch.optim.AdamW (arXiv 1711.05101), eps 1e-8, with decoupled weight decay."""

    def __init__(self, leaves: Mapping[str, Tensor], settings: ClientConfig) -> None:
        super().__init__(leaves, settings)
        self.first = {name: torch.zeros_like(v) for name, v in leaves.items()}
        self.second = {name: torch.zeros_like(v) for name, v in leaves.items()}

    def update(self, name: str, value: Tensor, gradient: Tensor, active: int) -> None:
        beta1, beta2 = self.settings.betas
        value.mul_(1 - self.settings.lr * self.settings.weight_decay)
        first = self.first[name][:active].lerp_(gradient, 1 - beta1)
        second = self.second[name][:active].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # Active clients have all taken every step so far, so one step count serves them.
        unbiased = second.div(1 - beta2**self.steps).sqrt_().add_(1e-8)
        value.addcdiv_(first, unbiased, value=-self.settings.lr / (1 - beta1**self.steps))


OPTIMIZERS: dict[str, type[BankOptimizer]] = {"adamw": AdamW, "sgd": SGD}


def create_optimizer(leaves: Mapping[str, Tensor], settings: ClientConfig) -> BankOptimizer:
    """The optimiser that `client.optimizer` names. Raises InputError for an unknown name."""
    return OPTIMIZERS[choose("client.optimizer", settings.optimizer, OPTIMIZERS)](leaves, settings)
