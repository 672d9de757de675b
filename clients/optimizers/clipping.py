"""Clipping by the global norm, every client's gradient by itself: `client.clip_norm`."""

from __future__ import annotations

import torch
from torch import Tensor


def clip(gradient: Tensor, max_norm: float) -> None:
    """Scale each row of `gradient` (clients, P), in place, so that its norm is at most `max_norm`.

    As torch.nn.utils.clip_grad_norm_ for every client alone, with its 1e-6 in the denominator.
    """
    norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    gradient.mul_((max_norm / (norms + 1e-6)).clamp(max=1.0))
