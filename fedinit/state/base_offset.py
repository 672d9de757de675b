"""The base offset: what merging methods add to the frozen weights, the same on every client.

The effective weight of an adapted layer is W0 + s·(O + B A). W0 is never touched, so its hash stays what it was; O is a
float32 matrix beside it, to which each merge adds a product of factors, summed in float64 and rounded once. Server and
clients advance O by the same merges in the same order, so all hold the same bytes; the key, a hash chain over the
merges, is how they know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from fedinit.factors import Factors
from fedinit.state import digest

RECORD = "base"  # the ArrayRecord of a message that carries merges, or the whole offset
NAME = "offset/"  # before a layer's name, where an offset stands among other tensors
EMPTY = ""  # the key of a base that nothing was merged into

Offset = Mapping[str, Tensor]  # {layer: (d, k) float32}; a layer that is absent is zero
Merge = Mapping[str, Factors]  # {layer: product}


def advance(offset: Offset, merge: Merge) -> dict[str, Tensor]:
    """{layer: O + B A}, (d, k) in float32 from a float64 sum; layers without a merge keep their O. Neither argument is
    changed."""
    advanced = dict(offset)
    for name, product in merge.items():
        total = product.to(torch.float64).dense()
        if name in advanced:
            total += advanced[name]
        advanced[name] = total.float()
    return advanced


def next_key(key: str, merge: Merge) -> str:
    """The key of the base after a merge, 64 hexadecimal digits. key: that of the base before it."""
    return hashlib.sha256(f"{key}|{digest.of_tensors(digest.named_parts(merge))}".encode()).hexdigest()


def nbytes(merge: Merge) -> int:
    """Bytes of a merge's tensors, without what a message puts around them."""
    return sum(t.numel() * t.element_size() for t in digest.named_parts(merge).values())
