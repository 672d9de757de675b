"""FedSVD: FFA-LoRA whose frozen A follows what was learned: after each round B̄A is split anew by its SVD.

Lee et al., NeurIPS 2025, arXiv 2505.12805. Clients train B with A frozen, so B̄A is the ideal update; A becomes the
right singular vectors (orthonormal rows) and B = US. The product does not change. A changes every round and is sent
down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fedinit.adapters.kinds import PRODUCT_KINDS
from fedinit.factors import Factors
from fedinit.spectra import truncate
from strategies.methods.ffa_lora import OneFrozen


@dataclass(frozen=True, kw_only=True)
class FedSVD(OneFrozen):
    """The mean of B over the frozen A, split again so that the rows of A are orthonormal."""

    reinits: ClassVar[tuple[str, ...]] = ("average",)
    kinds: ClassVar[tuple[str, ...]] = PRODUCT_KINDS
    why: ClassVar[str] = "which splits the product itself"
    unmoved: ClassVar[str] = "whose A would lose its orthonormal rows"

    @property
    def frozen_factor(self) -> Literal["A", "B"]:
        """A, and no option: the split makes its rows orthonormal."""
        return "A"

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        frozen_a = super().merge(products, weights, start)
        return truncate(frozen_a, frozen_a.rank, gauge="right")
