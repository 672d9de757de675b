"""Whether this process's matrix products give a row the same bits among any number of others (fedinit/rounding.py)."""

from __future__ import annotations

import functools
import os

import torch
from torch.nn.functional import linear

from fedinit.rounding import MODE, STRICT, is_intel
from fedinit.threads import intra_op

LONG = (8, 260, 520)
# Of a class token of few images, and of all tokens of few and of many: kernels of some of MKL's modes change by these.
# A processor of which no mode is asked keeps them wherever it keeps LONG, as far as is known.
ROWS = (4, 5, 7, *LONG, 10, 12, 16, 20, 65, 130, 195, 325)


@functools.cache
def rows_are_kept() -> bool:
    """Whether this process's products do so, by some of them, on one thread as a lane's are: not where another mode was
    in use before, or is wanted."""
    draw, asked = torch.Generator().manual_seed(0), ROWS if MODE in os.environ else LONG
    for k, n in ((128, 384), (512, 128), (128, 8)):
        x, weight = torch.randn(780, k, generator=draw), torch.randn(n, k, generator=draw)
        with intra_op(1):
            every = linear(x, weight)
            if any(not torch.equal(linear(x[:rows], weight), every[:rows]) for rows in asked):
                return False
    return True


def said() -> str | None:
    """A line about products that depend on how many rows there are; None where they do not."""
    if rows_are_kept():
        return None
    by = f"this processor's products, or {MODE}, have it so"
    if is_intel():
        by = f"this process multiplied matrices before fedinit was imported, or {MODE} says otherwise; "
        by += f"import fedinit first, or set {MODE}={STRICT}"
    return f"engine: a client's bytes depend on who else is in its bank here, since {by}"
