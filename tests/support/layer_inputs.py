"""Clients whose layers have given inputs, and what they answer to EVA's requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedinit.initializers import create_initializer
from fedinit.initializers.initializer import InitContext, run
from fedinit.state.start import StartState
from fedinit.statistics import Request, Statistics, add_up, create_statistics, pack, unpack

K, RANK, ROWS = 40, 4, 300


def inputs(k: int = K, rows: int = ROWS, seed: int = 0, fall: float = 1.0, mean: float = 1.0) -> Tensor:
    """(rows, k) in float64 whose singular values fall as i^-fall about a mean of that size."""
    draw = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(k, k, generator=draw, dtype=torch.float64)).Q
    sizes = torch.arange(1, k + 1, dtype=torch.float64) ** -fall
    centre = mean * torch.randn(k, generator=draw, dtype=torch.float64)
    return torch.randn(rows, k, generator=draw, dtype=torch.float64) * sizes @ turn + centre


class Clients:
    """What clients answer whose layers have these inputs, {layer: (n, k)}, dealt to them in rows up to each of `cuts`.

    wire: as they answer over the wire; else in float64.
    """

    def __init__(self, layers: Mapping[str, Tensor], cuts: Sequence[int] = (), wire: bool = False) -> None:
        self.layers, self.cuts, self.wire = layers, list(cuts), wire
        self.asked: list[Request] = []

    def ask(self, request: Request) -> Statistics:
        self.asked.append(request)
        return add_up([self._one(request, part) for part in self._parts()])

    def _parts(self) -> list[dict[str, Tensor]]:
        rows = len(next(iter(self.layers.values())))
        edges = [0, *self.cuts, rows]
        return [{n: x[a:b] for n, x in self.layers.items()} for a, b in zip(edges, edges[1:], strict=False)]

    def _one(self, request: Request, part: Mapping[str, Tensor]) -> Statistics:
        statistics, sums = create_statistics(request), {}
        dtype = torch.float32 if self.wire else torch.float64
        for layer, statistic in statistics.items():
            found = statistic.measure(part[layer].to(dtype))
            sums |= {f"{layer}/{key}": value for key, value in found.items()}
        if self.wire:
            sums = unpack(statistics, pack(statistics, sums))
        return Statistics(len(next(iter(part.values()))), sums)

    def start(self, rank: int = RANK, d: int = 30, **options: object) -> StartState:
        targets = {name: (d, x.shape[1]) for name, x in self.layers.items()}
        setting = InitContext(targets=targets, rank=rank, scale=2.0, seed=0)
        initializer = create_initializer("eva", {"rho": 1.0, "sketch": "exact", **options})
        return run(initializer, setting, self.ask)
