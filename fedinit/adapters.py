"""Kinds of adapters (`adapter=`): what a kind trains where a method speaks of A and B, and what goes with it.

lora  ΔW = s·B A (Hu et al. 2022, arXiv 2106.09685), and every product with a core.
vera  ΔW = diag(b) B diag(d) A with A and B random, frozen and shared by all layers, which take their leading rows and
      columns; the vectors b and d are trained (Kopiczko et al., ICLR 2024, arXiv 2310.11454). It has no scale, s = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Kind:
    """names: {what a method says it trains: what clients train of this kind}; what is absent is itself. reinits: the
    re-initialisers it goes with, None for all. mixed_ranks: whether clients may have ranks of their own. why: what
    stands against the others, for the refusal."""

    names: Mapping[str, str] = field(default_factory=dict)
    reinits: tuple[str, ...] | None = None
    mixed_ranks: bool = True
    why: str = ""

    def trained(self, parts: frozenset[str]) -> frozenset[str]:
        """The parts of Factors that clients train, from those that the method names."""
        return frozenset(self.names.get(part, part) for part in parts)


KINDS: dict[str, Kind] = {
    "lora": Kind(),
    "vera": Kind(
        names={"A": "d", "B": "b"},
        reinits=("average",),
        mixed_ranks=False,
        why="whose A and B are frozen and the same in all layers",
    ),
}
