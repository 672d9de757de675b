"""Whether the training steps of a run fit into memory, before one is tried: what is too large is ended by the system,
without a word."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from clients.engine.cost import StepCost, step_cost
from clients.engine.hardware import CPU, DTYPES, devices
from clients.site import Site
from fedinit.config.engine import RayConfig
from fedinit.data.reporter import counted, readable
from fedinit.data.store import free_memory
from fedinit.errors import InputError


def cost_of(site: Site) -> StepCost | None:
    """Of a step of one of the site's clients; None for a model that cannot be asked without memory."""
    config = site.config
    dtype, outputs = DTYPES[config.engine.precision], max(len(site.data.class_names), 1)
    try:
        return step_cost(site.backbone, site.targets, config.adapter.rank, outputs, dtype)
    except Exception:  # noqa: BLE001 (whatever a module raises on tensors without memory)
        return None


def at_once(site: Site) -> int:
    """How many clients train at the same time in the memory of one device, by the engine's settings."""
    engine, there = site.config.engine, len(site.partitions)
    bank = min(int(engine.clients_per_bank), there)
    places = devices(engine.device, engine.lanes, engine.threads)
    return bank if places[0] != CPU else min(bank * len(places), there)


def refuse_without_room(site: Site, cost: StepCost) -> None:
    """Raise InputError, one line, where the steps that are taken at once need more memory than is free. Nothing is said
    of machines elsewhere, nor of a system that does not say what is free."""
    config = site.config
    if isinstance(config.engine, RayConfig):
        return
    place, size, clients = devices(config.engine.device, 1)[0], config.client.batch_size, at_once(site)
    largest = max(len(part.train) for part in site.partitions)
    needed = cost.peak(clients, min(largest, size) if place == CPU else size)  # elsewhere short batches are filled up
    room = _free(place)
    if room is None or needed <= room:
        return
    advice = "take a smaller one" + f"; no client has more than {counted(largest, 'image')}" * (largest < size)
    raise InputError(
        f"client.batch_size={size}: the steps of {counted(clients, 'client')} at once take about {readable(needed)} of "
        f"memory, and {readable(room)} are free; {advice}"
    )


def _free(place: torch.device) -> int | None:
    """Bytes that can be had on a device; None where the system does not say."""
    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    room = free_memory()
    return None if room is None else int(min(room, _left_to_group()))


def _left_to_group() -> float:
    """Bytes that a container may still take; inf where there is none, or none with a limit."""
    try:
        files = [Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current")]
        most, taken = (int(file.read_text(encoding="utf-8")) for file in files)
    except (OSError, ValueError):
        return math.inf
    return max(most - taken, 0)
