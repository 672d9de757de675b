"""Lanes: the workers that banks run on.

On CPU a lane is a Python thread with one intra-op thread (torch releases the GIL inside its kernels); on CUDA there
is one lane a device. Every lane has a Bank of its own over the one frozen backbone of its device, so the number of
lanes decides only when a bank is run, never what it computes.
"""

from __future__ import annotations

import copy
import queue
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch

from fedinit.adapters.bank import Bank
from fedinit.errors import InputError
from fedinit.models.backbone import Backbone
from fedinit.state.base_offset import EMPTY, Offset
from fedinit.threads import cores, make_pool

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lanes:
    """A pool of banks.

    device: "auto" (CUDA where there is one), "cpu", "cuda" (all devices) or "cuda:<n>".
    lanes: their number on CPU; None is one a core. Raises InputError for a device that is not there.
    """

    def __init__(
        self,
        backbone: Backbone,
        targets: Mapping[str, tuple[int, int]],
        *,
        scale: float,
        dropout: float = 0.0,
        device: str = "auto",
        lanes: int | None = None,
    ) -> None:
        places = _places(device, lanes)
        on_device: dict[torch.device, Backbone] = {}
        for place in places:
            if place not in on_device:
                moved = backbone.module if place.type == "cpu" else copy.deepcopy(backbone.module).to(place)
                on_device[place] = Backbone(module=moved, features=backbone.features, input=backbone.input)
        self.banks = [Bank(on_device[place], targets, scale, dropout) for place in places]
        self.scale = scale
        self._base_key = EMPTY
        self.input = backbone.input
        self.features = backbone.features
        self._free: queue.SimpleQueue[Bank] = queue.SimpleQueue()
        for bank in self.banks:
            self._free.put(bank)
        self._pool = make_pool(len(places), "lane")

    def set_base(self, key: str, offset: Offset) -> None:
        """Put every bank over W + s·O; one copy of the changed weights a device. `key` names the offset."""
        if key == self._base_key:
            return
        made: dict[torch.device, dict[str, torch.Tensor]] = {}
        for bank in self.banks:
            device = next(bank.module.parameters()).device
            if device not in made:
                made[device] = {
                    name: torch.add(bank.layers[name].weight, value.to(device), alpha=self.scale)
                    for name, value in offset.items()
                }
            bank.rebase(made[device])
        self._base_key = key

    def map(self, work: Callable[[Bank, Item], Result], items: Iterable[Item]) -> list[Result]:
        """[work(bank, item) for each item], each on whichever lane is free; results in the order of the items."""

        def run(item: Item) -> Result:
            bank = self._free.get()
            try:
                return work(bank, item)
            finally:
                self._free.put(bank)

        return list(self._pool.map(run, items))


def _places(device: str, lanes: int | None) -> list[torch.device]:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"engine.device={device}: expected auto, cpu, cuda or cuda:<n>") from error
    if wanted.type == "cpu":
        return [torch.device("cpu")] * (lanes or cores())
    if wanted.type != "cuda":
        raise InputError(f"engine.device={device}: expected auto, cpu, cuda or cuda:<n>")
    there = torch.cuda.device_count()
    if there == 0 or (wanted.index or 0) >= there:
        raise InputError(f"engine.device={device}: this machine has {there} CUDA devices; use engine.device=cpu")
    indices = range(there) if wanted.index is None else [wanted.index]
    return [torch.device("cuda", i) for i in indices]
