"""LoRA-A²: the factors take turns as in RoLoRA, and a client trains and sends only the rank slots that matter to it.

Koo et al., ACL 2025, arXiv 2410.22815. In a round of B, slot j of a layer counts ‖ΔB_j‖·‖A_j‖, the size of its rank-one
change, and correspondingly in a round of A; a client takes the largest of all layers together, within its budget.
Exact in each half-round: the frozen factor is common, and what a client did not choose is what it was sent. ΔB is taken
as the gradient over the first `probe` batches, before any training. The budget is `share` of the adapter's slots, in
proportion for clients of lower rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedinit.config.checks import within
from strategies.methods.choosing import Choosing
from strategies.methods.rolora import RoLoRA


@dataclass(frozen=True, kw_only=True)
class LoRAA2(Choosing, RoLoRA):
    """share: in (0, 1], of the slots of all layers together, that a client trains; 1 is RoLoRA."""

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        within("strategy.share", self.share, 0, 1, open_low=True)

    def portion(self, rank: int, largest: int) -> float:
        return self.share * rank / largest
