"""The frozen backbone on one device, once for all the workers there, and the weights that are made from it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from clients.engine.hardware import DTYPES, repeats
from clients.task import Task
from fedinit.adapters.bank import Bank
from fedinit.models.backbone import Backbone
from fedinit.state.base_offset import EMPTY, Offset


class Replica:
    """The weights of one device. They are made by the worker that needs them first, under a lock, and shared."""

    def __init__(
        self,
        backbone: Backbone,
        targets: Mapping[str, tuple[int, int]],
        scale: float,
        device: torch.device,
        precision: str = "fp32",
    ) -> None:
        """backbone: copied to the device, but for the CPU. targets: {layer: (d, k)} of the layers with adapters.
        scale: s = α/r, of the base offsets and the adapters. precision: what the backbone computes in."""
        dtype = DTYPES[precision]
        module, rounded = backbone.module, dtype != torch.float32 and dtype != next(backbone.module.parameters()).dtype
        if device.type != "cpu" or rounded:
            with torch.inference_mode(False):  # weights of the training, wherever they are made
                module = copy.deepcopy(module).to(device, dtype if rounded else None)
        # What adapters are folded and merged into, where the module's own weights are rounded.
        weights = {name: cast(nn.Linear, backbone.module.get_submodule(name)).weight for name in targets}
        self.exact = {name: weight.to(device) for name, weight in weights.items()} if rounded else {}
        self.backbone = Backbone(module=module, features=backbone.features, input=backbone.input)
        self.device, self.scale = device, scale
        self.repeats = repeats(self.backbone, device, precision)
        self._lock = threading.RLock()
        self._offsets: dict[str, Offset] = {EMPTY: {}}
        self._merged: dict[str, dict[str, Tensor]] = {EMPTY: {}}
        self._folding = Bank(self.backbone, targets, scale, exact=self.exact)  # its folded weights are the others'
        self._folded: tuple[object, ...] = ()

    def hold(self, base: str, offset: Offset) -> None:
        """Hold the offset {layer: (d, k)} that this key names, for `put`."""
        self._offsets.setdefault(base, offset)

    def holds(self, base: str) -> bool:
        """Whether the offset of this key is held."""
        return base in self._offsets

    def prepare(self, bases: Iterable[str]) -> None:
        """Forget the offsets of other bases than these, and what was made of them."""
        needed = {EMPTY, *bases}
        self._offsets = {base: offset for base, offset in self._offsets.items() if base in needed}
        self._merged = {base: weights for base, weights in self._merged.items() if base in needed}
        self._folded = ()
        self._folding.bare()

    def put(self, bank: Bank, base: str) -> None:
        """Set the bank on W + s·O, where `base` names O. Raises LookupError for a base that is not held."""
        with self._lock:
            if base not in self._offsets:
                raise LookupError(f"the base {base[:12]} is not held by this worker")
            if base not in self._merged:
                self._merged[base] = {
                    name: torch.add(bank.layers[name].weight, value.to(self.device), alpha=self.scale)
                    for name, value in self._offsets[base].items()
                }
            bank.rebase(self._merged[base])

    def fold(self, bank: Bank, task: Task) -> None:
        """Fold the task's adapter and head into the bank, made once for consecutive tasks with the same ones."""
        with self._lock:
            wanted = (task.base, task.adapter, task.head)
            if not (self._folded and all(a is b for a, b in zip(self._folded, wanted, strict=True))):
                self.put(self._folding, task.base)
                self._folding.fold(task.adapter, task.head)
                self._folded = wanted
            bank.fold_like(self._folding)
