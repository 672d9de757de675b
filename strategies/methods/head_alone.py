"""The adapters stay as they start; only the heads are trained and averaged.

The reference that says how much of an accuracy the adapters account for (federated linear probing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedinit.adapters.kinds import EVERY_KIND
from fedinit.errors import InputError
from fedinit.factors import Factors
from strategies.aggregator import Aggregator


@dataclass(frozen=True, kw_only=True)
class HeadAlone(Aggregator):
    """The factors of the start; heads are averaged as in every method."""

    mixed_ranks: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = EVERY_KIND
    reinits: ClassVar[tuple[str, ...]] = ("average",)
    why: ClassVar[str] = "which leaves the adapters as they start"

    def __post_init__(self) -> None:
        if self.weighting == "norm":
            raise InputError(
                "weighting=norm: with head_alone all clients have the same product, so its norm says nothing; choose "
                "one of: auto, examples, uniform"
            )

    def trainable(self, round: int) -> frozenset[str]:
        return frozenset()

    def sums(self, round: int) -> tuple[str, ...]:
        return ()

    def merge(self, products: Sequence[Factors], weights: Sequence[float], start: Factors | None) -> Factors:
        # Without a start, the widest: the others are its leading components.
        return (max(products, key=lambda p: p.rank) if start is None else start).to(torch.float64)
