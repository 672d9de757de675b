"""SGD-SaI: SGD whose step size is fixed per block at initialisation. Xu et al. 2024, arXiv 2412.11768.

A block is one parameter tensor of one client. Its scale is the gradient's signal-to-noise ratio when it first arrives
(fedinit/step_scale.py), or what the server made of all clients' gradients, and then stays. With it

    buf ← μ·buf + (1 − μ)·g (buf = g at the first)        θ ← (1 − lr·λ)·θ − lr·scale·buf

Differs from the authors' code, which fixes every scale at step 1: a block is left alone until its first gradient that
is not zero. At B = 0 the gradient of A is exactly zero, its ratio too, and A would stand still for the whole run. Also,
μ = 0 works.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clients.optimizers.contract import BankOptimizer
from fedinit.config.client import SGDSaIConfig
from fedinit.step_scale import step_scale


class SGDSaI(BankOptimizer[SGDSaIConfig]):
    """Its state of K clients.

    step_scales: (K, blocks) in float64, 0 where not fixed yet.
    counts: (K, blocks), how many numbers of a block are a client's own, without padding.
    begun: (K, blocks), whether a block has had a gradient in this round.
    buffer: buf (K, P).
    """

    def __init__(self, leaves: Any, settings: Any, owned: Any = None, step_scales: Any = ()) -> None:
        super().__init__(leaves, settings, owned, step_scales)
        rows, device = len(self.values), self.values.device
        self.sizes = [leaf[0].numel() for leaf in self.leaves.values()]
        self.total = torch.tensor(self.sizes, dtype=torch.float64).to(device)  # (blocks,), padding and all
        self.block = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes)).to(device)  # (P,)
        counts = [
            torch.full((rows,), size) if owned is None else owned[name]
            for name, size in zip(self.leaves, self.sizes, strict=True)
        ]
        self.counts = torch.stack(counts, dim=1).to(device, torch.float64)  # (K, blocks)
        given = [[fixed.get(name, 0.0) for name in self.leaves] for fixed in step_scales or [{}] * rows]
        self.step_scales = torch.tensor(given, device=device, dtype=torch.float64).reshape(rows, len(self.sizes))
        self.begun = torch.zeros_like(self.step_scales, dtype=torch.bool)
        self.buffer = torch.zeros_like(self.values)

    def update(self, value: Tensor, gradient: Tensor, active: int) -> None:
        momentum, lr = self.settings.momentum, self.settings.lr
        buffer = self.buffer[:active].mul_(momentum).add_(gradient, alpha=1 - momentum)
        if not self._all_begun(active):
            first = self._begin(gradient, active)
            buffer.copy_(torch.where(first[:, self.block], gradient, buffer))
        decay = lr * self.settings.weight_decay
        value.mul_(1 - (decay if self.ratio is None else decay * self.ratio))
        step = buffer * self.step_scales[:active].to(buffer.dtype)[:, self.block]
        value.add_(step if self.ratio is None else step * self.ratio, alpha=-lr)

    def _all_begun(self, active: int) -> bool:
        """Whether no block waits for its first gradient. Of CUDA it is not asked, which would wait for the device: to
        begin where all have begun changes nothing."""
        return not self.values.is_cuda and bool(self.begun[:active].all())

    def _begin(self, gradient: Tensor, active: int) -> Tensor:
        """Fix the scales of the blocks whose first gradient this is; (active, blocks), true at those."""
        parts = [part.double() for part in gradient.split(self.sizes, dim=1)]
        total = torch.stack([p.sum(1) for p in parts], dim=1)
        square = torch.stack([p.square().sum(1) for p in parts], dim=1)
        first = ~self.begun[:active] & (square > 0)
        # Padding adds nothing to either sum, so that a client's scale does not depend on its mates' ranks.
        count = self.counts[:active]
        mean = total / count.clamp(min=1)
        around = torch.stack([(p - m[:, None]).square().sum(1) for p, m in zip(parts, mean.T, strict=True)], dim=1)
        padding = self.total - count
        ratio = step_scale(square, around - padding * mean.square(), count)
        fixed = self.step_scales[:active]
        fixed.copy_(torch.where(first & (fixed == 0), ratio, fixed))
        self.begun[:active] |= first
        return first

    def state(self) -> list[Tensor | None]:
        return [*super().state(), self.buffer, self.step_scales]

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), self.begun, self.counts]

    def fixed_scales(self, row: int) -> dict[str, float]:
        return {n: v for n, v in zip(self.leaves, self.step_scales[row].tolist(), strict=True) if v}
