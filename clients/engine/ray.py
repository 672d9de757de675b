"""The Ray engine: actors, each a process with one backbone and one bank, on this machine or on those of a cluster.

An actor has a GPU, or `engine.threads` cores and as many intra-op threads, as a lane of the threads engine has, so that
its bytes are those of a lane. Backbone, data and settings reach it once, out of Ray's store, which the processes of a
machine share; after that jobs go out and answers come back. What clients remember stays with who gives the jobs, so
that a job of an actor that died can be given again.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import socket
import sys
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clients.engine import Emit
from clients.engine.arrays import Laid, pack, put_together, take_apart, unpack
from clients.engine.cluster import Cluster
from clients.engine.dispatch import ActorDied, Death, Dispatch
from clients.engine.hardware import CPU
from clients.engine.worker import Settings, Worker
from clients.task import Answer, Job
from fedinit.adapters.bank import Bank
from fedinit.config.engine import RayConfig
from fedinit.data.dataset import Dataset
from fedinit.errors import GOES_ON, DeviceFailed, InputError, RunFailed, first_line
from fedinit.models.backbone import Backbone
from fedinit.models.input_spec import InputSpec
from fedinit.state.base_offset import EMPTY, Offset
from fedinit.threads import set_intra_op


@dataclass(frozen=True)
class Goods:
    """What an actor makes its worker of, packed.

    frame, numbers: the backbone, taken apart. features, spec: its own. targets, data, settings: as a Worker takes them.
    cuda: whether it works on the GPU that Ray gives it.
    """

    frame: nn.Module
    numbers: list[tuple[bool, Laid]]
    features: int
    spec: InputSpec
    targets: Mapping[str, tuple[int, int]]
    data: Dataset
    settings: Settings
    cuda: bool


@dataclass(frozen=True)
class Ready:
    """What an actor says of itself: its machine, process, and what it computes on."""

    machine: str
    process: int
    device: str


class BankActor:
    """A worker in a process of its own. Every method gives what was printed to stderr beside its value."""

    def __init__(self) -> None:
        self._bases: Collection[str] = ()
        self._worker: Worker | None = None

    def ready(self, goods: Goods) -> tuple[str, Ready | InputError]:
        """Make the worker, from now on."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                set_intra_op(1)
                backbone = Backbone(put_together(goods.frame, goods.numbers), goods.features, goods.spec)
                data = unpack(goods.data, Laid.view)
                _ = data.images[:0]  # what is wrong with a file that they are in ends the run, and is no client's fault
                device = torch.device("cuda", 0) if goods.cuda else CPU
                self._worker = Worker(backbone, goods.targets, data, goods.settings, device)
        except InputError as error:
            return said.getvalue(), error
        name = torch.cuda.get_device_name(device) if goods.cuda else "CPU"
        return said.getvalue(), Ready(socket.gethostname(), os.getpid(), name)

    def check(self) -> tuple[str, None]:
        """Nothing."""
        return "", None

    def do(self, job: Job, bases: Collection[str], offset: Sequence[Any]) -> tuple[str, Any]:
        """The answers to a job, packed; what ends the run as a value.

        bases: that the run of jobs needs. offset: a reference to that of the job's base, where it has one.
        """
        ray: Any = importlib.import_module("ray")

        worker, said = self._worker, io.StringIO()
        assert worker is not None
        if bases != self._bases:
            self._bases = bases
            worker.replica.prepare(bases)
        try:
            with contextlib.redirect_stderr(said):
                for reference in offset:
                    if not worker.replica.holds(job.base):
                        worker.replica.hold(job.base, unpack(ray.get(reference), Laid.view))
                value = pack(worker.do(unpack(job)))
        except (InputError, RunFailed) as error:
            value = error
        return said.getvalue(), value  # read when all has been said


