"""FRLoRA: averaged factors, merged into the base each round; clients restart from its principal components.

Yan et al., ICLR 2025 (federated residual low-rank adaptation). The averaging is FedIT's; what makes the method is the
re-initialisation, `reinit=pissa`: the top-r singular triplets of W0 plus everything learned so far become the start
factors, and the base gives them up, so that the effective model stays as it was. The paper takes the triplets of the
pretrained W0 in every round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedinit.adapters.kinds import PRODUCT_KINDS
from strategies.methods.fedit import FedIT


@dataclass(frozen=True, kw_only=True)
class FRLoRA(FedIT):
    """FedIT's mean, which `reinit=pissa` merges into the base after every round."""

    kinds: ClassVar[tuple[str, ...]] = PRODUCT_KINDS
    mixed_ranks: ClassVar[bool] = False
    reinits: ClassVar[tuple[str, ...]] = ("pissa",)
    unmoved: ClassVar[str] = "whose clients do not start from the global factors"
    why: ClassVar[str] = "which is this re-initialisation"
