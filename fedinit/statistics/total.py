"""The gradient of a trained tensor, summed over the examples, and their number: its mean is that of all the clients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.statistics.statistic import Statistic


@dataclass(frozen=True)
class Total(Statistic):
    """The gradient of one trained tensor.

    count: the examples.
    total: of the tensor's shape, the gradient of the loss summed over them.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"count": (), "total": self.shape}

    def measure(self, values: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
        return {"count": torch.tensor(len(self.beside(other)), dtype=torch.float64), "total": values}
