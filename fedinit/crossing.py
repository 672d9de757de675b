"""Tensors on their way to another device, many at a time: a copy of each alone takes longer than its numbers do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def crossed(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors, all of them on one device, on another, in one piece for each dtype, through memory that a CUDA
    device reads and writes by itself."""
    there: dict[torch.dtype, Iterator[Tensor]] = {}
    for dtype in {value.dtype for value in tensors}:
        of_it = [value for value in tensors if value.dtype == dtype]
        flat = torch.cat([value.flatten() for value in of_it])
        if device.type == "cuda":
            moved = flat.pin_memory().to(device, non_blocking=True)
        elif flat.is_cuda:
            moved = torch.empty(flat.shape, dtype=dtype, pin_memory=True).copy_(flat, non_blocking=True)
            torch.cuda.current_stream(flat.device).synchronize()  # and no other, on which somebody may record
        else:
            moved = flat.to(device)
        parts = moved.split([value.numel() for value in of_it])
        there[dtype] = iter([part.view(value.shape) for part, value in zip(parts, of_it, strict=True)])
    return [next(there[value.dtype]) for value in tensors]
