"""FFA-LoRA: A is drawn once and frozen on all clients in all rounds; B is trained and averaged.

Sun et al., ICLR 2024, arXiv 2403.12313. Exact, since Σ p_i B_i A = B̄ A. A client whose A differs from the others'
would make it silently wrong (public code redraws A per client), so that is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedinit.factors import Factors
from strategies.aggregator import Aggregator, mean


@dataclass(frozen=True, kw_only=True)
class FFALoRA(Aggregator):
    reinits: ClassVar[tuple[str, ...]] = ("average", "local")
    why: ClassVar[str] = "which keeps a factor frozen and the same on all clients"

    def trainable(self, round: int) -> frozenset[str]:
        return frozenset({"B"})

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        shared = products[0].A if start is None else start.A
        if not all(torch.equal(p.A, shared) for p in products):
            raise ValueError("ffa_lora: a client's A is not the frozen A that all clients share")
        return Factors(shared.to(torch.float64), mean([p.B for p in products], weights))
