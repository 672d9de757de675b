"""What heads are made from: how many examples each class has, the sum of their pooled features, and their second
moment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.statistics.gram import about_mean, pack, shift
from fedinit.statistics.statistic import Statistic


@dataclass(frozen=True)
class ClassSums(Statistic):
    """The pooled features z summed by class, over C classes and D features.

    count: the examples.
    counts: (C,), n_c of each class.
    sums: (C, D), Σ z over each class.

    On the way sums, and what else is summed of z, are about the client's mean (D,), which goes with them.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"count": (), "counts": self.shape[:1], "sums": self.shape}

    def measure(self, values: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
        member = torch.nn.functional.one_hot(self.beside(other).to(values.device), self.shape[0]).to(values)  # (n, C)
        rows, centre, _ = about_mean(values)
        counts = member.sum(0, dtype=torch.float64)
        count = torch.tensor(len(values), dtype=torch.float64)
        return {"count": count, "counts": counts, "sums": (member.T @ rows).double() + torch.outer(counts, centre)}

    def sent(self) -> dict[str, tuple[int, ...]]:
        return self.shapes() | {"mean": self.shape[1:]}

    def reduced(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums about the client's own mean, which goes with them: D numbers more, and no class loses digits to it.

        The mean is of the sums as they are sent, noise and all, so that it says nothing that they do not.
        """
        mean = (sums["sums"].sum(0) / max(float(sums["count"]), 1e-12)).float()
        return sums | {"mean": mean, "sums": sums["sums"] - torch.outer(sums["counts"].float().double(), mean.double())}

    def restored(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        rest = {key: value for key, value in sums.items() if key != "mean"}
        means = torch.outer(sums["counts"].double(), sums["mean"].double())
        return rest | {"sums": sums["sums"].double() + means}

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
        rows, centre, total = about_mean(values)
        gram = (rows.T @ rows).double() + shift(centre, total, len(values))
        return super().measure(values, other) | {"gram": pack(gram)}

    def reduced(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """The moment about the same mean."""
        sent = super().reduced(sums)
        mean, count = sent["mean"].double(), float(sums["count"])
        return sent | {"gram": sums["gram"] - pack(shift(mean, sums["sums"].sum(0) - count * mean, count))}

    def restored(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """With the number of examples that the classes add up to, as the scatter will be taken of."""
        mean = sums["mean"].double()
        moved = pack(shift(mean, sums["sums"].double().sum(0), float(sums["counts"].double().sum())))
        return super().restored(sums) | {"gram": sums["gram"].double() + moved}

    def sensitivity(self, clip: float, rows: int) -> dict[str, float]:
        return super().sensitivity(clip, rows) | {"gram": clip**2}