class RayPool:
    """The actors of a cluster, by place (clients/engine/dispatch.py)."""

    def __init__(self, cluster: Cluster, goods: Goods) -> None:
        """goods: laid into Ray's store here, once."""
        self._cluster, self._ray = cluster, (ray := cluster.ray)
        resources = {"num_gpus": 1, "num_cpus": 0} if cluster.cuda else {"num_cpus": cluster.threads}
        resources |= {"max_restarts": 0, "max_task_retries": 0}  # who gives the jobs gives them again
        self._actor = ray.remote(scheduling_strategy="SPREAD", **resources)(BankActor)
        self._goods, self._offsets = ray.put(goods), {}
        self._actors: dict[int, Any] = {}
        self._told: set[str] = set()
        self.bases: tuple[str, ...] = ()

    def hold(self, offsets: Mapping[str, Offset]) -> None:
        """Have these offsets for the next jobs, and no others."""
        self._offsets = {
            base: self._offsets[base] if base in self._offsets else self._ray.put(pack(offset))
            for base, offset in offsets.items()
        }
        self.bases = tuple(sorted(offsets))

    def start(self, place: int) -> Hashable:
        if place in self._actors:  # it has died
            self._cluster.check()
        self._kill(place)
        self._actors[place] = self._actor.remote()
        return self._actors[place].ready.remote(self._goods)

    def check(self, place: int) -> Hashable:
        return self._actors[place].check.remote()

    def give(self, place: int, job: Job) -> Hashable:
        offset = [self._offsets[job.base]] if job.base in self._offsets else []
        return self._actors[place].do.remote(pack(job), self.bases, offset)

    def first(self, calls: Collection[Hashable], seconds: float | None) -> Hashable | None:
        try:
            ended, _ = self._ray.wait(list(calls), num_returns=1, timeout=seconds)
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise RunFailed(f"Ray no longer answers: {first_line(error)}; {GOES_ON}") from error
        return ended[0] if ended else None

    def value(self, call: Hashable) -> Any:
        """Prints what the actor printed, each line once."""
        try:
            said, value = self._ray.get(call)
        except self._ray.exceptions.RayTaskError:
            raise  # an error that nobody foresaw, with where it was
        except self._ray.exceptions.RayError as error:
            raise ActorDied(" ".join(first_line(error).split())) from error
        for line in said.splitlines():
            if line not in self._told:
                print(line, file=sys.stderr)
                self._told.add(line)
        value = unpack(value)
        if isinstance(value, DeviceFailed):  # its process is there, and will compute nothing more
            raise ActorDied(str(value))
        return value

    def close(self) -> None:
        """End the actors."""
        for place in list(self._actors):
            self._kill(place)

    def _kill(self, place: int) -> None:
        actor = self._actors.pop(place, None)
        if actor is not None and self._ray.is_initialized():
            with contextlib.suppress(Exception):  # it is gone, or its machine is
                self._ray.kill(actor)


class RayEngine:
    """Actors of Ray, one job each at a time."""

    def __init__(
        self,
        config: RayConfig,
        backbone: Backbone,
        targets: Mapping[str, tuple[int, int]],
        data: Dataset,
        settings: Settings,
        emit: Emit,
    ) -> None:
        """targets, data, settings: as a Worker takes them. emit: is told of actors that die.

        Raises InputError for what cannot be used, RunFailed where no actor starts.
        """
        self._here = backbone, targets, data, settings
        self._precision, self._emit = settings.precision, emit
        self._held: dict[str, Offset] = {}
        self._worker: Worker | None = None
        self._cluster = Cluster(config)
        try:
            frame, numbers = take_apart(backbone.module)
            goods = Goods(
                frame, numbers, backbone.features, backbone.input, targets, pack(data), settings, self._cluster.cuda
            )
            self.pool = RayPool(self._cluster, goods)
            self.dispatch = Dispatch(self.pool, self._cluster.actors, self._died)
            self.dispatch.start()
        except BaseException:
            self.close()
            raise

    def hold(self, base: str, offset: Offset) -> None:
        if base != EMPTY:
            self._held.setdefault(base, offset)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Answer, ...]]:
        needed = dict.fromkeys(job.base for job in jobs if job.base != EMPTY)
        for base in needed:
            if base not in self._held:
                raise LookupError(f"the base {base[:12]} is not held by this engine")
        self._held = {base: self._held[base] for base in needed}
        self.pool.hold(self._held)
        return self.dispatch.run(jobs)

    @contextmanager
    def borrow(self, base: str = EMPTY) -> Iterator[Bank]:
        if self._worker is None:  # in this process, where the others are elsewhere
            device = torch.device("cuda") if self._cluster.cuda and torch.cuda.is_available() else CPU
            self._worker = Worker(*self._here, device)
        replica = self._worker.replica
        replica.prepare([base])
        if base in self._held:
            replica.hold(base, self._held[base])
        with self._worker.lent(base) as bank:
            yield bank

    @property
    def lanes(self) -> int:
        return self._cluster.actors

    def described(self) -> str:
        said = list(self.dispatch.said.values())
        machines, devices = len({ready.machine for ready in said}), dict.fromkeys(ready.device for ready in said)
        where = f" on {machines} machines" if machines > 1 else ""
        threads = f", {self._cluster.threads} threads each," if self._cluster.threads > 1 else ""
        count = f"{len(said)} actor{'s' * (len(said) > 1)} of Ray{where}{threads}"
        return f"{count} on {' and '.join(devices)}, {self._precision}"

    def close(self) -> None:
        pool = getattr(self, "pool", None)
        if pool is not None:
            pool.close()
        self._cluster.close()

    def _died(self, death: Death) -> None:
        tasks = death.job.tasks
        clients = [task.client for task in tasks if not task.mute and task.client >= 0]
        facts = {"round": max(task.round for task in tasks), "work": death.job.work, "clients": clients}
        self._emit("actor_died", {**facts, "times": death.times, "detail": death.why})
