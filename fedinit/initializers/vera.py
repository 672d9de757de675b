"""VeRA's start: one random A and one random B for all layers, d constant and b zero, so the model is as it was.

Kopiczko et al., ICLR 2024, arXiv 2310.11454. A (r, max k) and B (max d, r) are drawn from the run's seed, uniform with
Kaiming's bound √(6/fan_in) as PEFT has it, and a layer of (d, k) takes the first k columns of A and the first d rows of
B. The server sends each client its layers' slices once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedinit.adapters.vera import VeRAFactors
from fedinit.config.checks import positive
from fedinit.initializers.initializer import InitContext, Initializer
from fedinit.seeding import torch_generator
from fedinit.state.start import StartState


@dataclass(frozen=True, kw_only=True)
class VeRA(Initializer):
    """Drawn A and B, d constant, b = 0.

    d_initial: every entry of d; above zero.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vera",)
    random: ClassVar[bool] = True

    d_initial: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("init.d_initial", self.d_initial)

    def plan(self, context: InitContext) -> StartState:
        self.check(context.rank)
        draw, rank = torch_generator(context.seed, "init", "vera"), context.rank
        most_d, most_k = (max(sizes) for sizes in zip(*context.targets.values(), strict=True))
        A, B = (
            torch.empty(shape).uniform_(-1, 1, generator=draw) * (self.scale * (6 / shape[1]) ** 0.5)
            for shape in ((rank, most_k), (most_d, rank))
        )
        layers = {
            name: VeRAFactors(
                A[:, :k].contiguous(), B[:d].contiguous(), b=torch.zeros(d), d=torch.full((rank,), self.d_initial)
            )
            for name, (d, k) in context.targets.items()
        }
        return StartState(layers=layers)
