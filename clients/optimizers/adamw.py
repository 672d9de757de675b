"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), as torch.optim.AdamW: eps 1e-8, decoupled weight decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clients.optimizers.contract import BankOptimizer
from fedinit.config.client import AdamWConfig


class AdamW(BankOptimizer[AdamWConfig]):
    """first, second: (K, P), the running means of the gradient and of its square.

    corrections: (2,), 1 − β₂ᵗ and lr/(1 − β₁ᵗ) of this step. Active clients have all taken every step so far, so one
        step count serves them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.first, self.second = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.corrections = self.values.new_zeros(2)

    def advance(self) -> None:
        super().advance()
        beta1, beta2 = self.settings.betas
        # Filled, not copied: a copy of the host's waits for the device.
        self.corrections[0].fill_(1 - beta2**self.steps)
        self.corrections[1].fill_(self.settings.lr / (1 - beta1**self.steps))

    def update(self, value: Tensor, gradient: Tensor, active: int) -> None:
        beta1, beta2 = self.settings.betas
        decay = self.settings.lr * self.settings.weight_decay
        value.mul_(1 - (decay if self.ratio is None else decay * self.ratio))
        first = self.first[:active].lerp_(gradient, 1 - beta1)
        second = self.second[:active].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        unbiased = second.div(self.corrections[0]).sqrt_().add_(1e-8)
        if self.ratio is not None:
            unbiased.div_(self.ratio)
        value.sub_(first.div(unbiased).mul_(self.corrections[1]))

    def state(self) -> list[Tensor | None]:
        return [*super().state(), self.first, self.second]
