"""One step of a bank's training: images in, every client's leaves moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clients import batches
from clients.compiled import Compiled, mean_losses
from clients.optimizers.contract import BankOptimizer
from fedinit.adapters.bank import Bank
from fedinit.config.client import ClientConfig


@dataclass(frozen=True)
class Pass:
    """What goes through the bank at once: clients with equally many images.

    inputs: normalised images (n·b, c, h, w), or pooled features (n·b, D) in their place.
    targets: (n, b) labels, or (n, b, outputs) numbers. weight: (n, b) of every image in its client's mean loss.
    first: the bank's row of the first of the n clients.
    """

    inputs: Tensor
    targets: Tensor
    weight: Tensor
    first: int = 0


@dataclass(frozen=True, eq=False)
class Training:
    """What the steps of a bank's training work on.

    leaves: {name: (K, …)}, as `Bank.load` gave them. optimizer: moves them.
    losses: (K,) float64, each client's sum of its mean losses so far. settings: how clients train.
    compiled: takes the steps of whole banks, where it can; None: none is compiled.
    """

    bank: Bank
    leaves: Mapping[str, Tensor]
    optimizer: BankOptimizer[Any]
    losses: Tensor
    settings: ClientConfig
    compiled: Compiled | None = None

    def step(self, passes: Sequence[Pass], are_features: bool = False, moving: Tensor | None = None) -> None:
        """Forward, backward and the optimiser's move of the first n clients, whose steps `optimizer.advance` counts.

        passes: of these clients, in the order of the bank's rows. are_features: their inputs are no images.
        moving: (n, 1) bool, which of them move; None: all.
        """
        means = [self._features_losses(one) if are_features else self._losses(one) for one in passes]
        mean = means[0] if len(means) == 1 else torch.cat(means)  # (n,)
        gradients = torch.autograd.grad(mean.sum(), list(self.leaves.values()))
        self.optimizer.apply(dict(zip(self.leaves, gradients, strict=True)), len(mean), moving)
        told = mean.detach()
        # Of a client that is done the pass is of whatever was left in its place.
        self.losses[: len(mean)] += told if moving is None else torch.where(moving[:, 0], told, 0.0)

    def _features_losses(self, one: Pass) -> Tensor:
        logits = self.bank.classify(one.inputs, len(one.weight), one.first)
        return batches.losses(logits, one.targets, one.weight, self.settings.loss)

    def _losses(self, one: Pass) -> Tensor:
        """(n,) the mean losses of a pass of images. Whole banks of whole batches alone are compiled, a shape or two."""
        size, given = self.settings.batch_size, (one.inputs, one.targets, one.weight, self.settings.loss)
        whole = one.weight.shape == (len(self.losses), size)
        if self.compiled is not None and whole and self.compiled.takes(self.bank):
            return self.compiled.losses(self.bank, self.leaves, *given)
        return mean_losses(self.bank, *given, one.first)
