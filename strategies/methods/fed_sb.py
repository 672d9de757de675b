"""Fed-SB: A and B are frozen and the same on all clients; the core R between them, r×r, is trained and averaged.

Singhal et al., 2025, arXiv 2502.15436, on LoRA-SB's parametrisation. Exact, since Σ p_i B R_i A = B (Σ p_i R_i) A: no
aggregation bias at r² numbers a layer each way. The public code averages without weights; here p_i are the run's. A
client of rank r_i trains the leading r_i×r_i block; the server pads it with zeros, which is exact as well. What can be
learned lies in the column space of B and the row space of A, so `init=` decides more here than elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedinit.adapters.core import CoreFactors
from fedinit.adapters.kinds import LORA_ALONE
from fedinit.factors import Factors, leading, mean, pad
from strategies.aggregator import Aggregator


@dataclass(frozen=True, kw_only=True)
class FedSB(Aggregator):
    """The mean of the clients' cores, between the A and B that they all share."""

    cores: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = LORA_ALONE
    mixed_ranks: ClassVar[bool] = True
    reinits: ClassVar[tuple[str, ...]] = ("average", "local", "local_on_global")
    why: ClassVar[str] = "which keeps A and B frozen and the same on all clients"

    def trainable(self, round: int) -> frozenset[str]:
        return frozenset({"R"})

    def sums(self, round: int) -> tuple[str, ...]:
        return ("R",)

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        shared = max(products, key=lambda p: p.rank) if start is None else start
        for product in products:
            frozen = leading(shared, product.rank)
            if "R" not in product.parts or not torch.equal(product.A, frozen.A) or not torch.equal(product.B, frozen.B):
                raise ValueError("a client's A and B are not the frozen ones that all clients share, around a core")
        core = mean([pad(p, shared.rank).parts["R"] for p in products], weights)
        return CoreFactors(shared.A.to(torch.float64), shared.B.to(torch.float64), core)

    def averaged(self, products: Sequence[Factors], merged: Factors) -> Sequence[Factors]:
        cores = [pad(p, merged.rank).parts["R"].to(torch.float64) for p in products]
        return [CoreFactors(merged.A, merged.B, R).absorb() for R in cores]
