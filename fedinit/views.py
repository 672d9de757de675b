"""Views: which part of the global adapter a client works on, and where that part belongs in the whole.

Two laws hold for every view, of the layers that it is for: `embed(restrict(x), x)` has the product of `restrict(x)`
within it at its place, and what a view leaves out of `restrict` is `like`'s, or zero, in `embed`. Where nothing is left
out they are inverses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedinit import slots
from fedinit.factors import Factors, leading, pad

Layers = Mapping[str, Factors]  # {layer: product}


class View(Protocol):
    """A part of the global adapter; the laws are at the top of this file."""

    def restrict(self, layers: Layers) -> dict[str, Factors]:
        """The part of the whole adapter that is seen."""
        ...

    def embed(self, part: Layers, like: Layers) -> dict[str, Factors]:
        """A part, of the form that `restrict(like)` has, as a whole adapter of the form of `like`."""
        ...


@dataclass(frozen=True)
class Whole:
    """The view that leaves nothing out."""

    def restrict(self, layers: Layers) -> dict[str, Factors]:
        return dict(layers)

    def embed(self, part: Layers, like: Layers) -> dict[str, Factors]:
        return dict(part)


@dataclass(frozen=True)
class LeadingRank:
    """The first components of every layer, for a client of rank `rank` where the global adapter has `of`.

    For layers without a core. Of a layer of rank r it sees ⌈r·rank/of⌉, since layers may have been dealt ranks of their
    own; embedded, the others are zero.

    rank: of the client.
    of: the rank of the global adapter, as configured.
    """

    rank: int
    of: int

    def restrict(self, layers: Layers) -> dict[str, Factors]:
        return {name: leading(f, -(-f.rank * self.rank // self.of)) for name, f in layers.items()}

    def embed(self, part: Layers, like: Layers) -> dict[str, Factors]:
        return {name: pad(f, like[name].rank) for name, f in part.items()}


@dataclass(frozen=True)
class Slots:
    """Some slots of one factor (fedinit/slots.py); embedded, the other slots are `like`'s.

    For plain factors, and for cores in blocks.

    part: the factor, "A", "B" or "R".
    places: {layer: (n,) int64, which of its slots, rising}.
    """

    part: str
    places: Mapping[str, Tensor]

    def restrict(self, layers: Layers) -> dict[str, Factors]:
        return {name: slots.take(f, self.part, self.places[name]) for name, f in layers.items()}

    def embed(self, part: Layers, like: Layers) -> dict[str, Factors]:
        values = {name: getattr(f, self.part) for name, f in part.items()}
        return {name: slots.fill(f, self.part, self.places[name], values[name]) for name, f in like.items()}

    def others(self, layers: Layers) -> Slots:
        """The view of the slots that this one leaves out."""
        return Slots(self.part, {n: slots.others(f, self.part, self.places[n]) for n, f in layers.items()})
