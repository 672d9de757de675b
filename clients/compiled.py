"""Forward, loss and backward of a bank's step as torch's compiler makes them (`engine.compile=true`).

One compiled function serves every lane of a process. What it gives is not taken on trust: at the first step of every
shape its gradients are compared with those of the plain step, and where they differ by more than rounding, or the
step cannot be compiled, steps are taken as they are from there on, and a line says so.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from clients import batches
from fedinit.adapters.bank import Bank
from fedinit.errors import first_line, machine_failed

SHAPES = 64  # that are compiled at the most, those of merged bases, offsets and alternating factors among them
# By which a leaf's gradient may differ, of its norm or of a ten thousandth of all leaves': rounding in another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1}


class Compiled:
    """The step of whole banks, compiled once a shape; used by all lanes of one device."""

    def __init__(self, compiler: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] | None = None) -> None:
        """compiler: makes a function of `mean_losses`; None: torch.compile."""
        self.works = True
        self._compiler, self._function = compiler or _compiler, None
        self._checked: set[Hashable] = set()
        self._lock = threading.Lock()  # a shape is compiled and compared by one lane, while the others wait

    def takes(self, bank: Bank) -> bool:
        """Whether steps of this bank are compiled: not with dropout, whose generators cannot be followed."""
        return self.works and not any(layer.dropout and layer.generators for layer in bank.layers.values())

    def losses(
        self, bank: Bank, leaves: Mapping[str, Tensor], inputs: Tensor, targets: Tensor, weight: Tensor, loss: str
    ) -> Tensor:
        """(n,) each client's mean loss, as `mean_losses` gives it."""
        given = (bank, inputs, targets, weight, loss)
        shape = _shape(bank, leaves, *given[1:])
        if shape not in self._checked:
            with self._lock:
                if self.works and shape not in self._checked:
                    fault = self._fault(given, leaves)
                    if fault:
                        self.works = False
                        print(f"engine.compile: {fault}; steps are taken as they are", file=sys.stderr)
                    self._checked.add(shape)
        return self._function(*given) if self.works and self._function is not None else mean_losses(*given)

    def _fault(self, given: tuple[Any, ...], leaves: Mapping[str, Tensor]) -> str:
        """Compile the step of a shape, and what is wrong with what it gives; "": nothing."""
        if len(self._checked) >= SHAPES:
            return f"there are more than {SHAPES} shapes of steps"
        expected = torch.autograd.grad(mean_losses(*given).sum(), list(leaves.values()))
        try:
            if self._function is None:
                self._function = self._compiler(mean_losses)
            ours = torch.autograd.grad(self._function(*given).sum(), list(leaves.values()))
        except Exception as error:  # whatever a compiler raises on this machine, or on somebody's model
            if machine_failed(error):
                raise
            return f"the step cannot be compiled here ({first_line(error)})"
        return _difference(dict(zip(leaves, zip(expected, ours, strict=True), strict=True)), given[0].dtype)


def mean_losses(bank: Bank, inputs: Tensor, targets: Tensor, weight: Tensor, loss: str, first: int = 0) -> Tensor:
    """(n,) each client's mean loss of a step, from images (n·b, c, h, w) of the clients from the row `first` on."""
    return batches.losses(bank.forward(inputs, len(weight), first), targets, weight, loss)


def _compiler(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # Here, since it takes seconds to import.
    import torch._dynamo.config as dynamo

    if dynamo.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1":  # the function would come back as it is
        raise RuntimeError("TORCH_COMPILE_DISABLE, or TORCHDYNAMO_DISABLE, is set in the environment")
    # It says that there is no CUDA, where none is meant.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    dynamo.recompile_limit = max(dynamo.recompile_limit, SHAPES)
    return torch.compile(function, dynamic=False)


def _shape(bank: Bank, leaves: Mapping[str, Tensor], *given: Any) -> Hashable:
    """All that a compiled step depends on besides values."""
    tensors = [*leaves.values(), *(value for value in given if isinstance(value, Tensor))]
    layers = tuple(
        (layer.kind, layer.folded is None, len(layer.offset), tuple(layer.leaves), layer.base is layer.own)
        for layer in bank.layers.values()
    )
    return tuple((value.shape, value.dtype, value.device) for value in tensors), tuple(leaves), layers, given[-1]


def _difference(gradients: Mapping[str, tuple[Tensor, Tensor]], dtype: torch.dtype) -> str:
    """The leaf whose two gradients differ most, where that is more than rounding; "": none does."""
    total = torch.stack([expected.norm() for expected, _ in gradients.values()]).norm()
    off = {
        name: float((ours - expected).norm() / expected.norm().clamp(min=1e-4 * total))
        for name, (expected, ours) in gradients.items()
    }
    name = max(off, key=lambda leaf: (off[leaf] != off[leaf], off[leaf]))  # NaN before all numbers
    if off[name] <= TOLERANCE[dtype]:
        return ""
    return f"the compiled step's gradient of {name} is {off[name]:.2g} of its length off"
