"""Norms of many tensors at once, and whether they are finite: one by one, of a thousand small updates, the calls take
longer than the sums."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """{name: ‖X‖}, Frobenius, of floating point tensors, each in its own dtype; NaN or infinity where X has such a
    value, and infinity where ‖X‖ is past the dtype."""
    if not tensors:
        return {}
    # As torch's own clip_grad_norm_ does.
    found = torch._foreach_norm(list(tensors.values()))  # pyright: ignore[reportPrivateImportUsage]
    if all(norm.is_cpu for norm in found):
        return dict(zip(tensors, map(float, found), strict=True))
    return dict(zip(tensors, torch.stack([norm.double() for norm in found]).tolist(), strict=True))  # waits once


def first_not_finite(tensors: Mapping[str, Tensor], known: Mapping[str, float] | None = None) -> str | None:
    """The name of the first tensor with NaN or infinity; None where all are finite. known: their `norms`."""
    if known is None:
        known = norms({name: value for name, value in tensors.items() if value.is_floating_point()})
    doubtful = (name for name in tensors if not math.isfinite(known.get(name, math.nan)))
    return next((name for name in doubtful if not torch.isfinite(tensors[name]).all()), None)


def rounded_off(known: Mapping[str, Tensor], clip: float, dtype: torch.dtype) -> float:
    """What rounding may add to a change of the length `clip`, where `known` with the change in it is sent in `dtype`:
    half a unit of each entry, which grows with what is known."""
    largest = clip + sum(float(value.double().square().sum()) for value in known.values()) ** 0.5
    return largest * torch.finfo(dtype).eps / 2
