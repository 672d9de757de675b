"""What clients measure for an initialiser, one statistic a file; a name here is what a request asks for."""

from __future__ import annotations

from fedinit.errors import choose
from fedinit.statistics.gram import Gram
from fedinit.statistics.nystrom import Nystrom
from fedinit.statistics.statistic import Request, Sampling, Statistic, Statistics, add_up
from fedinit.statistics.total import Total

__all__ = ["STATISTICS", "Request", "Sampling", "Statistic", "Statistics", "add_up", "create_statistics", "wire_shapes"]

STATISTICS: dict[str, type[Statistic]] = {"gram": Gram, "nystrom": Nystrom, "total": Total}


def create_statistics(request: Request) -> dict[str, Statistic]:
    """{layer: statistic} of a request. Raises InputError for an unknown name."""
    made = {}
    for layer, name in request.layers.items():
        kind = STATISTICS[choose(f"statistic of {layer}", name, STATISTICS)]
        made[layer] = kind(layer, tuple(request.shapes[layer]), request)
    return made


def wire_shapes(request: Request) -> dict[str, tuple[int, ...]]:
    """{"<layer>/<key>": shape} of what a client answers."""
    found = create_statistics(request).items()
    return {f"{layer}/{key}": shape for layer, one in found for key, shape in one.shapes().items()}
