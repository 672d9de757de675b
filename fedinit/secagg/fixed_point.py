"""Real numbers as integers modulo 2^64, in which sums are exact and a mask hides all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedinit.errors import InputError

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class FixedPoint:
    """x as n·x / step, in two's complement.

    clip: values are cut off at ±clip. bits: of a value with its sign, so that step = clip / 2^(bits - 1).
    """

    clip: float
    bits: int

    @property
    def step(self) -> float:
        """The distance of two neighbouring values. A weighted mean over K clients of weights n_i ≥ 1 is off by less
        than K · step / Σ n_i ≤ step."""
        return self.clip / 2 ** (self.bits - 1)

    def check(self, total: int) -> None:
        """Raise InputError where sums of weights `total` could wrap: total · 2^(bits - 1) must stay below 2^63."""
        if total > 2 ** (64 - self.bits) - 1:
            most = 2 ** (64 - self.bits) - 1
            why = f"sums of {total} examples would wrap, {most} may come; use fewer bits"
            raise InputError(f"secure_aggregation.bits={self.bits}: {why}")

    def encode(self, values: Tensor, weight: int, draw: np.random.Generator) -> Words:
        """`weight` times the values, rounded up or down at random so that the mean is right. Raises ValueError for what
        is not finite."""
        if not torch.isfinite(values).all():
            raise ValueError("NaN or infinity cannot be summed in secret")
        clipped = values.detach().double().clamp(-self.clip, self.clip).numpy()
        exact = clipped * (weight / self.step)
        low = np.floor(exact)
        rounded = low + (draw.random(exact.shape) < exact - low)
        return rounded.astype(np.int64).view(np.uint64)

    def decode(self, words: Words, total: int) -> Tensor:
        """The weighted mean, float64, of a sum of encoded values. total: the sum of the weights."""
        return torch.from_numpy(words.view(np.int64).astype(np.float64) * (self.step / total))


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All values in the order of the names, in one vector."""
    return torch.cat([tensors[name].detach().cpu().reshape(-1).double() for name in sorted(tensors)])


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `flat`, in the shapes and types of `like`."""
    names = sorted(like)
    parts = vector.split([like[name].numel() for name in names])
    return {name: part.reshape(like[name].shape).to(like[name].dtype) for name, part in zip(names, parts, strict=True)}
