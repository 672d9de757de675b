"""FFA-LoRA: one factor is frozen on all clients in all rounds, A in the paper; the other is trained and averaged.

Sun et al., ICLR 2024, arXiv 2403.12313. Exact, since Σ p_i B_i A = B̄ A, and Σ p_i B A_i = B Ā. A client whose frozen
factor differs from the others' would make it silently wrong (public code redraws A per client), so that is refused.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedinit.adapters.kinds import EVERY_KIND
from fedinit.factors import Factors, mean
from strategies.aggregator import Aggregator


@dataclass(frozen=True, kw_only=True)
class OneFrozen(Aggregator):
    """One factor is averaged, the other the same on all clients in all rounds. Raises ValueError where it differs."""

    @property
    @abstractmethod
    def frozen_factor(self) -> Literal["A", "B"]:
        """Which factor is frozen, "A" or "B"."""

    def trainable(self, round: int) -> frozenset[str]:
        return frozenset({"A", "B"} - {self.frozen_factor})

    def sums(self, round: int) -> tuple[str, ...]:
        return tuple(self.trainable(round))

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        part = self.frozen_factor
        shared = (products[0] if start is None else start).parts[part]
        if not all(torch.equal(p.parts[part], shared) for p in products):
            raise ValueError(f"a client's {part} is not the frozen {part} that all clients share")
        if part == "A":
            return Factors(shared.to(torch.float64), mean([p.B for p in products], weights))
        return Factors(mean([p.A for p in products], weights), shared.to(torch.float64))


@dataclass(frozen=True, kw_only=True)
class FFALoRA(OneFrozen):
    """frozen: the factor that is not trained: A, or B for starts with a B to keep and A = 0 (init=mica)."""

    reinits: ClassVar[tuple[str, ...]] = ("average", "local", "local_on_global")
    why: ClassVar[str] = "which keeps a factor frozen and the same on all clients"
    kinds: ClassVar[tuple[str, ...]] = EVERY_KIND

    frozen: Literal["A", "B"] = "A"

    @property
    def frozen_factor(self) -> Literal["A", "B"]:
        return self.frozen
