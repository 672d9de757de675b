"""One step of a bank's training: images in, every client's leaves moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clients import batches
from clients.compiled import Compiled, mean_losses
from clients.optimizers.contract import BankOptimizer
from fedinit.adapters.bank import Bank


@dataclass(frozen=True, eq=False)
class Training:
    """What the steps of a bank's training work on.

    leaves: {name: (K, …)}, as `Bank.load` gave them. optimizer: moves them.
    losses: (K,) float64, each client's sum of its mean losses so far. loss: its name, `client.loss`.
    compiled: takes the steps of whole banks, where it can; None: none is compiled.
    """

    bank: Bank
    leaves: Mapping[str, Tensor]
    optimizer: BankOptimizer[Any]
    losses: Tensor
    loss: str
    compiled: Compiled | None = None

    def step(
        self, inputs: Tensor, targets: Tensor, weight: Tensor, are_features: bool = False, moving: Tensor | None = None
    ) -> None:
        """Forward, backward and the optimiser's move of the first n clients, whose steps `optimizer.advance` counts.

        inputs: normalised images (n·b, c, h, w), or pooled features (n·b, D) in their place.
        targets: (n, b) labels, or (n, b, outputs) numbers. weight: (n, b) of every image in its client's mean loss.
        moving: (n, 1) bool, which of them move; None: all.
        """
        rows = len(weight)
        if are_features:
            mean = batches.losses(self.bank.classify(inputs, rows), targets, weight, self.loss)  # (n,)
        elif self.compiled is not None and rows == len(self.losses) and self.compiled.takes(self.bank):
            mean = self.compiled.losses(self.bank, self.leaves, inputs, targets, weight, self.loss)
        else:
            mean = mean_losses(self.bank, inputs, targets, weight, self.loss)
        gradients = torch.autograd.grad(mean.sum(), list(self.leaves.values()))
        self.optimizer.apply(dict(zip(self.leaves, gradients, strict=True)), rows, moving)
        self.losses[:rows] += mean.detach()
