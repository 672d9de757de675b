"""What clients measure for an initialiser, one statistic a file; a name here is what a request asks for."""

from __future__ import annotations

from fedinit.errors import choose
from fedinit.statistics.class_sums import ClassMoments, ClassSums
from fedinit.statistics.gradient import Gradient, GradientRange, GradientRows
from fedinit.statistics.gram import Gram
from fedinit.statistics.losses import Losses
from fedinit.statistics.nystrom import Nystrom
from fedinit.statistics.packing import pack, unpack, wire_format
from fedinit.statistics.statistic import Request, RunningSum, Sampled, Sampling, Statistic, Statistics, add_up
from fedinit.statistics.total import Total

__all__ = [
    "STATISTICS",
    "Request",
    "RunningSum",
    "Sampled",
    "Sampling",
    "Statistic",
    "Statistics",
    "add_up",
    "create_statistics",
    "pack",
    "shapes_of",
    "unpack",
    "wire_format",
]

STATISTICS: dict[str, type[Statistic]] = {
    "class_moments": ClassMoments,
    "class_sums": ClassSums,
    "gradient": Gradient,
    "gradient_range": GradientRange,
    "gradient_rows": GradientRows,
    "gram": Gram,
    "losses": Losses,
    "nystrom": Nystrom,
    "total": Total,
}


def create_statistics(request: Request) -> dict[str, Statistic]:
    """{layer: statistic} for every layer of a request. Raises InputError for an unknown name of a statistic."""
    statistics = {}
    for layer, name in request.layers.items():
        kind = STATISTICS[choose(f"statistic of {layer}", name, STATISTICS)]
        statistics[layer] = kind(layer, tuple(request.shapes[layer]), request)
    return statistics


def shapes_of(request: Request) -> dict[str, tuple[int, ...]]:
    """{"<layer>/<key>": shape} of the sums that a client answers a request with."""
    statistics = create_statistics(request).items()
    return {f"{layer}/{key}": shape for layer, statistic in statistics for key, shape in statistic.shapes().items()}
