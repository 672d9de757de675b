"""Ravan: several heads s_h B_h H_h A_h a layer, B_h and A_h frozen and common; H_h and the scales s_h are trained.

Raje et al., NeurIPS 2025, arXiv 2506.05568. The heads side by side are one adapter of rank r whose core is block
diagonal, h blocks of (r/h)²: an update of rank r for r²/h numbers a layer, where Fed-SB sends r². A client sends s_hH_h
and starts the next round from their mean with s_h = 1; the mean is exact, as Fed-SB's is. Weaker clients train the
heads that matter most to them, ⌊r_i·h/r⌋ of h a layer on average, and the others stay as they were sent.
`init=random_core` is the paper's start: H = 0 between random factors, orthonormal or Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedinit.adapters.core import BLOCK_SCALES, CoreFactors
from fedinit.config.checks import at_least
from fedinit.errors import InputError
from fedinit.factors import Factors
from strategies.methods.choosing import Choosing
from strategies.methods.fed_sb import FedSB


@dataclass(frozen=True, kw_only=True)
class Ravan(Choosing, FedSB):
    """heads: h, which divides the adapter's rank: that of all heads together."""

    reinits: ClassVar[tuple[str, ...]] = ("average",)

    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("strategy.heads", self.heads, 1)

    def check(self, rank: int) -> None:
        if rank % self.heads:
            raise InputError(f"strategy.heads={self.heads}: does not divide the rank {rank}, which all heads share")

    def trainable(self, round: int) -> frozenset[str]:
        return frozenset({"R", BLOCK_SCALES})

    def adopt(self, drawn: Factors) -> Factors:
        """The diagonal blocks (h, r/h, r/h) of a full core (r, r); what lies off them is dropped."""
        if not isinstance(drawn, CoreFactors) or drawn.R.ndim == 3:
            return drawn
        self.check(drawn.rank)
        width = drawn.rank // self.heads
        blocks = drawn.R.view(self.heads, width, self.heads, width).diagonal(dim1=0, dim2=2)  # (width, width, h)
        return CoreFactors(drawn.A, drawn.B, blocks.permute(2, 0, 1).contiguous())

    def portion(self, rank: int, largest: int) -> float:
        return max(1, rank * self.heads // largest) / self.heads
