"""FFA-LoRA: one factor is frozen on all clients in all rounds, A in the paper; the other is trained and averaged.

Sun et al., ICLR 2024, arXiv 2403.12313. Exact, since Σ p_i B_i A = B̄ A, and Σ p_i B A_i = B Ā. A client whose frozen
factor differs from the others' would make it silently wrong (public code redraws A per client), so that is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedinit.factors import Factors
from strategies.aggregator import Aggregator, mean


@dataclass(frozen=True, kw_only=True)
class FFALoRA(Aggregator):
    """frozen: A, or B for starts with a B to keep and A = 0 (init=mica)."""

    reinits: ClassVar[tuple[str, ...]] = ("average", "local")
    why: ClassVar[str] = "which keeps a factor frozen and the same on all clients"
    kinds: ClassVar[tuple[str, ...]] = ("lora", "dora", "vera")

    frozen: Literal["A", "B"] = "A"

    def trainable(self, round: int) -> frozenset[str]:
        return frozenset({"A", "B"} - {self.frozen})

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        shared = getattr(products[0] if start is None else start, self.frozen)
        if not all(torch.equal(getattr(p, self.frozen), shared) for p in products):
            raise ValueError(f"a client's {self.frozen} is not the frozen {self.frozen} that all clients share")
        if self.frozen == "A":
            return Factors(shared.to(torch.float64), mean([p.B for p in products], weights))
        return Factors(mean([p.A for p in products], weights), shared.to(torch.float64))
