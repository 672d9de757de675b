"""FedSVD: FFA-LoRA whose frozen A follows what was learned: after each round B̄A is split anew by its SVD.

Lee et al., NeurIPS 2025, arXiv 2505.12805. Clients train B with A frozen, so B̄A is the ideal update; A becomes the
right singular vectors (orthonormal rows) and B = US. The product does not change. A changes every round and is sent
down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedinit.factors import Factors
from fedinit.spectra import truncate
from strategies.methods.ffa_lora import FFALoRA


@dataclass(frozen=True, kw_only=True)
class FedSVD(FFALoRA):
    reinits: ClassVar[tuple[str, ...]] = ("average",)
    kinds: ClassVar[tuple[str, ...]] = ("lora", "dora")
    why: ClassVar[str] = "which splits the product itself"
    unmoved: ClassVar[str] = "whose A would lose its orthonormal rows"
    frozen: ClassVar[str] = "A"  # no option here: the split makes the rows of A orthonormal

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        frozen_a = super().merge(products, weights, start)
        return truncate(frozen_a, frozen_a.rank, gauge="right")
