"""LoRA: a product of two thin matrices beside a frozen weight.

    y = x Wᵀ + bias + s · (x Aᵀ) Bᵀ          ΔW = s·B A          A: (r, k)  B: (d, r)  s = α/r

Hu et al., ICLR 2022, arXiv 2106.09685; s = α/√r is rsLoRA (Kalajdzievski 2023, arXiv 2312.03732). Its factors are plain
`Factors`. In a bank A is (K, r, k) and B (K, d, r). A client of a lower rank is padded with zeros: a zero row of A and
a zero column of B give each other no gradient, so they stay exactly zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor

from fedinit.adapters.adapted import Adapted
from fedinit.adapters.contract import Frozen, Kind, Leaves
from fedinit.factors import Factors


class LoRA(Kind):
    """`adapter=lora`; also what clients train in place of factors whose core or vectors do not learn."""

    product: ClassVar[type[Factors]] = Factors
    files: ClassVar[Mapping[str, str]] = MappingProxyType({"A": "lora_A.weight", "B": "lora_B.weight"})

    def forward(self, x: Tensor, mask: Tensor | None, frozen: Frozen, leaves: Leaves, scale: float) -> Tensor:
        n = len(x)
        return Adapted.apply(x, mask, frozen.weight, frozen.bias, leaves["A"][:n], leaves["B"][:n], None, scale)

    def clients(self, leaves: Leaves, count: int) -> list[Factors]:
        rows = [leaf.unbind() for leaf in leaves.values()]  # at once: one by one it would take longer than many a step
        return [self.product(**dict(zip(leaves, parts, strict=True))) for parts in zip(*rows, strict=True)]

    def parameter_count(self, part: str, rank: int, leaves: Leaves) -> int:
        return rank * (leaves["A"].shape[2] if part == "A" else leaves["B"].shape[1])
