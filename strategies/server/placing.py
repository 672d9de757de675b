"""Where the server's work on a round's updates is done (`server_device=`): what grows with the clients, weighing and
aggregating them. What follows, on one set of factors, is done on the CPU, where a state is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TypeVar

import torch
from flwr.serverapp import Grid
from torch import Tensor

from fedinit.config.schema import Config
from fedinit.crossing import crossed
from fedinit.devices import CPU, chosen
from fedinit.errors import RunFailed, out_of_memory
from fedinit.threads import intra_op
from strategies.aggregator import Aggregate, Update

Placed = TypeVar("Placed", Update, Aggregate)


def server_device(config: Config, grid: Grid) -> torch.device:
    """As `server_device` says; auto: where the clients work of a grid in this process, else the CPU. Raises InputError
    for a device that is not there."""
    return chosen("server_device", config.server_device) or getattr(grid, "device", CPU)


def placed(values: Sequence[Placed], device: torch.device) -> Sequence[Placed]:
    """These, with all their tensors on a device: each value's in one piece, and what several share once. What is there
    stays as it is."""
    if device == CPU:
        return values
    there: dict[int, Tensor] = {}
    return [_moved(value, device, there) for value in values]


def brought_back(value: Placed, device: torch.device) -> Placed:
    """What was made on a device, on the CPU."""
    return value if device == CPU else _moved(value, CPU, {})


@contextmanager
def beside_clients(grid: Grid) -> Iterator[None]:
    """Within the block the server looks at replies as they come, by one thread where its clients are at work on the
    cores: an operation that is split waits for a thread that has none, a Cholesky factor of microseconds for 7 ms."""
    with intra_op(1) if getattr(grid, "device", None) == CPU else nullcontext():
        yield


@contextmanager
def room_for_updates(device: torch.device) -> Iterator[None]:
    """Within the block a device without memory ends the run in one line. Raises RunFailed."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise RunFailed(
            f"{device} has too little memory for the server's work on a round's updates; use server_device=cpu, which "
            "is another run, since its sums round differently"
        ) from error


def _moved(value: Placed, device: torch.device, there: dict[int, Tensor]) -> Placed:
    """The value on a device. there: {id of a tensor: the same there}, which it adds to."""
    fresh: dict[int, Tensor] = {}
    _each(value, lambda tensor: fresh.setdefault(id(tensor), tensor))
    fresh = {key: tensor for key, tensor in fresh.items() if key not in there and tensor.device != device}
    there |= zip(fresh, crossed(list(fresh.values()), device), strict=True)
    return _each(value, lambda tensor: there.get(id(tensor), tensor))


def _each(value: Placed, change: Callable[[Tensor], Tensor]) -> Placed:
    """The value with every tensor changed, always in the same order."""
    changed = {
        "layers": {name: factors.map(change) for name, factors in value.layers.items()},
        "head": {name: change(tensor) for name, tensor in value.head.items()},
    }
    if isinstance(value, Aggregate):
        changed["residual"] = {name: factors.map(change) for name, factors in value.residual.items()}
    return replace(value, **changed)
