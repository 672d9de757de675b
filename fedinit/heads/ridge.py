"""Federated ridge regression, exact: the head that one site with all images would find.

From Σ z zᵀ, Σ z and n a class, as in Fed3R (Fanì et al., ICML 2024, arXiv 2406.01116). Differs: an intercept that is
not penalised, and a λ relative to the features' size. As there, the temperature of the softmax is found for the
training that follows.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedinit.heads.estimators import ridge
from fedinit.heads.measured import KnownClasses, MeasuredHead, Rows


@dataclass(frozen=True, kw_only=True)
class Ridge(MeasuredHead):
    """Ridge regression of the one-hot labels on the features.

    lam: λ as a multiple of the mean eigenvalue of the features' scatter.
    """

    @property
    def needs_moment(self) -> bool:
        return True

    def rows(self, known: KnownClasses) -> Rows:
        return ridge(known, self.lam)
