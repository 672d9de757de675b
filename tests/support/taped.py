"""CUDA's graphs on the CPU: the operations of a block are written down, with their tensors, and done again by them."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HOST = ("lift_fresh", "_local_scalar_dense", "nonzero", "masked_select")  # a number from the host, or for it


class Tape(TorchDispatchMode):
    """Writes operations down; raises for one that a capture refuses, since it waits for the device."""

    def __init__(self, operations: list[Any]) -> None:
        super().__init__()
        self.operations = operations

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in HOST):
            raise RuntimeError(f"{function} is not permitted when stream is capturing")
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result


class Graph:
    """In place of torch.cuda.CUDAGraph. As that does, it keeps what was made within it, and of all else the address
    alone: where such a tensor is gone, what it does again is done to somebody else's memory."""

    def __init__(self) -> None:
        self.operations: list[Any] = []

    def let_go(self) -> None:
        """Of what was there before."""
        made: set[int] = set()
        for i, (function, args, kwargs, result) in enumerate(self.operations):
            given = {id(value) for value in tree_leaves((args, kwargs))} - made  # in place, a result is one of them
            made |= {id(value) for value in tree_leaves(result)} - given
            parts = tree_map(lambda value: self._address(value, made), (args, kwargs, result))  # noqa: B023
            self.operations[i] = function, *parts

    @staticmethod
    def _address(value: Any, made: set[int]) -> Any:
        return weakref.ref(value) if isinstance(value, Tensor) and id(value) not in made else value

    @staticmethod
    def _there(value: Any) -> Any:
        if isinstance(value, weakref.ref) and (value := value()) is None:
            raise AssertionError("a graph writes to memory that was freed")
        return value

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, result in self.operations:
            args, kwargs, result = tree_map(self._there, (args, kwargs, result))
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.numel() and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Stream:
    """In place of torch.cuda.Stream."""

    def __init__(self, device: object = None) -> None:
        self.device = device

    def wait_stream(self, other: Stream) -> None:
        pass


class Captures:
    """What recorders ask of torch.cuda, on the CPU.

    streams: those on which graphs were captured. set: those that were made the current one. error: raised by a capture
    in place of capturing, or a pair of it and of what it is raised over. elsewhere: captures are on another device's
    stream, so that they write nothing down.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.streams: list[Stream] = []
        self.set: list[Stream] = []
        self.here, self.error, self.elsewhere = Stream("here"), None, False
        for name, made in {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "graph": self._capture,
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": lambda device: self.here,
            "set_stream": self.set.append,
            "graph_pool_handle": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, made)

    @contextlib.contextmanager
    def _capture(self, graph: Graph, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        self.streams.append(stream)
        if self.error is not None:
            error, beneath = self.error if isinstance(self.error, tuple) else (self.error, None)
            error.__context__ = beneath
            raise error
        with contextlib.nullcontext() if self.elsewhere else Tape(graph.operations):
            yield
        graph.let_go()
