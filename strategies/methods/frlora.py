"""FRLoRA: averaged factors, merged into the base each round; clients restart from the components of W0.

Yan et al., ICLR 2025 (federated residual low-rank adaptation). The averaging is FedIT's. What makes the method is where
clients start: in every round from the top-r singular triplets of the pretrained W0, B0 and A0, while the base takes up
s·(B̄Ā − B0A0). So it needs `init=pissa`, which are these triplets, and is `strategy=fedit reinit=fresh init=pissa`.

`reinit=pissa` is another rule: the triplets are those of W0 plus everything learned so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedinit.adapters.kinds import PRODUCT_KINDS
from strategies.methods.fedit import FedIT


@dataclass(frozen=True, kw_only=True)
class FRLoRA(FedIT):
    """FedIT's mean, which goes into the base after every round, in exchange for the components of W0."""

    kinds: ClassVar[tuple[str, ...]] = PRODUCT_KINDS
    mixed_ranks: ClassVar[bool] = False
    inits: ClassVar[tuple[str, ...]] = ("pissa",)
    reinits: ClassVar[tuple[str, ...]] = ("fresh", "pissa")
    unmoved: ClassVar[str] = "whose clients do not start from the global factors"
    why: ClassVar[str] = "whose clients start every round from principal components of the weight"
