"""One sha256 over named tensors, in a fixed order: the identity of a backbone, an adapter, a final state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fedinit.factors import Factors
from fedinit.opening import regular


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal sha256 of names, dtypes, shapes and bytes, sorted by name."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.numpy().tobytes() if 0 in (value.ndim, value.numel()) else value.numpy().data.cast("B"))
    return total.hexdigest()


def of_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes, as sha256sum prints it."""
    total = hashlib.sha256()
    with open(path, "rb", opener=regular) as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def named_parts(layers: Mapping[str, Factors]) -> dict[str, Tensor]:
    """{"<layer>/<part>": tensor} of every part of every layer's factors, "<layer>/A", "<layer>/B" and so on: the names
    used on the wire too."""
    return {f"{name}/{part}": value for name, factors in layers.items() for part, value in factors.parts.items()}
