"""Kinds of adapters (`adapter=`): what a kind trains where a method speaks of A and B, and what goes with it.

lora  ΔW = s·B A (Hu et al. 2022, arXiv 2106.09685), and every product with a core.
vera  ΔW = diag(b) B diag(d) A with A and B random, frozen and shared by all layers, which take their leading rows and
      columns; the vectors b and d are trained (Kopiczko et al., ICLR 2024, arXiv 2310.11454). It has no scale, s = 1.
dora  W' = m/‖V‖ ∘ V by rows with V = W + s·B A: LoRA for the direction of a row, and a magnitude m that is trained
      beside it (Liu et al., ICML 2024, arXiv 2402.09353). The norm counts as a constant in the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Kind:
    """names: {what a method says it trains: what clients train of this kind}; what is absent is itself. beside: what
    clients train in every round in which they train anything. reinits: the re-initialisers it goes with, None for all.
    mixed_ranks: whether clients may have ranks of their own. why: what stands against the others, for the refusal."""

    names: Mapping[str, str] = field(default_factory=dict)
    beside: frozenset[str] = frozenset()
    reinits: tuple[str, ...] | None = None
    mixed_ranks: bool = True
    why: str = ""

    def trained(self, parts: frozenset[str]) -> frozenset[str]:
        """The parts of Factors that clients train, from those that the method names."""
        return frozenset(self.names.get(part, part) for part in parts) | (self.beside if parts else frozenset())


KINDS: dict[str, Kind] = {
    "dora": Kind(
        beside=frozenset({"m"}),
        reinits=("average", "fresh", "svd", "orthonormal", "pissa", "gauge"),
        why="whose magnitudes belong to one global product B A",
    ),
    "lora": Kind(),
    "vera": Kind(
        names={"A": "d", "B": "b"},
        reinits=("average",),
        mixed_ranks=False,
        why="whose A and B are frozen and the same in all layers",
    ),
}
