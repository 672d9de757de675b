"""What the first round should take off the loss, to first order, if the probe's gradient were that of every step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedinit.config.client import ClientConfig, SGDConfig
from fedinit.factors import Factors


def adapter_gradients(
    parts: frozenset[str], inputs: Tensor, gradients: Tensor, product: Factors, scale: float
) -> dict[str, Tensor]:
    """{part: gradient of the loss}, of the shape of the part. Factors with a core are not in here.

    parts: those of "A" and "B" that are wanted.
    inputs: of the layer, (n, t, k).
    gradients: of the loss by the layer's outputs, (n, t, d).
    product: the layer's A and B.
    scale: s.
    """
    total = gradients.flatten(0, 1).T @ inputs.flatten(0, 1)  # (d, k): the gradient by the weight
    by_part = {"A": scale * product.B.T @ total, "B": scale * total @ product.A.T}
    return {part: value for part, value in by_part.items() if part in parts}


def predicted(gradients: Mapping[str, Tensor], settings: ClientConfig, steps: float) -> float | None:
    """Σ_t η_t·‖g‖² over the steps of a round of SGD, with g as it is at the start; None for other optimisers.

    gradients: {name: gradient at the start}, "<layer>/B" for the B of a layer.
    settings: the clients' optimiser.
    steps: of the round; a fraction counts in part.

    With momentum μ step t has moved η(1 − μᵗ)/(1 − μ). A norm over `client.clip_norm` is cut to it in one of the two
    factors ‖g‖; client.lr_ratio_b multiplies the part of B. Weight decay and FedProx are left out.
    """
    if not isinstance(settings, SGDConfig):
        return None
    squares = {name: float(value.double().square().sum()) for name, value in gradients.items()}
    size = sum(squares.values()) ** 0.5
    weighted = sum(s * (settings.lr_ratio_b if name.endswith("/B") else 1.0) for name, s in squares.items())
    if settings.clip_norm is not None and size > settings.clip_norm:
        weighted *= settings.clip_norm / size
    decay, full_steps = settings.momentum, int(steps)
    moved = sum((1 - decay**t) / (1 - decay) for t in range(1, full_steps + 1))
    moved += (steps - full_steps) * (1 - decay ** (full_steps + 1)) / (1 - decay)
    return settings.lr * moved * weighted
