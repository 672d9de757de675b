"""What a client process holds besides its messages: data, partition, backbone, engine. Built once, then shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from rich.console import Console
from torch import Tensor

from clients.attacks.label_flip import flipped
from clients.engine import Emit, Engine
from clients.engine.cluster import foresee
from clients.engine.cost import StepCost
from clients.engine.hardware import CPU, clients_device, crowded, devices, left_out, most_asked, resolved
from clients.engine.inline import InlineEngine
from clients.engine.room import Passes, cost_of, uncompiled, within_room, without_room
from clients.engine.rows import said as of_rows
from clients.engine.threads import ThreadEngine
from clients.engine.worker import Settings, Worker, make_workers
from clients.evaluation import FrozenFeatures, Sums, judge, sums_record
from clients.prefix import Prefix
from clients.task import Task
from fedinit import wire
from fedinit.config.attack import LabelFlipConfig
from fedinit.config.compatibility import CONFIG_RULES, refuse
from fedinit.config.engine import EngineConfig, RayConfig
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.config.schema import Config
from fedinit.data.dataset import Dataset
from fedinit.data.image_cache import MappedImages
from fedinit.data.reporter import counted
from fedinit.data.shares import Partition, Partitions
from fedinit.errors import InputError, Refused
from fedinit.factors import Factors
from fedinit.models import Backbone, adapted_layers, build_backbone
from fedinit.models.prefix import cut, first_block
from fedinit.privacy.steps import Steps
from fedinit.scores import Accuracy, RecoveryError, Score
from fedinit.state.base_offset import EMPTY, NAME, Offset
from fedinit.state.digest import of_tensors
from fedinit.telling import tell

Held = tuple[Backbone, Mapping[str, tuple[int, int]], Dataset, Settings]  # what an engine makes its workers of


def _inline(config: EngineConfig, held: Held, emit: Emit) -> Engine:
    return InlineEngine(Worker(*held, devices(config.device, 1, config.threads)[0]))


def _threads(config: EngineConfig, held: Held, emit: Emit) -> Engine:
    return ThreadEngine(make_workers(*held, config.device, config.lanes))


def _ray(config: EngineConfig, held: Held, emit: Emit) -> Engine:
    from clients.engine.ray import RayEngine

    assert isinstance(config, RayConfig)
    return RayEngine(config, *held, emit)


# By the names of fedinit.config.engine.
ENGINES: dict[str, Callable[[EngineConfig, Held, Emit], Engine]] = {
    "inline": _inline,
    "ray": _ray,
    "threads": _threads,
}


class Site:
    """Data, partitions, backbone and engine for one configuration.

    targets: {layer: (d, k)} of the layers with adapters.
    partitions: one a client, in the order of their ids.
    cost: of a client's step on the CPU; None on another device, and for a model that cannot be asked.
    emit: is told, as an Observer's `event`, of what befalls the engine; set by who keeps a ledger.
    """

    def __init__(self, config: Config, client: int | None = None, console: Console | None = None) -> None:
        """config: as the site has it, its own paths and device included.
        client: the partition id, of a site that is one client's: where the partition goes by domain and the domains are
        named, it reads, and need hold, the images of its own domain alone. None: of all clients.
        console: where it is printed what the data is; None: nowhere.

        Raises InputError for what cannot be used."""
        refuse(config, CONFIG_RULES)
        self.config = config = resolved(config)
        if isinstance(config.engine, RayConfig):
            foresee(config.engine)  # before seconds are spent on data
        self.backbone: Backbone = build_backbone(config.model)
        self.targets = adapted_layers(
            self.backbone, config.adapter.targets, config.adapter.rank, config.adapter.last_blocks
        )
        spec = self.backbone.input
        domain = None if client is None else config.partition.domain_of(client, config.data.known_domains)
        size, held_out = (spec.height, spec.width), config.partition.test_domains or ()
        data = config.data.load(spec.channels, size, config.seed, domain, console, held_out)
        hidden = config.privacy.name  # of one client its own levels are its own
        if data.levels and (hidden == "examples" or (hidden == "clients" and client is None)):
            raise InputError(
                f"data.grey_range=auto: with privacy={hidden} one image's lowest and highest grey would be in "
                "all others' pixels, and no noise covers that; say levels that are known without looking, "
                "data.grey_range=[LOW,HIGH], such as the scanner's, or full"
            )
        self.data: Dataset = config.partition.hold_out(data)
        classes, outputs = len(self.data.class_names), self.backbone.features
        if config.head.name == "none" and outputs != classes:
            hint = "use head=random, or a model with as many"
            raise InputError(f"head=none: the model has {outputs} outputs, the data {classes}; {hint}")
        self.partitions: Partitions = config.partition.deal(self.data, config.seed)
        if isinstance(config.privacy, ExamplePrivacyConfig) and client is not None:  # of all of them the server asks
            Steps.of(len(self.partitions[client].train), config.client, config.rounds, config.privacy)
        if isinstance(config.attack, LabelFlipConfig):
            bad = config.attack.attackers(len(self.partitions), config.seed)
            self.data = flipped(self.data, [part for part in self.partitions if part.client in bad])
        backbone, shown = self.backbone, self.data  # what the engine works on
        self.cost: StepCost | None = None
        if config.engine.prefix_cache:
            made = cut(backbone, first_block(backbone, self.targets))
            backbone, shown = made.after, Prefix(made, shown, config, console).dataset
        settings = Settings.of(config, self.backbone.digest)
        self._uncompiled = uncompiled(config, self.partitions) if config.engine.compile is True else ""
        settings = replace(settings, compile=settings.compile and not self._uncompiled)
        held = backbone, self.targets, replace(shown, marks=None), settings  # an engine looks at no files
        self.emit: Emit = _nobody
        if console is not None:
            place = clients_device(config.engine)
            for said in (crowded(config.engine, place), left_out(config.engine), of_rows() if place == CPU else None):
                if said:
                    tell(console, said, "yellow")
        engine = config.engine
        if client is None:  # one trains alone
            engine = self._within_room(backbone, shown.images, console)
        if console is not None and isinstance(config.engine, RayConfig):  # which takes seconds
            address = config.engine.address
            tell(console, f"engine: Ray {f'joins the cluster at {address}' if address else 'starts on this machine'}")
        self.engine = ENGINES[engine.name](engine, held, lambda *event: self.emit(*event))
        if console is not None:
            self._tell_engine(console, alone=client is not None)

    def _within_room(self, backbone: Backbone, images: Tensor | MappedImages, console: Console | None) -> EngineConfig:
        """The engine, with as many lanes as memory has room for where their number is left to it. backbone: what is
        trained over. images: what goes through it."""
        engine = self.config.engine
        if (place := clients_device(engine)) != CPU:
            return engine
        self.cost = cost_of(self.config, backbone, self.targets, len(self.data.class_names), place)
        if self.cost is None:
            return engine
        passes = Passes.of(self.config, self.cost, self.partitions, self.data.test)
        engine, said = within_room(engine, self.cost, passes, images)
        if console is not None and said:
            tell(console, said, "yellow")
        return engine

    def without_room(self) -> str:
        """What is wrong, in one line, where the steps that are taken at once need more memory than is free; else empty.
        On CUDA it takes seconds to say."""
        classes, place = len(self.data.class_names), clients_device(self.config.engine)
        cost = self.cost or cost_of(self.config, self.backbone, self.targets, classes, place)
        if cost is None:
            return ""
        passes = Passes.of(self.config, cost, self.partitions, self.data.test)
        return without_room(self.config, self.partitions, self.engine.lanes, cost, passes)

    def _tell_engine(self, console: Console, alone: bool) -> None:
        """alone: of a site that is one client's, whose banks have no other."""
        size, clients = self.config.engine.clients_per_bank, len(self.partitions)
        most = min(size, clients) if isinstance(size, int) else clients
        given = f", all there are (engine.clients_per_bank={size})" * (most != size)
        banks = "one client" if alone else f"banks of up to {counted(most, 'client')}{given}"
        tell(console, f"engine: {self.engine.described()}, {banks}")
        asked = most_asked(self.config, clients)
        together = not alone and isinstance(size, int) and 1 < asked <= size and self.config.privacy.name != "examples"
        if together and self.engine.lanes > 1 and clients_device(self.config.engine).type == "cpu":
            said = f"engine.clients_per_bank={size}: a round's {asked} clients are one bank, which keeps one lane busy"
            tell(console, f"{said}; {-(-asked // 2)} is faster, and part of the run's name", "yellow")
        if self.config.engine.compile is True:
            said = "engine: steps are compiled, which takes half a minute or more at the first of them"
            if self._uncompiled:
                said = f"engine.compile=true: steps are taken as they are, since {self._uncompiled}"
            tell(console, said, "yellow")

    def close(self) -> None:
        """End what the engine started; nobody uses the site any more."""
        self.engine.close()

    def partition_of(self, context: Context) -> Partition:
        """The data of the client whose Context this is. Raises Refused for a node without a partition id, or with
        one that is not there."""
        index = client_of(context)
        if not 0 <= index < len(self.partitions):
            raise Refused(
                f"partition-id={index}: this run has {len(self.partitions)} partitions, 0 to "
                f"{len(self.partitions) - 1}; start as many clients, or change partition.clients"
            )
        return self.partitions[index]

    @property
    def score(self) -> type[Score]:
        """What models are judged by: accuracy, or the recovery error of a regression."""
        return RecoveryError if self.data.is_regression else Accuracy

    @cached_property
    def features(self) -> FrozenFeatures:
        """Of the images under the bare backbone, for rounds without adapters."""
        return FrozenFeatures(self.engine, self.data, self.config.evaluation.batch_size)

    def with_features(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks with the features of their images, where no adapter is in play: those are constants then, and
        computed once for all rounds. Clients that train in one bank have them all or none."""
        plain = [t for t in tasks if t.base == EMPTY and not t.mute]
        training = [t for t in plain if t.work == "train"]
        still = self.config.client.augment == "none" and all(_is_still(t) for t in training)
        featured = {id(t) for t in training if still}
        featured |= {id(t) for t in plain if t.work == "evaluate" and is_zero(t.adapter)}
        asked = [t for t in tasks if id(t) in featured]
        if not asked:
            return list(tasks)
        found = self.features.of(torch.cat([t.examples for t in asked])).split([len(t.examples) for t in asked])
        # Each in memory of its own, since products round differently by where their inputs begin.
        of = {id(t): features.clone() for t, features in zip(asked, found, strict=True)}
        return [replace(t, features=of[id(t)]) if id(t) in of else t for t in tasks]

    def judge(
        self,
        indices: Tensor,
        adapter: Mapping[str, Factors],
        head: Mapping[str, Tensor],
        key: str = EMPTY,
        offset: Offset = MappingProxyType({}),
        round: int = 0,
    ) -> Sums:
        """{domain: the score's two sums} over `indices` (n,) of an adapter and head over the base W + s·O, where `key`
        names O; from cached features where adapter and offset are still zero. round: after which."""
        (task,) = self.with_features([Task(-1, round, indices, adapter, head, frozenset(), key, work="evaluate")])
        self.engine.hold(key, offset)
        return judge(self.engine, self.data, task, self.config.evaluation.batch_size)

    def evaluate_round(self, round: int, arrays: ArrayRecord) -> MetricRecord:
        """The sums of the score over every domain's test split, of a model by wire name with its base offset: the
        evaluate_fn of a strategy in this process."""
        tensors = wire.decode(arrays)
        offset = {n[len(NAME) :]: tensors.pop(n) for n in list(tensors) if n.startswith(NAME)}
        adapter, head = wire.from_tensors(tensors)
        key = of_tensors(offset) if offset else EMPTY
        indices = self.data.test.nonzero().flatten()
        return sums_record(self.judge(indices, adapter, head, key, offset, round), self.score)


class DeferredSite(Site):
    """A Site that has its configuration alone until it is told to `read`. Most messages of a secret sum need neither
    images nor backbone, and in a deployment each has a process of its own."""

    def __init__(self, config: Config, client: int | None = None, console: Console | None = None) -> None:
        """As of a Site, whose errors `read` raises."""
        self._unread: tuple[Config, int | None, Console | None] | None = (config, client, console)
        self.config = resolved(config)

    def read(self) -> None:
        """Become a Site, where it is not one yet. Raises InputError for what cannot be used, the next time too."""
        if self._unread is not None:
            super().__init__(*self._unread)
            self._unread = None


def client_of(context: Context) -> int:
    """The partition id of the node whose Context this is. Raises Refused where it has none."""
    index = context.node_config.get("partition-id")
    if type(index) is not int:
        what = "this node has no partition-id"
        if index is not None:
            what = f"partition-id={index!r}: expected a whole number, without quotes"
        raise Refused(f"{what}; start it with --node-config 'partition-id=0 …'")
    return index


def _nobody(kind: str, facts: Mapping[str, Any]) -> None:
    """Takes an event where nobody keeps a ledger."""


def is_zero(adapter: Mapping[str, Factors]) -> bool:
    """Whether every layer is as it was for want of a factor, as it is before the first training."""
    return all(f.is_zero for f in adapter.values())


def _is_still(task: Task) -> bool:
    """Whether a training leaves the adapter at nothing, so that only the head moves."""
    return not task.trainable and not task.offset and is_zero(task.adapter)
