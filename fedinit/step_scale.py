"""SGD-SaI's step scale of a block: its gradient's signal-to-noise ratio. Xu et al. 2024, arXiv 2412.11768.

‖g‖₂ / (std(g) + 1e-8), with the unbiased deviation over the block's numbers. A block whose numbers do not vary (one
number among them) has scale 1, where the formula would give ‖g‖/1e-8.
"""

from __future__ import annotations

import torch
from torch import Tensor


def step_scale(square: Tensor, around: Tensor, count: Tensor) -> Tensor:
    """The step scales of blocks, in float64, of the arguments' shape.

    square: Σ g² of each block.
    around: Σ (g − ḡ)² of each block.
    count: how many numbers each block has.
    """
    variance = around.clamp(min=0) / (count - 1).clamp(min=1)
    varies = (count > 1) & (variance > 1e-12 * square)  # below that it is rounding
    return torch.where(varies, square.sqrt() / (variance.sqrt() + 1e-8), 1.0)


def scale_of(gradient: Tensor) -> float:
    """The step scale of one block, from its gradient; 0 where that is exactly zero, which fixes nothing."""
    g = gradient.double()
    square, around = g.square().sum(), (g - g.mean()).square().sum()
    return float(step_scale(square, around, torch.tensor(g.numel()))) if square > 0 else 0.0
