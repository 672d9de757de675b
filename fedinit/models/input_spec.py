"""What a backbone takes, and how images become that."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class InputSpec:
    """What a backbone takes: uint8 images of this size, scaled to [0, 1], then (x − mean) / std per channel.

    channels, height, width: of an image, in pixels.
    mean, std: one number a channel, on [0, 1].
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, images: Tensor, device: torch.device) -> Tensor:
        """uint8 (n, c, h, w) to float32 on `device`, (x/255 − mean)/std per channel; what is float32 stays as it is."""
        if images.is_floating_point():
            return images.to(device)
        mean, std = _statistics(self, device)
        return images.to(device).float().sub_(mean).div_(std)


@functools.cache
def _statistics(spec: InputSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1, c, 1, 1) on 0..255; made once a device, where each time would be a copy to it."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(value, device=device).view(1, -1, 1, 1) * 255 for value in (spec.mean, spec.std))
    return mean, std


@dataclass(frozen=True)
class TakesImages:
    """A forward pre-hook by which a model takes images as data sources have them, on whichever device."""

    input: InputSpec

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # A numpy array as well, which is what a notebook has.
        return self.input.normalise(torch.as_tensor(args[0]), next(module.parameters()).device), *args[1:]
