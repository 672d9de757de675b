"""Nearest class mean, exact, from the sums of each class alone (as in FedNCM: Legate et al., NeurIPS 2023, arXiv
2306.03937).

Differs: squared distances instead of cosines, since the head stays linear in the features; and a measured scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedinit.config.checks import refuse_unread
from fedinit.heads.estimators import nearest_mean
from fedinit.heads.measured import KnownClasses, MeasuredHead, Rows


@dataclass(frozen=True, kw_only=True)
class NCM(MeasuredHead):
    """The nearest class mean as a linear classifier.

    covariance: ``none`` is the Euclidean distance; ``shared`` the metric of the classes' common covariance, which is
        linear discriminant analysis and needs the features' second moment.
    lam: of that covariance's shrinkage, as in `Ridge`.
    """

    covariance: Literal["none", "shared"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.covariance == "none":
            refuse_unread("head", self, ("lam",), "with head.covariance=none, but with shared")

    @property
    def needs_moment(self) -> bool:
        return self.covariance == "shared"

    def rows(self, known: KnownClasses) -> Rows:
        return nearest_mean(known, self.lam if self.needs_moment else None)
