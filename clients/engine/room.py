"""Whether the training steps of a run fit into memory, before one is tried: what is too large is ended by the system,
without a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clients.engine.cluster import wants_gpus
from clients.engine.cost import StepCost, step_cost, step_cost_on_cpu
from clients.engine.hardware import CPU, DTYPES, devices, most_asked, never_compiled
from fedinit.config.client import SGDSaIConfig
from fedinit.config.engine import EngineConfig, RayConfig, ThreadsConfig
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.config.schema import Config
from fedinit.data.image_cache import MappedImages
from fedinit.data.reporter import counted, readable
from fedinit.data.shares import Partitions
from fedinit.heads import HEADS
from fedinit.heads.measured import MeasuredHead
from fedinit.initializers import INITIALIZERS, create_initializer
from fedinit.memory import free_memory
from fedinit.models import Backbone
from fedinit.threads import cores

SHARE = 0.8  # of the free memory, for lanes; the rest is the server's, and what is freed late
RAY = 400_000_000  # bytes of Ray's own processes on this machine
ACTOR = 600_000_000  # bytes of an actor's process, with torch, beside its bank


def cost_of(
    config: Config, backbone: Backbone, targets: Mapping[str, tuple[int, int]], classes: int, place: torch.device
) -> StepCost | None:
    """Of a step of one client on this device; None for a model that cannot be asked."""
    adapter, outputs = config.adapter, max(classes, 1)
    how = adapter.kind, adapter.dropout
    try:
        if place.type == "cpu":
            cost = step_cost_on_cpu(backbone, targets, adapter.rank, outputs, *how)
        else:
            cost = step_cost(backbone, targets, adapter.rank, outputs, DTYPES[config.engine.precision], *how)
    except Exception:  # noqa: BLE001 (whatever a module raises, of which its training will say it too)
        return None
    return cost.by_examples() if isinstance(config.privacy, ExamplePrivacyConfig) else cost


@dataclass(frozen=True)
class Passes:
    """The largest passes of a run on the CPU, one lane's each.

    step: bytes of a bank's training step; clients: of that bank; asked: in a round, of all banks. judging: bytes of a
    pass in which nothing is trained; judged: such passes that there are. measuring: bytes of one in which a client
    measures what the start is made of; measured: clients that do.
    """

    step: int
    clients: int
    asked: int
    judging: int
    judged: int
    measuring: int = 0
    measured: int = 0

    @staticmethod
    def of(config: Config, cost: StepCost, partitions: Partitions, test: Tensor) -> Passes:
        """test: (n,) bool, which of the data's images are for tests."""
        asked = most_asked(config, len(partitions))
        private = isinstance(config.privacy, ExamplePrivacyConfig)  # which trains one client at a time
        bank = 1 if private else min(int(config.engine.clients_per_bank), asked)
        step = cost.peak(bank, min(largest(partitions), config.client.batch_size)) - cost.fixed  # the weights are there
        step = 0 if _on_features(config) else step
        # A head alone takes the features of all images, any other model is judged by those of the tests.
        alone = config.has_head_alone or _on_features(config)
        images = len(test) if alone else int(test.sum()) * (config.evaluation.where != "none")
        judging = min(config.evaluation.batch_size, images) * cost.passing
        judged = -(-images // config.evaluation.batch_size)
        measuring = _measuring(config, cost, largest(partitions))
        return Passes(step, bank, asked, judging, judged, measuring, len(partitions))

    @property
    def most(self) -> int:
        """Bytes of the largest one."""
        return max(self.step, self.judging, self.measuring)

    def steps(self, lanes: int) -> int:
        """Steps that are taken at once: no more than a round has banks."""
        return min(lanes, -(-self.asked // self.clients))

    def at_once(self, lanes: int) -> int:
        """Bytes of all lanes that have something to do."""
        return max(self.step * self.steps(lanes), self.judging * min(lanes, self.judged), self.measuring_at_once(lanes))

    def measuring_at_once(self, lanes: int) -> int:
        """Bytes of all lanes where clients measure."""
        return self.measuring * min(lanes, self.measured)


def _on_features(config: Config) -> bool:
    """Whether heads alone are trained, on features that are computed once: as `Site.with_features` has it, with a start
    that changes nothing. Augmented images go through the backbone in every step."""
    if config.strategy.name != "head_alone" or config.client.augment != "none" or config.adapter.kind == "dora":
        return False
    known = config.init.name in INITIALIZERS  # a site takes any name, which is the server's to know
    return known and bool(create_initializer(config.init.name, config.init.options).zero)


def _measuring(config: Config, cost: StepCost, images: int) -> int:
    """Bytes of the largest pass of round 0, in which a client measures what the start, its head or the step scales are
    made of; 0 where nobody measures. images: of the client that has the most."""
    init, head, client = INITIALIZERS.get(config.init.name), HEADS.get(config.head.name), config.client
    needs = "" if init is None else init.needs
    scales = isinstance(client, SGDSaIConfig) and client.gsnr_scope == "global_once"
    still, back = (min(images, size) for size in (config.evaluation.batch_size, client.batch_size))
    return max(
        still * cost.measuring * (needs == "activations"),
        back * cost.returning * (needs == "gradients"),
        still * cost.passing * (head is not None and issubclass(head, MeasuredHead)),
        still * cost.image * scales,  # which one pass forth and back at the start fixes
    )


def uncompiled(config: Config, partitions: Partitions) -> str:
    """Why no training step of the run is compiled, in words behind "since"; empty where some are."""
    if why := never_compiled(config):
        return why
    if _on_features(config):
        return "heads alone are trained, on features that are kept"
    most, size = counted(largest(partitions), "image"), config.client.batch_size
    few = f"whole batches alone are, of client.batch_size={size}, and no client has more than {most}"
    return few * (largest(partitions) < size)


def largest(partitions: Partitions) -> int:
    """Training images of the client that has the most."""
    images, _ = partitions.sizes(range(len(partitions)))
    return int(images.max())


def within_room(
    engine: EngineConfig, cost: StepCost, passes: Passes, images: Tensor | MappedImages | None = None
) -> tuple[EngineConfig, str]:
    """The engine with no more lanes, or actors of this machine, than memory has room for, where their number is left to
    it and they are on CPU; and a line about those that it has not. Their number changes no result.

    images: of the data. Where they are held in memory, Ray is given a copy that all of its actors read.
    """
    given = engine.lanes if isinstance(engine, ThreadsConfig) else getattr(engine, "actors", 1)
    here = not isinstance(engine, RayConfig) or not (engine.address or wants_gpus(engine))
    most, free = cores() // engine.threads, free_memory()
    if not here or given not in (None, "auto") or devices(engine.device, 1)[0] != CPU or most < 2 or free is None:
        return engine, ""
    actors = isinstance(engine, RayConfig)
    copied = images.nbytes if isinstance(images, Tensor) else 0
    process, room = (ACTOR + cost.fixed) * actors, int(SHARE * max(free - (RAY + copied) * actors, 0))
    each = passes.most + process
    fitting = max((n for n in range(1, most + 1) if passes.at_once(n) + n * process <= room), default=0)
    if fitting >= most:
        return engine, ""
    key, what = ("actors", "an actor") if actors else ("lanes", "a lane")
    made = replace(engine, **{key: max(fitting, 1)})
    if fitting < 1 and not actors:  # which `without_room` says
        return made, ""
    return made, (
        f"engine: room for {fitting} of {most} {key}, since {what} takes about {readable(each)} of memory, and "
        f"{readable(room)} can be theirs"
    )


def without_room(config: Config, partitions: Partitions, lanes: int, cost: StepCost, passes: Passes) -> str:
    """What is wrong, in one line, where what is done at once needs more memory than is free; else empty. Nothing is
    said of machines elsewhere, nor of a system that does not say what is free.

    lanes: that the engine has.
    """
    if isinstance(config.engine, RayConfig):
        return ""
    place, size = devices(config.engine.device, 1)[0], config.client.batch_size
    on_cpu, most, room = place == CPU, largest(partitions), _free(place)
    # Elsewhere one bank is there at a time, and short batches are filled up.
    needed = passes.at_once(lanes) if on_cpu else cost.peak(passes.clients, size)
    if room is None or needed <= room:
        return ""
    told = f"take about {readable(needed)} of memory, and {readable(room)} are free"
    advice, steps = "take a smaller one", passes.steps(lanes) if on_cpu else 1
    if on_cpu and needed > passes.step * steps and needed == passes.measuring_at_once(lanes):
        told = f"init={config.init.name}, head={config.head.name}: passes in which clients measure {told}"
        advice = "take a smaller evaluation.batch_size or client.batch_size"
    elif on_cpu and needed > passes.step * steps:
        told = f"evaluation.batch_size={config.evaluation.batch_size}: passes of as many images {told}"
    else:
        clients = counted(min(passes.clients * steps, passes.asked), "client")
        told = f"client.batch_size={size}: the steps of {clients} at once {told}"
        advice += f"; no client has more than {counted(most, 'image')}" * (most < size)
    fewer = [n for n in range(lanes - 1, 0, -1) if on_cpu and passes.at_once(n) <= room]
    return f"{told}; " + (f"engine.lanes={fewer[0]} has room, and changes no result" if fewer else advice)


def _free(place: torch.device) -> int | None:
    """Bytes that can be had on a device; None where the system does not say."""
    return torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else free_memory()
