"""A device in name: tensors that say they are on another, while their numbers are here and are computed here.

What a GPU would refuse is refused: an operation on tensors of both devices (a number alone may be anywhere), reading
one as an array, a draw by the other device's generator. So code for a GPU is tried without one, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fedinit.threads
from fedinit.threads import make_pool, server_pool

FAR = torch.device("lazy:0")  # one that torch knows, and that needs no library to be named
aten = torch.ops.aten
CROSSINGS = {aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default, aten._local_scalar_dense.default}


class Far(Tensor):
    """A tensor that says it is there. near: its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        return torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=FAR
        )

    def __init__(self, near: Tensor) -> None:
        self.near = near

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"Far({self.near})"

    def tolist(self) -> Any:
        return self.near.tolist()  # which torch refuses of every subclass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return called(func, args, kwargs or {})


class Made(TorchDispatchMode):
    """Within it, what is made there is a Far."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return called(func, args, kwargs or {})


def called(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, as the device would."""
    given: list[Tensor] = []
    mapped(given.append, (args, kwargs))
    far = [value for value in given if isinstance(value, Far)]
    mixed = far and any(not isinstance(value, Far) and value.ndim for value in given)
    if mixed and func not in CROSSINGS:
        raise RuntimeError(f"{func}: expected all tensors to be on one device, found at least two, {FAR} and cpu")
    there = kwargs.get("device", FAR if far else None)
    on_device = there is not None and torch.device(there).type == FAR.type
    if on_device and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: expected a generator of {FAR}")
    before = {id(value.near): value for value in far}
    near_args, near_kwargs = mapped(lambda value: value.near if isinstance(value, Far) else value, (args, kwargs))
    if "device" in near_kwargs:
        near_kwargs["device"] = None if near_kwargs["device"] is None else "cpu"
    if near_kwargs.get("pin_memory"):
        near_kwargs["pin_memory"] = False
    result = func(*near_args, **near_kwargs)

    def placed(value: Tensor) -> Tensor:
        return before[id(value)] if id(value) in before else Far(value) if on_device else value

    return mapped(placed, result)


def mapped(change: Callable[[Tensor], Any], values: Any) -> Any:
    """The values with every tensor among them changed, in a tenth of the time that torch's trees take for it."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, tuple | list):
        return type(values)([mapped(change, value) for value in values])
    if isinstance(values, dict):
        return {key: mapped(change, value) for key, value in values.items()}
    return values


@contextmanager
def far_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device, for this thread and the server's, within the block."""

    def pool(workers: int, name: str) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(workers, initializer=lambda: (torch.set_num_threads(1), Made().__enter__()))

    server_pool.cache_clear()
    monkeypatch.setattr(fedinit.threads, "make_pool", pool)
    try:
        with Made():
            yield FAR
    finally:
        server_pool.cache_clear()
        monkeypatch.setattr(fedinit.threads, "make_pool", make_pool)
