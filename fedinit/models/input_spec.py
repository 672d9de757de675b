"""What a backbone takes, and how images become that."""

from __future__ import annotations

import functools
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedinit.errors import InputError

BEYOND = 20  # times the range of normalised pixels: noise and overshoots are nearer, floats up to 255 are not
HOW = "give uint8 from 0 to 255, or floats that are normalised: (x/255 - mean) / std"


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
        """Raises InputError for images of another shape, and for numbers that are no pixels, normalised or not; warns
        of floats that all lie from 0 to 1, which is what they are before they are normalised."""
        images = torch.as_tensor(args[0])  # a numpy array as well, which is what a notebook has
        weight = next(module.parameters())
        if not torch.compiler.is_compiling():
            self._refuse_other(images)
        return self.input.normalise(images, weight.device).to(weight.dtype), *args[1:]

    def _refuse_other(self, images: Tensor) -> None:
        size = self.input.channels, self.input.height, self.input.width
        if images.ndim != 4 or tuple(images.shape[1:]) != size:
            raise InputError(
                f"the model takes images (n, {', '.join(map(str, size))}), n of any number; these are "
                f"{tuple(images.shape)}"
            )
        if images.dtype == torch.uint8 or not images.numel():
            return
        if images.dtype == torch.bool or images.is_complex():
            raise InputError(f"these images are {str(images.dtype).removeprefix('torch.')}; {HOW}")
        try:
            least, most = (float(value) for value in images.detach().float().aminmax())
        except RuntimeError:  # nobody knows their numbers, as while a graph is made of the model
            return
        self._refuse_numbers(images, least, most)

    def _refuse_numbers(self, images: Tensor, least: float, most: float) -> None:
        if not images.is_floating_point():
            if least < 0 or most > 255:
                raise InputError(f"these images are whole numbers from {least:g} to {most:g}; {HOW}")
            return
        pairs = zip(self.input.mean, self.input.std, strict=True)
        reached = [(level - mean) / std for mean, std in pairs for level in (0, 1)]
        low, high = min(reached), max(reached)
        beyond = BEYOND * (high - low)
        if least < low - beyond or most > high + beyond:
            raise InputError(
                f"these images are floats from {least:.3g} to {most:.3g}, and normalised ones reach from "
                f"{low:.3g} to {high:.3g}; {HOW}"
            )
        if least >= 0 and most <= 1 and (low, high) != (0, 1):
            told = f"these images are floats from 0 to 1, which are not normalised yet; {HOW}"
            warnings.warn(told, stacklevel=_callers_level())


def _callers_level() -> int:
    """The stacklevel of a warning by the caller that is told of the first frame outside torch and fedinit."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("torch", "fedinit"):
        frame, level = frame.f_back, level + 1
    return level
