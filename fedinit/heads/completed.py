"""Rows for classes that nobody has examples of, from the rows of the others, as vocabularies are extended.

mvn     drawn from the normal distribution of the other rows (Hewitt, 2021, "Initializing new word embeddings")
convex  a convex combination of the other rows, weighted by similarity (WECHSEL: Minixhofer et al., 2022, arXiv
        2112.06598; its softmax, here with the maximum taken off)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedinit.config.checks import at_least, positive, refuse_unread, within
from fedinit.heads.estimators import nearest_mean, ridge
from fedinit.heads.head import HeadContext
from fedinit.heads.measured import KnownClasses, MeasuredHead, Rows
from fedinit.seeding import torch_generator


@dataclass(frozen=True, kw_only=True)
class Completed(MeasuredHead):
    """A measured head whose missing classes get rows made from the others'.

    base: how the others' rows are made, by ridge regression or as nearest class means.
    lam: of ``ridge``.
    """

    base: Literal["ridge", "ncm"] = "ridge"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base == "ncm":
            refuse_unread("head", self, ("lam",), "with head.base=ncm, but with ridge")

    @property
    def needs_moment(self) -> bool:
        return self.base == "ridge"

    def rows(self, known: KnownClasses) -> Rows:
        return ridge(known, self.lam) if self.base == "ridge" else nearest_mean(known, None)


@dataclass(frozen=True, kw_only=True)
class MVN(Completed):
    """A missing row is drawn from N(m, (1 − ρ) S + ρ·tr S/p · I), with m and S the mean and covariance of the others'
    p = D + 1 numbers. S has fewer dimensions than there are classes, and ρ opens the rest.

    shrinkage: ρ, from 0 to 1.
    """

    shrinkage: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        within("head.shrinkage", self.shrinkage, 0, 1)

    def fill(self, rows: Rows, known: KnownClasses, missing: Sequence[int], context: HeadContext) -> tuple[Tensor, str]:
        joined = rows.joined
        centred = (joined - joined.mean(0)) / (len(joined) - 1) ** 0.5  # S = centredᵀ centred
        spread = (centred.square().sum() / joined.shape[1]).sqrt()
        drawn = []
        for index in missing:
            draw = torch_generator(context.seed, "head", index)
            inside = torch.randn(len(joined), generator=draw, dtype=torch.float64) @ centred
            outside = torch.randn(joined.shape[1], generator=draw, dtype=torch.float64) * spread
            drawn.append((1 - self.shrinkage) ** 0.5 * inside + self.shrinkage**0.5 * outside)
        return joined.mean(0) + torch.stack(drawn), "drawn from the normal distribution of the other rows"


@dataclass(frozen=True, kw_only=True)
class Convex(Completed):
    """A missing row is the mean of its nearest classes' rows, weighted by softmax(similarity/τ).

    The similarity of two classes is the cosine of their mean features. A class that nobody has has no mean; the mean of
    the others' means stands in for it, so its row leans on the classes in the middle of the feature space.

    neighbours: how many classes take part at most.
    temperature: τ.
    """

    neighbours: int = 10
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("head.neighbours", self.neighbours, 1)
        positive("head.temperature", self.temperature)

    def fill(self, rows: Rows, known: KnownClasses, missing: Sequence[int], context: HeadContext) -> tuple[Tensor, str]:
        similarity = torch.cosine_similarity(known.means, known.means.mean(0, keepdim=True), dim=1)
        nearest = similarity.argsort(descending=True, stable=True)[: self.neighbours]
        weights = (similarity[nearest] / self.temperature).softmax(0)
        row = weights @ rows.joined[nearest]
        return row.expand(len(missing), -1), f"a convex combination of {len(nearest)} other rows"
