"""What heads are made from: how many examples each class has, the sum of their pooled features, and their second
moment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.statistics.gram import pack
from fedinit.statistics.statistic import Statistic


@dataclass(frozen=True)
class ClassSums(Statistic):
    """The pooled features z summed by class, over C classes and D features.

    count: the examples.
    counts: (C,), n_c of each class.
    sums: (C, D), Σ z over each class.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"count": (), "counts": self.shape[:1], "sums": self.shape}

    def measure(self, values: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
        member = torch.nn.functional.one_hot(self.beside(other).to(values.device), self.shape[0]).to(values)  # (n, C)
        count = torch.tensor(len(values), dtype=torch.float64)
        return {"count": count, "counts": member.sum(0), "sums": member.T @ values}

    def sensitivity(self, clip: float, rows: int) -> dict[str, float]:
        return {"counts": 1.0, "sums": clip}


@dataclass(frozen=True)
class ClassMoments(ClassSums):
    """As `ClassSums`, with the second moment of the features.

    gram: (D(D + 1)/2,), the upper triangle of Σ z zᵀ over all classes.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        features = self.shape[1]
        return super().shapes() | {"gram": (features * (features + 1) // 2,)}

    def measure(self, values: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
        return super().measure(values, other) | {"gram": pack(values.T @ values)}

    def sensitivity(self, clip: float, rows: int) -> dict[str, float]:
        return super().sensitivity(clip, rows) | {"gram": clip**2}
