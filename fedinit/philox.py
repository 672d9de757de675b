"""Counter-based draws: Philox4x32-10, every number a function of a key and a counter and of nothing before it.

So what a client sees in a step does not depend on the engine, the bank or the device that it is on, nor on how many
steps came before. Salmon, Moraes, Dror & Shaw, SC 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF  # 32 bits; words are held in int64, which every device multiplies
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox(key: Tensor, counter: Tensor) -> Tensor:
    """(…, 4) int64 words below 2^32.

    key: (…) int64, of which all 64 bits count. counter: (…, 4) int64 words below 2^32; the two broadcast.
    """
    low, high = key & WORD, (key >> 32) & WORD
    a, b, c, d = counter.unbind(-1)
    for _ in range(ROUNDS):
        high_a, low_a = _product(MULTIPLIERS[0], a)
        high_c, low_c = _product(MULTIPLIERS[1], c)
        a, b, c, d = high_c ^ b ^ low, low_c, high_a ^ d ^ high, low_a
        low, high = (low + WEYL[0]) & WORD, (high + WEYL[1]) & WORD
    return torch.stack(torch.broadcast_tensors(a, b, c, d), dim=-1)


def below(words: Tensor, bound: int) -> Tensor:
    """int64 in 0 … bound − 1 of uniform words below 2^32, of the shape of `words`; bound: at most 2^31."""
    return (words * bound) >> 32


def _product(multiplier: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of a product of 64; int64 wraps, and the shift's sign bits are cut off."""
    product = words * multiplier
    return (product >> 32) & WORD, product & WORD
