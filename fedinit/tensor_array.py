"""Flower's Arrays of tensors, made and written when they are read: between two ends in one process nobody does."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
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
        kept = _own(tensor)
        self.__dict__.update(facts(kept.dtype, kept.shape), _tensor=kept, _version=kept._version)

    @property
    def tensor(self) -> Tensor:
        """What was sent."""
        if self._tensor._version != self._version:
            raise RuntimeError(_changed(self._tensor))
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


Format = tuple[tuple[str, torch.dtype, torch.Size], ...]  # (name, dtype, shape) of each


class Handed:
    """Named tensors that go from one end to the other as they are, in memory of their own, row after row. Many messages
    share them, so nobody may change one in place: who reads them then gets RuntimeError, as of a TensorArray.

    format: what they are, but for their values: what follows from it alone is reckoned once for all that have it.
    """

    __slots__ = ("_tensors", "_versions", "format")

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: _own(tensor) for name, tensor in tensors.items()}
        self._versions = [tensor._version for tensor in self._tensors.values()]
        self.format: Format = tuple([(name, tensor.dtype, tensor.shape) for name, tensor in self._tensors.items()])

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What was sent, by name."""
        if [tensor._version for tensor in self._tensors.values()] != self._versions:
            pairs = zip(self._tensors, self._versions, strict=True)
            changed = next(name for name, version in pairs if self._tensors[name]._version != version)
            raise RuntimeError(f"{changed}: {_changed(self._tensors[changed])}")
        return self._tensors


class TensorArrays(MutableMapping[str, Array]):
    """What an ArrayRecord keeps its Arrays in, of tensors that are handed over: an Array is made of each when somebody
    asks for one. Where an Array is put in, or taken out, it is a dict of Arrays and no more."""

    def __init__(self, handed: Handed) -> None:
        self._handed: Handed | None = handed
        self._made: dict[str, Array] | None = None

    @property
    def handed(self) -> Handed | None:
        """The tensors whose Arrays these are; None once they are others."""
        return self._handed

    def _arrays(self) -> dict[str, Array]:
        if self._made is None:
            assert self._handed is not None  # until they are made
            self._made = {name: TensorArray(tensor) for name, tensor in self._handed.tensors.items()}
        return self._made

    def __getitem__(self, name: str) -> Array:
        return self._arrays()[name]

    def __setitem__(self, name: str, array: Array) -> None:
        self._arrays()[name] = array
        self._handed = None

    def __delitem__(self, name: str) -> None:
        del self._arrays()[name]
        self._handed = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays())

    def __len__(self) -> int:
        return len(self._arrays())

    def keys(self) -> KeysView[str]:
        """As of the dict."""
        return self._arrays().keys()

    def values(self) -> ValuesView[Array]:
        """As of the dict."""
        return self._arrays().values()

    def items(self) -> ItemsView[str, Array]:
        """As of the dict."""
        return self._arrays().items()

    def copy(self) -> dict[str, Array]:
        """As of the dict."""
        return self._arrays().copy()

    def __repr__(self) -> str:
        return repr(self._arrays())

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self._arrays(),)


def _changed(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"a {dtype} tensor {tuple(tensor.shape)} was changed in place after it was sent"


def handed_over(handed: Handed) -> ArrayRecord:
    """A record of these tensors."""
    record = ArrayRecord()
    record.__dict__["_data"] = TensorArrays(handed)
    return record


def handed_of(record: ArrayRecord) -> Handed | None:
    """The tensors that a record of this process hands over; None where it holds, or may hold, other Arrays too."""
    arrays = record.__dict__["_data"]
    return arrays.handed if type(arrays) is TensorArrays else None


def _own(tensor: Tensor) -> Tensor:
    """The tensor's values, in its own memory where they can be handed over so: of the CPU, row after row, and of a kind
    that counts its changes. Another object, whose shape and graph nobody else can change."""
    kept = tensor.detach()
    if not (kept.is_cpu and kept.is_contiguous()):
        kept = kept.cpu().contiguous()
    return kept.clone() if kept.is_inference() else kept


def length(array: Array) -> int:
    """Bytes of an array's data."""
    return array.length if isinstance(array, TensorArray) else len(memoryview(array.data))


@functools.lru_cache(maxsize=4096)
def facts(dtype: torch.dtype, shape: torch.Size) -> dict[str, Any]:
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
