"""Half precision: what clients measured travels in float16 where its statistic says so (fedinit/statistics/packing.py).

The chain of an answer to a statistics request is this one transform, made for the request on either side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from fedinit.statistics import Statistic, pack, unpack
from fedinit.transforms.contract import Asked, Payload, Task, UpdateTransform


class HalfPrecision(UpdateTransform):
    """Packs a client's sums into their wire format, and unpacks them on the server."""

    def __init__(self, statistics: Mapping[str, Statistic]) -> None:
        """statistics: {layer: statistic} of the request, as create_statistics gives them."""
        self.statistics = statistics

    def on_client(self, task: Task, result: Payload) -> Payload:
        return dataclasses.replace(result, tensors=pack(self.statistics, result.tensors))

    def received(self, asked: Asked | None, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """{"<layer>/<key>": sum}. The names, shapes and dtypes of the tensors are those of `wire_format`, which the
        server checks first; nothing of `asked` is needed."""
        return unpack(self.statistics, tensors)
