"""Whether the training steps of a run fit into memory, before one is tried: what is too large is ended by the system,
without a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from clients.engine.cluster import wants_gpus
from clients.engine.cost import StepCost, step_cost, step_cost_on_cpu
from clients.engine.hardware import CPU, DTYPES, devices
from fedinit.config.engine import EngineConfig, RayConfig, ThreadsConfig
from fedinit.config.schema import Config
from fedinit.data.reporter import counted, readable
from fedinit.data.shares import Partitions
from fedinit.data.store import free_memory
from fedinit.models import Backbone
from fedinit.threads import cores

SHARE = 0.8  # of the free memory, for lanes; the rest is the server's, evaluations' and what is freed late
ACTOR = 600_000_000  # bytes of an actor's process, with torch, beside its bank


def cost_of(
    config: Config, backbone: Backbone, targets: Mapping[str, tuple[int, int]], classes: int, place: torch.device
) -> StepCost | None:
    """Of a step of one client on this device; None for a model that cannot be asked."""
    rank, outputs = config.adapter.rank, max(classes, 1)
    try:
        if place.type == "cpu":
            return step_cost_on_cpu(backbone, targets, rank, outputs)
        return step_cost(backbone, targets, rank, outputs, DTYPES[config.engine.precision])
    except Exception:  # noqa: BLE001 (whatever a module raises, of which its training will say it too)
        return None


def largest_step(config: Config, partitions: Partitions) -> tuple[int, int]:
    """(clients of the largest bank, images of the client that has the most)."""
    images, _ = partitions.sizes(range(len(partitions)))
    return min(int(config.engine.clients_per_bank), len(partitions)), int(images.max())


def within_room(engine: EngineConfig, cost: StepCost, clients: int, images: int) -> tuple[EngineConfig, str]:
    """The engine with no more lanes, or actors of this machine, than memory has room for, where their number is left to
    it and they are on CPU; and a line about those that it has not. Their number changes no result.

    clients, images: of a bank, and of a client's step.
    """
    given = engine.lanes if isinstance(engine, ThreadsConfig) else getattr(engine, "actors", 1)
    here = not isinstance(engine, RayConfig) or not (engine.address or wants_gpus(engine))
    most, free = cores() // engine.threads, free_memory()
    if not here or given not in (None, "auto") or devices(engine.device, 1)[0] != CPU or most < 2 or free is None:
        return engine, ""
    step = cost.peak(clients, images) - cost.fixed
    each = step + (ACTOR + cost.fixed) * isinstance(engine, RayConfig)
    fitting = max(1, int(SHARE * free / each))
    if fitting >= most:
        return engine, ""
    key = "actors" if isinstance(engine, RayConfig) else "lanes"
    said = f"the steps of {counted(clients, 'client')} take about {readable(step)} of memory, and {readable(free)} are"
    return replace(engine, **{key: fitting}), f"engine: room for {fitting} of {most} {key}, since {said} free"


def without_room(config: Config, partitions: Partitions, lanes: int, cost: StepCost) -> str:
    """What is wrong, in one line, where the steps that are taken at once need more memory than is free; else empty.
    Nothing is said of machines elsewhere, nor of a system that does not say what is free.

    lanes: that the engine has.
    """
    if isinstance(config.engine, RayConfig):
        return ""
    place, size = devices(config.engine.device, 1)[0], config.client.batch_size
    bank, largest = largest_step(config, partitions)
    clients = bank if place != CPU else min(bank * lanes, len(partitions))
    images = min(largest, size) if place == CPU else size  # elsewhere short batches are filled up
    needed = cost.peak(clients, images) - cost.fixed * (place == CPU)  # where the weights are there already
    room = _free(place)
    if room is None or needed <= room:
        return ""
    advice = "take a smaller one" + f"; no client has more than {counted(largest, 'image')}" * (largest < size)
    return (
        f"client.batch_size={size}: the steps of {counted(clients, 'client')} at once take about {readable(needed)} of "
        f"memory, and {readable(room)} are free; {advice}"
    )


def _free(place: torch.device) -> int | None:
    """Bytes that can be had on a device; None where the system does not say."""
    return torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else free_memory()
