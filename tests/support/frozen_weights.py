"""Three layers with random frozen weights, and the inputs that a start may ask about."""

from __future__ import annotations

import torch

from fedinit.initializers.initializer import InitContext
from fedinit.statistics import Statistics
from fedinit.statistics.gram import pack

SHAPES = {"wide": (12, 30), "tall": (30, 12), "square": (16, 16)}
RANK, SCALE = 4, 3.0


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) / shape[1] ** 0.5 for name, shape in SHAPES.items()}


WEIGHTS = weights()


def setting(weight=WEIGHTS.__getitem__, rank=RANK, scale=SCALE) -> InitContext:
    return InitContext(targets=SHAPES, rank=rank, scale=scale, seed=0, weight=weight)


def inputs(seed: int = 0, decay: float = 0.7) -> dict[str, torch.Tensor]:
    """{layer: (200, k) rows whose directions fall off}."""
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, (_, k) in SHAPES.items():
        basis = torch.linalg.qr(torch.randn(k, k, generator=draw, dtype=torch.float64)).Q
        made[name] = torch.randn(200, k, generator=draw, dtype=torch.float64) * decay ** torch.arange(k) @ basis
    return made


def spread(rows):
    """Answers a request for Gram statistics over these rows."""

    def ask(request):
        sums = {}
        for name in request.layers:
            assert request.layers[name] == "gram"  # a sketch holds no minor components
            sums[f"{name}/count"] = torch.tensor(float(len(rows[name])), dtype=torch.float64)
            sums[f"{name}/sum"] = rows[name].sum(0)
            sums[f"{name}/gram"] = pack(rows[name].T @ rows[name])
        return Statistics(200, sums)

    return ask
