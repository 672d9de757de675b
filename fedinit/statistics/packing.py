"""Sums as they travel: float32, counts and what a statistic calls `exact` in float64, and what it calls `half` as
float16 beside a float32 scale for each column, "<layer>/<key>.scale".

An entry of float16 is right to 2⁻¹¹ of itself down to 2⁻¹⁴ of its column's largest. Clients' sums are rounded one by
one, on their way, and each in its own unit or about its own mean; they are added up in float64 after they were
unpacked, so what is packed so is not additive by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedinit.statistics.statistic import Statistic

Format = dict[str, tuple[tuple[int, ...], torch.dtype]]


def wire_format(statistics: Mapping[str, Statistic]) -> Format:
    """{name: (shape, dtype)} of the tensors in a client's answer: what the server expects, to the name."""
    layout: Format = {}
    for layer, statistic in statistics.items():
        for key, shape in statistic.sent().items():
            name = f"{layer}/{key}"
            if key in statistic.half:
                layout[name] = shape, torch.float16
                layout[f"{name}.scale"] = shape[1:], torch.float32
            else:
                layout[name] = shape, _dtype(statistic, key, shape)
    return layout


def pack(statistics: Mapping[str, Statistic], sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{name: tensor} as they travel, from {"<layer>/<key>": sum} in float32 or float64."""
    packed = {}
    for layer, statistic in statistics.items():
        values = {key: sums[f"{layer}/{key}"].double() for key in statistic.shapes()}
        for key, value in statistic.reduced(values).items():
            name = f"{layer}/{key}"
            if key in statistic.half:
                scale = value.abs().amax(0).float()
                packed[name] = (value / torch.where(scale > 0, scale, 1.0)).half()
                packed[f"{name}.scale"] = scale
            else:
                packed[name] = value.to(_dtype(statistic, key, value.shape))
    return packed


def _dtype(statistic: Statistic, key: str, shape: Sequence[int]) -> torch.dtype:
    return torch.float32 if shape and key not in statistic.exact else torch.float64


def unpack(statistics: Mapping[str, Statistic], packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"<layer>/<key>": sum}, the inverse of `pack` up to rounding. What was float16 on the way, or about a mean, comes
    out in float64.

    packed: tensors that have the names, shapes and dtypes of `wire_format`.
    """
    sums = {}
    for layer, statistic in statistics.items():
        values = {key: packed[f"{layer}/{key}"] for key in statistic.sent()}
        values |= {key: values[key].double() * packed[f"{layer}/{key}.scale"] for key in statistic.half}
        sums |= {f"{layer}/{key}": value for key, value in statistic.restored(values).items()}
    return sums
