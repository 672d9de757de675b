"""Whether this process's matrix products give a row the same bits among any number of others (fedinit/rounding.py)."""

from __future__ import annotations

import functools

import torch
from torch.nn.functional import linear

from fedinit.rounding import MODE, STRICT
from fedinit.threads import intra_op


@functools.cache
def rows_are_kept() -> bool:
    """Whether this process's products do so, by some of them, on one thread as a lane's are: not where another mode was
    in use before, or is wanted."""
    draw = torch.Generator().manual_seed(0)
    for k, n in ((128, 384), (512, 128), (128, 8)):
        x, weight = torch.randn(780, k, generator=draw), torch.randn(n, k, generator=draw)
        with intra_op(1):
            every = linear(x, weight)
            if any(not torch.equal(linear(x[:rows], weight), every[:rows]) for rows in (8, 260, 520)):
                return False
    return True


def said() -> str | None:
    """A line about products that depend on how many rows there are; None where they do not."""
    if rows_are_kept():
        return None
    return (
        "engine: a client's bytes depend on who else is in its bank here, since this process multiplied matrices "
        f"before fedinit was imported, or {MODE} says otherwise; import fedinit first, or set {MODE}={STRICT}"
    )
