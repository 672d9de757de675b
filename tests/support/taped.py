"""CUDA's graphs on the CPU: the operations of a block are written down, with their tensors, and done again by them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
    """In place of torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.operations: list[Any] = []

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, result in self.operations:
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
    in place of capturing. elsewhere: captures are on another device's stream, so that they write nothing down.
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
            raise self.error
        with contextlib.nullcontext() if self.elsewhere else Tape(graph.operations):
            yield
