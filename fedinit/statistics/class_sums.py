"""What heads are made from: how many examples each class has, the sum of their pooled features, and their second
moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedinit.statistics.gram import about_mean, is_positive, pack, shift, unpack
from fedinit.statistics.statistic import Statistic


@dataclass(frozen=True)
class ClassSums(Statistic):
    """The pooled features z summed by class, over C classes and D features.

    count: the examples.
    counts: (C,), n_c of each class.
    sums: (C, D), Σ z over each class.

    On the way sums, and what else is summed of z, are about the client's mean (D,), which goes with them. Of a mean
    over the examples n_c is a fraction, and by its rounding in float32 alone a scatter about the class means would not
    be one where features hardly differ.
    """

    exact: ClassVar[frozenset[str]] = frozenset({"counts"})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"count": (), "counts": self.shape[:1], "sums": self.shape}

    def measure(self, values: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
        member = torch.nn.functional.one_hot(self.beside(other).to(values.device), self.shape[0]).double()  # (n, C)
        rows, centre, _ = about_mean(values)
        counts = member.sum(0, dtype=torch.float64)
        count = torch.tensor(len(values), dtype=torch.float64)
        return {"count": count, "counts": counts, "sums": member.T @ rows.double() + torch.outer(counts, centre)}

    def sent(self) -> dict[str, tuple[int, ...]]:
        return self.shapes() | {"mean": self.shape[1:]}

    def reduced(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums about the client's own mean, which goes with them: D numbers more, and no class loses digits to it.

        The mean is of the sums as they are sent, noise and all, so that it says nothing that they do not.
        """
        mean = (sums["sums"].sum(0) / max(float(sums["count"]), 1e-12)).float()
        return sums | {"mean": mean, "sums": sums["sums"] - torch.outer(sums["counts"], mean.double())}

    def restored(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        rest = {key: value for key, value in sums.items() if key != "mean"}
        means = torch.outer(sums["counts"].double(), sums["mean"].double())
        return rest | {"sums": sums["sums"].double() + means}

    def sensitivity(self, clip: float, rows: int) -> dict[str, float]:
        return {"counts": 1.0, "sums": clip}

    def fault(self, sums: Mapping[str, Tensor], examples: int) -> str:
        if said := super().fault(sums, examples):
            return said
        images, counts, slack = (
            self.images(sums, examples)[0],
            sums["counts"].double(),
            self.slack("counts", sums, examples),
        )
        each = counts * (examples / images)  # images of a class, where they are a client's mean
        whole = slack or bool(((each - each.round()).abs() <= 1e-6).all())
        off = abs(float(counts.sum()) - images)
        if not whole or not bool((counts >= -6 * slack).all()) or off > 6 * slack * len(counts) ** 0.5 + 1e-3 * images:
            return f"{self.layer}: class counts that are none of {examples} images"
        lengths, noise = sums["sums"].double().norm(dim=1), self.slack("sums", sums, examples)
        most = (counts.clamp(min=0) + 6 * slack) * self.energy(1.0) ** 0.5 + 6 * noise * sums["sums"].shape[1] ** 0.5
        if not bool((lengths <= 1.001 * most).all()):
            return f"{self.layer}: sums of features longer than those of so many images"
        return ""


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
        exact = rows.double()  # the scatter inside classes of hardly different images is what rounding would leave
        gram = exact.T @ exact + shift(centre, total, len(values))
        return super().measure(values, other) | {"gram": pack(gram)}

    def reduced(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """The moment about the same mean, of as many examples as the classes add up to, with noise other than `count`:
        what is put back is what was taken."""
        sent = super().reduced(sums)
        mean, count = sent["mean"].double(), _added(sums["counts"])
        return sent | {"gram": sums["gram"] - pack(shift(mean, sums["sums"].sum(0) - count * mean, count))}

    def restored(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        mean = sums["mean"].double()
        moved = pack(shift(mean, sums["sums"].double().sum(0), _added(sums["counts"])))
        return super().restored(sums) | {"gram": sums["gram"].double() + moved}

    def sensitivity(self, clip: float, rows: int) -> dict[str, float]:
        return super().sensitivity(clip, rows) | {"gram": clip**2}

    def fault(self, sums: Mapping[str, Tensor], examples: int) -> str:
        """The scatter inside the classes, Σ z zᵀ − Σ s_c s_cᵀ / n_c, is positive semi-definite too."""
        if said := super().fault(sums, examples):
            return said
        gram, slack = unpack(sums["gram"].double(), self.shape[1]), self.slack("gram", sums, examples)
        trace, most = float(gram.trace()), self.energy(self.images(sums, examples)[0])
        if not trace <= most + 6 * slack * len(gram) ** 0.5:
            return f"{self.layer}: a second moment of trace {trace:.3g} over {examples} images"
        inside, counts, spread = gram, sums["counts"].double(), None
        if not slack:
            of_classes = sums["sums"].double()
            means = of_classes[counts > 0] / counts[counts > 0].sqrt()[:, None]
            inside = gram - means.T @ means  # nothing but rounding, where every class has one image
            spread = gram.diagonal() - of_classes.sum(0).square() / counts.sum().clamp(min=1e-12)
        if not is_positive(inside, 3 * slack * len(gram) ** 0.5, trace, spread):
            return f"{self.layer}: its second moment is not positive semi-definite"
        return ""


def _added(counts: Tensor) -> float:
    """What the counts (C,) add up to."""
    return float(counts.double().sum())
