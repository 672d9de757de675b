"""A Flower Array whose bytes are written when somebody reads them: between two ends in one process nobody does."""

from __future__ import annotations

import functools
import io
import math
from typing import Any

import numpy as np
import torch
from flwr.app import Array
from numpy.lib import format as npy
from torch import Tensor

NUMPY = "numpy.ndarray"  # how an array's bytes are written
DTYPES = {name: np.dtype(name) for name in ("float32", "float64", "float16", "int64")}


class TensorArray(Array):
    """The Array that `Array(ndarray)` makes of the tensor's values, byte for byte, and the tensor (in memory of its
    own, row after row) for a receiver in this process. Messages to many share them, so nobody may change the tensor in
    place: whoever reads one that was changed by torch gets RuntimeError (numpy, and `.data`, count no changes).

    format: dtype, shape, stype and length. length: bytes of `data`, known without writing them.
    """

    __qualname__ = "Array"  # what Flower calls it in what goes over a network, where it is read as one
    format: tuple[str, tuple[int, ...], str, int]
    length: int
    _tensor: Tensor
    _version: int

    def __init__(self, tensor: Tensor) -> None:
        kept = tensor.detach().cpu().contiguous()
        if kept.is_inference():
            kept = kept.clone()  # which counts its changes
        self.__dict__.update(_facts(kept.dtype, kept.shape), _tensor=kept, _version=kept._version)

    @property
    def tensor(self) -> Tensor:
        """What was sent."""
        if self._tensor._version != self._version:
            raise RuntimeError(f"a {self.dtype} tensor {self.shape} was changed in place after it was sent")
        return self._tensor

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """Written anew each time, so that no message holds its values twice."""
        return header(self.dtype, self.shape) + self.tensor.numpy().tobytes()

    def written(self) -> Array:
        """The plain Array."""
        return made(self.dtype, self.shape, self.stype, self.data)

    def __reduce__(self) -> tuple[Any, ...]:
        return made, (self.dtype, self.shape, self.stype, self.data)

    def __deepcopy__(self, memo: dict[int, Any]) -> Array:
        return self.written()


def length(array: Array) -> int:
    """Bytes of an array's data."""
    return array.length if isinstance(array, TensorArray) else len(memoryview(array.data))


@functools.lru_cache(maxsize=4096)
def _facts(dtype: torch.dtype, shape: torch.Size) -> dict[str, Any]:
    """What a TensorArray knows by its type and shape. A round makes one of every tensor, of a few kinds in all."""
    empty = torch.empty(0, dtype=dtype)
    name, sizes = str(empty.numpy().dtype), tuple(shape)  # numpy may have another name, or none
    length = len(header(name, sizes)) + dtype.itemsize * math.prod(sizes)
    return {"dtype": name, "shape": sizes, "stype": NUMPY, "length": length, "format": (name, sizes, NUMPY, length)}


def made(dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> Array:
    """An Array without its searching of arguments: a round makes one for every tensor of every client."""
    array = Array.__new__(Array)
    array.__dict__.update(dtype=dtype, shape=shape, stype=stype, data=data)
    return array


@functools.lru_cache(maxsize=4096)
def header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What numpy writes before the values of an array."""
    out = io.BytesIO()
    npy.write_array_header_1_0(out, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    return out.getvalue()
