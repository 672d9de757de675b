"""What the gate compares an update with, reckoned once for all clients that start from the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedinit import wire
from fedinit.message_limit import Formats
from fedinit.norms import norms
from fedinit.tensor_array import Format

PAIRS = (("/A", "/B"), ("/b", "/d"))  # of which one could grow as the other shrinks, and their product be the same


@dataclass(frozen=True)
class Bounds:
    """Of updates from one start.

    formats: {name: (shape, dtype)} of the tensors that come back. numbers: how many were sent.
    starts: {name: ‖X‖} of all that was sent.
    sizes: {name: (least, most)} that ‖X‖ of a tensor that comes back may be.
    products: {layer: (most that ‖B A‖ may be whatever it started at, names of the tensors that it is made of)}.
    fitting: formats of tensors handed over in this process that were looked through, and are right.
    """

    formats: Formats
    numbers: int
    starts: Mapping[str, float]
    sizes: Mapping[str, tuple[float, float]]
    products: Mapping[str, tuple[float, tuple[str, ...]]]
    fitting: set[Format] = field(default_factory=set, compare=False)

    @staticmethod
    def of(
        sent: Mapping[str, Tensor],
        trained: frozenset[str],
        largest: Callable[[Tensor, float], float],
        shrinking: float,
        max_product_ratio: float,
    ) -> Bounds:
        """largest: the most that ‖X‖ may be of a tensor and its norm at the start. shrinking: how many times smaller it
        may become, where both factors were trained. max_product_ratio: the gate's."""
        starts, endings = norms(sent), {name[-2:] for name in trained}  # endings are of all layers alike
        both = {ending for pair in PAIRS if endings.issuperset(pair) for ending in pair}
        sizes = {
            name: (starts[name] / shrinking if name[-2:] in both else 0.0, largest(sent[name], starts[name]))
            for name in trained
        }
        products = {
            layer: (
                max_product_ratio * min(product.shape) ** 0.5,
                tuple(f"{layer}/{part}" for part in product.parts if part != "m"),
            )
            for layer, product in wire.from_tensors(sent)[0].items()
        }
        formats = {name: (tuple(sent[name].shape), sent[name].dtype) for name in trained}
        return Bounds(formats, sum(value.numel() for value in sent.values()), starts, sizes, products)


@dataclass(frozen=True)
class KnownBounds:
    """Those of a round's starts, by identity of what was sent, which is kept so that nothing else gets it."""

    _made: dict[tuple[int, int], tuple[object, object, Bounds]] = field(default_factory=dict)

    def of(self, sent: Mapping[str, Tensor], trained: frozenset[str], make: Callable[[], Bounds]) -> Bounds:
        """The bounds of this start; `make` makes them where they are not known yet."""
        key = id(sent), id(trained)
        if key not in self._made:
            self._made[key] = sent, trained, make()
        return self._made[key][2]
