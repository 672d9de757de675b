"""SGD with momentum, as torch.optim.SGD: g ← g + λp; v ← μv + g (v = g at the first step); p ← p − lr·v."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clients.optimizers.contract import BankOptimizer
from fedinit.config.client import SGDConfig


class SGD(BankOptimizer[SGDConfig]):
    """velocity: v (K, P); None without momentum."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.velocity = torch.zeros_like(self.values) if self.settings.momentum else None

    def update(self, value: Tensor, gradient: Tensor, active: int) -> None:
        if self.settings.weight_decay:
            gradient.add_(value, alpha=self.settings.weight_decay)
        if self.velocity is not None:
            gradient = self.velocity[:active].mul_(self.settings.momentum).add_(gradient)
        value.add_(gradient if self.ratio is None else gradient * self.ratio, alpha=-self.settings.lr)

    def state(self) -> list[Tensor | None]:
        return [*super().state(), self.velocity]
