"""Whether signal and gradient keep their size through the blocks, as good starts of deep networks have it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def variances(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """{block: variance over all its entries}, of activations or of gradients; population variance."""
    return {name: float(value.double().var(correction=0)) for name, value in tensors.items()}
