"""Draws of noise and of batches that privacy rests on: by a seed, so that a simulation can be repeated, or by a secret.

torch's generator on the CPU takes 32 bits of its seed, which can be tried one by one against anything that the noise
was added to and that is known. So where there is a secret, numbers come of a stream under a key of 256 bits (ChaCha20).
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedinit.key_stream import KeyStream
from fedinit.seeding import torch_generator


class Draws(ABC):
    """A stream of numbers; each is given once."""

    @abstractmethod
    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        """Standard normal numbers."""

    @abstractmethod
    def uniform(self, count: int) -> Tensor:
        """(count,) in [0, 1), float64."""


class Seeded(Draws):
    """Of torch's generator for a seed: the same on every machine, and known to whoever knows the seed."""

    def __init__(self, seed: int, purpose: str, *keys: int | str) -> None:
        self._generator = torch_generator(seed, purpose, *keys)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(tuple(shape), generator=self._generator, dtype=dtype)

    def uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self._generator, dtype=torch.float64)


class Keyed(Draws):
    """Of ChaCha20 under a key made of a secret and what the draw is for: nobody without the secret can tell it from
    chance, and the same secret, purpose and keys give the same."""

    def __init__(self, secret: str, purpose: str, *keys: int | str) -> None:
        text = "\x1f".join([purpose, *map(str, keys), secret])
        key = hashlib.sha256(b"fedinit draws\x1f" + text.encode("utf-8", "surrogateescape")).digest()
        self._stream = KeyStream(key)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        return normal_of(self._stream.words(math.prod(shape))).reshape(tuple(shape)).to(dtype)

    def uniform(self, count: int) -> Tensor:
        return torch.from_numpy((self._stream.words(count) >> np.uint64(11)) / 2.0**53)


def draws(seed: int, secret: str, purpose: str, *keys: int | str) -> Draws:
    """By the secret where there is one, and then not by the seed, which others know: the noise of many seeds would
    average off."""
    return Keyed(secret, purpose, *keys) if secret else Seeded(seed, purpose, *keys)


def normal_of(words: np.ndarray) -> Tensor:
    """(n,) standard normal numbers in float64, of uniform words of 64 bits, by the inverse of the distribution."""
    from scipy.special import ndtri

    # 52 bits and a half: of 53 the largest would round to 1, whose number is infinite.
    return torch.from_numpy(ndtri(((words >> np.uint64(12)) + 0.5) / 2.0**52))
