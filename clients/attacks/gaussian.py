"""Gaussian: noise as long as the own change, in every tensor."""

from __future__ import annotations

import torch

from clients.attacks.contract import Attack, Change, Seen
from fedinit.config.attack import GaussianConfig


class Gaussian(Attack[GaussianConfig]):
    """Noise of factor times the length of its own change, tensor by tensor."""

    def forge(self, seen: Seen) -> Change:
        forged = {}
        for name, value in sorted(seen.own.items()):
            noise = torch.randn(value.shape, generator=seen.draw, dtype=value.dtype)
            forged[name] = noise * (self.settings.factor * value.norm() / noise.norm())
        return forged
