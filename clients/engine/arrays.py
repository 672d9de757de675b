"""Values as they go to other processes: their tensors as NumPy arrays, which Ray lays into memory that processes share.

What is packed is plain and pickles fast; what is unpacked has the same bytes, in memory that is aligned as torch's own
is, since products may round differently elsewhere.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

ALIGNMENT = 64  # bytes, of the memory that torch takes on a CPU
TENSORS = "tensors"  # where a Slot finds what belongs there


@dataclass(frozen=True, eq=False)
class Laid:
    """A tensor as an array. bf16: its numbers are bfloat16, which NumPy has not, by their bits."""

    array: np.ndarray
    bf16: bool

    @staticmethod
    def of(tensor: Tensor) -> Laid:
        """The tensor, wherever it is; on a CPU its own memory."""
        tensor, bf16 = tensor.detach().cpu(), tensor.dtype == torch.bfloat16
        return Laid((tensor.view(torch.int16) if bf16 else tensor).numpy(), bf16)

    def view(self) -> Tensor:
        """The tensor over the array's memory, which nobody may write to where it is shared; over a copy where that is
        not aligned."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that writing to it would be wrong; nothing does
            tensor = torch.from_numpy(self.array)
        tensor = tensor.view(torch.bfloat16) if self.bf16 else tensor
        return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()

    def copy(self) -> Tensor:
        """The tensor in memory of its own."""
        tensor = self.view()
        owned = tensor.data_ptr() != self.array.ctypes.data
        return tensor if owned else tensor.clone()


def pack(value: Any) -> Any:
    """The value with every tensor as a `Laid`, in mappings, sequences and dataclasses; what is one object stays one."""
    return _changed(value, Tensor, lambda tensor: Laid.of(tensor), {})


def unpack(value: Any, tensor: Callable[[Laid], Tensor] = Laid.copy) -> Any:
    """What was packed. tensor: makes a tensor of what was laid, Laid.copy or Laid.view."""
    return _changed(value, Laid, tensor, {})


def _changed(value: Any, kind: type, change: Callable[[Any], Any], seen: dict[int, Any]) -> Any:
    """The value with everything of this kind in it changed. seen: {id: changed} of what came before."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, kind):
        result = change(value)
    elif isinstance(value, Mapping):
        result = {key: _changed(part, kind, change, seen) for key, part in value.items()}
    elif isinstance(value, (tuple, list)):
        parts = [_changed(part, kind, change, seen) for part in value]
        result = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    elif dataclasses.is_dataclass(value) and not isinstance(value, (type, Laid)):
        result = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(result, field.name, _changed(getattr(value, field.name), kind, change, seen))
    else:
        return value
    seen[id(value)] = result
    return result


class Slot:
    """Stands in a module where a parameter or buffer was; copied, it is what belongs there."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __deepcopy__(self, memo: dict[Any, Any]) -> object:
        return memo[TENSORS][self.index]


def take_apart(module: nn.Module) -> tuple[nn.Module, list[tuple[bool, Laid]]]:
    """The module without its numbers, and these: whether each is a parameter, and its tensor."""
    tensors = [*module.parameters(), *module.buffers()]
    frame = copy.deepcopy(module, {id(tensor): Slot(i) for i, tensor in enumerate(tensors)})
    return frame, [(isinstance(tensor, nn.Parameter), Laid.of(tensor)) for tensor in tensors]


def put_together(frame: nn.Module, numbers: list[tuple[bool, Laid]]) -> nn.Module:
    """The module of which this was made, frozen, over the arrays' own memory."""
    tensors = [nn.Parameter(laid.view(), requires_grad=False) if own else laid.view() for own, laid in numbers]
    return copy.deepcopy(frame, cast("dict[int, Any]", {TENSORS: tensors}))
