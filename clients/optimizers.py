"""Client optimisers on the bank's leading axis: each client has its own momentum, clipping norm and step count.

The bank's clients are in order of falling number of steps, so the ones still training are the first `active`; a step
touches only those rows, and a client that is done keeps its values and its state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fedinit.config import ClientConfig
from fedinit.errors import choose


class BankOptimizer(ABC):
    """Updates leaves {name: (K, …)} in place.

    Works on all leaves side by side, a row a client, so that a step is a few operations whatever their number:
    values: (K, P), P numbers a client. `leaves` follow them after every step.
    """

    def __init__(self, leaves: Mapping[str, Tensor], settings: ClientConfig) -> None:
        self.leaves, self.settings = dict(leaves), settings
        self.values = _side_by_side(leaves.values())
        self.start = self.values.clone() if settings.prox else None  # FedProx's anchor (arXiv 1812.06127)
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], active: int) -> None:
        """One step of the first `active` clients, with gradients of the leaves' shapes (more rows are ignored)."""
        gradient = _side_by_side(gradients[name][:active] for name in self.leaves)
        if self.start is not None:
            gradient.add_(self.values[:active] - self.start[:active], alpha=self.settings.prox)
        if self.settings.clip_norm is not None:
            clip(gradient, self.settings.clip_norm)
        self.steps += 1
        values = self.values[:active]
        self.update(values, gradient, active)
        rows = [leaf[:active] for leaf in self.leaves.values()]
        parts = values.split([row[0].numel() for row in rows], dim=1)
        torch._foreach_copy_(rows, [part.view(row.shape) for row, part in zip(rows, parts, strict=True)])

    @abstractmethod
    def update(self, value: Tensor, gradient: Tensor, active: int) -> None:
        """Change `value` (active, P) in place; `gradient` (active, P) may be overwritten."""


def clip(gradient: Tensor, max_norm: float) -> None:
    """Scale each row of `gradient` (clients, P), in place, so that its norm is at most `max_norm`.

    As torch.nn.utils.clip_grad_norm_ for every client alone, with its 1e-6 in the denominator.
    """
    norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    gradient.mul_((max_norm / (norms + 1e-6)).clamp(max=1.0))


class SGD(BankOptimizer):
    """torch.optim.SGD: g ← g + λp; v ← μv + g (v = g at the first step); p ← p − lr·v."""

    def __init__(self, leaves: Mapping[str, Tensor], settings: ClientConfig) -> None:
        super().__init__(leaves, settings)
        self.velocity = torch.zeros_like(self.values) if settings.momentum else None

    def update(self, value: Tensor, gradient: Tensor, active: int) -> None:
        if self.settings.weight_decay:
            gradient.add_(value, alpha=self.settings.weight_decay)
        if self.velocity is not None:
            gradient = self.velocity[:active].mul_(self.settings.momentum).add_(gradient)
        value.add_(gradient, alpha=-self.settings.lr)


class AdamW(BankOptimizer):
    """torch.optim.AdamW (arXiv 1711.05101), eps 1e-8, with decoupled weight decay."""

    def __init__(self, leaves: Mapping[str, Tensor], settings: ClientConfig) -> None:
        super().__init__(leaves, settings)
        self.first, self.second = torch.zeros_like(self.values), torch.zeros_like(self.values)

    def update(self, value: Tensor, gradient: Tensor, active: int) -> None:
        beta1, beta2 = self.settings.betas
        value.mul_(1 - self.settings.lr * self.settings.weight_decay)
        first = self.first[:active].lerp_(gradient, 1 - beta1)
        second = self.second[:active].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # Active clients have all taken every step so far, so one step count serves them.
        unbiased = second.div(1 - beta2**self.steps).sqrt_().add_(1e-8)
        value.addcdiv_(first, unbiased, value=-self.settings.lr / (1 - beta1**self.steps))


def _side_by_side(leaves: Iterable[Tensor]) -> Tensor:
    """(K, P) copy of leaves (K, …)."""
    return torch.cat([leaf.detach().flatten(1) for leaf in leaves], dim=1)


OPTIMIZERS: dict[str, type[BankOptimizer]] = {"adamw": AdamW, "sgd": SGD}


def create_optimizer(leaves: Mapping[str, Tensor], settings: ClientConfig) -> BankOptimizer:
    """The optimiser that `client.optimizer` names. Raises InputError for an unknown name."""
    return OPTIMIZERS[choose("client.optimizer", settings.optimizer, OPTIMIZERS)](leaves, settings)
