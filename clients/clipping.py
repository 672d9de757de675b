"""How far something of one example is scaled down, so that it is no longer than the clip."""

from __future__ import annotations

import torch
from torch import Tensor

NUMBERS = 2**20  # whose float64 copies are there at once


def norms_of(rows: Tensor) -> Tensor:
    """(m,) in float64, of rows (m, P), some at a time: torch makes float64 copies of what it takes norms of."""
    parts = rows.split(max(NUMBERS // max(rows.shape[1], 1), 1))
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts])


def clip_factors(norms: Tensor, clip: float, dtype: torch.dtype) -> Tensor:
    """min(1, C/‖x‖) in `dtype`; of a norm of zero 1.

    norms: in float64, in which no square of a float32 is lost: of a norm of zero nothing would be clipped. Where the
    factor is below the dtype's normal numbers, whose rounding may be as large as they are, it is 0: nothing is left.
    """
    factors = (clip / norms).clamp(max=1.0)
    return factors.where(~(factors < torch.finfo(dtype).tiny), 0.0).to(dtype)  # NaN stays
