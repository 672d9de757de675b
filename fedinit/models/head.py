"""The linear classifier on top of the backbone's pooled features: trained by every client, and averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from fedinit.seeding import torch_generator


def init_head(kind: str, classes: int, features: int, seed: int) -> dict[str, Tensor]:
    """{"weight": (classes, features), "bias": (classes,)} in float32.

    ``random`` is U(−1/√features, 1/√features) for both, PyTorch's default for a linear layer, drawn from the run's
    seed so that every client starts with the same; ``zero`` gives the adapters no gradient at the first step.
    """
    if kind == "zero":
        return {"weight": torch.zeros(classes, features), "bias": torch.zeros(classes)}
    bound = features**-0.5
    draw = torch_generator(seed, "head")
    return {
        "weight": torch.empty(classes, features).uniform_(-bound, bound, generator=draw),
        "bias": torch.empty(classes).uniform_(-bound, bound, generator=draw),
    }
