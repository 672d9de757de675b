"""Lanes: the workers that banks run on.

On CPU a lane is a Python thread with one intra-op thread (torch releases the GIL inside its kernels); on CUDA there
is one lane a device. Every lane has a Bank of its own over the one frozen backbone of its device, so the number of
lanes decides only when a bank is run, never what it computes.
"""

from __future__ import annotations

import copy
import os
import queue
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from fedinit.errors import InputError
from fedinit.lora import Bank
from fedinit.models.backbone import Backbone

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
        self.input = backbone.input
        self.features = backbone.features
        self._free: queue.SimpleQueue[Bank] = queue.SimpleQueue()
        for bank in self.banks:
            self._free.put(bank)
        self._pool = ThreadPoolExecutor(len(places), thread_name_prefix="lane", initializer=_one_thread)

    def map(self, work: Callable[[Bank, Item], Result], items: Iterable[Item]) -> list[Result]:
        """[work(bank, item) for each item], each on whichever lane is free; results in the order of the items."""

        def run(item: Item) -> Result:
            bank = self._free.get()
            try:
                return work(bank, item)
            finally:
                self._free.put(bank)

        return list(self._pool.map(run, items))


def _one_thread() -> None:
    torch.set_num_threads(1)


def _places(device: str, lanes: int | None) -> list[torch.device]:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"engine.device={device}: expected auto, cpu, cuda or cuda:<n>") from error
    if wanted.type == "cpu":
        count = lanes or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else lanes or os.cpu_count()
        return [torch.device("cpu")] * (count or 1)
    if wanted.type != "cuda":
        raise InputError(f"engine.device={device}: expected auto, cpu, cuda or cuda:<n>")
    there = torch.cuda.device_count()
    if there == 0 or (wanted.index or 0) >= there:
        raise InputError(f"engine.device={device}: this machine has {there} CUDA devices; use engine.device=cpu")
    indices = range(there) if wanted.index is None else [wanted.index]
    return [torch.device("cuda", i) for i in indices]
