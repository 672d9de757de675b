"""A worker: one bank on one device, and what it takes to do a client's job with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from clients.batches import FEWEST
from clients.compiled import Compiled
from clients.engine.hardware import CPU, computing, devices
from clients.engine.replica import Replica
from clients.engine.rows import rows_are_kept
from clients.evaluation import features_of, score_sums
from clients.private import train_privately
from clients.replay import Recorder
from clients.resident import Resident
from clients.statistics import measure
from clients.task import Answer, ClientFailed, Job, Measured, Result, StepFailed, Task
from clients.training import train_bank
from fedinit import allocator
from fedinit.adapters.bank import Bank
from fedinit.config.client import ClientConfig
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.config.schema import Config
from fedinit.data.dataset import Dataset
from fedinit.errors import GOES_ON, DeviceFailed, RunFailed, device_failed, first_line, machine_failed, out_of_memory
from fedinit.models.backbone import Backbone
from fedinit.statistics import Request
from fedinit.threads import intra_op

BATCH = "client.batch_size"  # the key that makes a pass of training smaller
ROW = 8  # float32 numbers, 32 bytes: rows of other lengths round by where in memory they begin


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every job of a run is done with.

    client: how clients train.
    seed: of the run.
    scale: s = α/r.
    dropout: the probability with which an adapter's inputs are dropped in training.
    batch_size: images of a pass in which nothing is trained.
    precision: what the backbone computes in, a key of DTYPES.
    rounds: of the run.
    threads: cores inside each operation on the CPU.
    compile: whether steps of whole banks are compiled.
    privacy: how every client's examples are hidden; None: they are not.
    rank: the largest, where clients have several; 0: all have one.
    private_seed: of what privacy=examples draws, as the configuration has it.
    alone: whether no other lane or actor works beside it.
    """

    client: ClientConfig
    seed: int
    scale: float
    dropout: float = 0.0
    batch_size: int = 256
    precision: str = "fp32"
    rounds: int = 1
    threads: int = 1
    compile: bool = False
    privacy: ExamplePrivacyConfig | None = None
    rank: int = 0
    private_seed: int = 0
    alone: bool = False

    @staticmethod
    def of(config: Config, weights: str = "") -> Settings:
        """What a run's configuration says of it. weights: a digest of the backbone's."""
        adapter, privacy = config.adapter, config.privacy
        of_examples = privacy if isinstance(privacy, ExamplePrivacyConfig) else None
        if of_examples is not None and of_examples.noise is not None:
            of_examples = replace(of_examples, epsilon=None)  # it is judged before a client trains: clients/budget.py
        return Settings(
            client=config.client,
            seed=config.seed,
            scale=adapter.scale,
            dropout=adapter.dropout,
            batch_size=config.evaluation.batch_size,
            precision=config.engine.precision,
            rounds=config.rounds,
            threads=config.engine.threads,
            compile=config.engine.compile is True,
            privacy=of_examples,
            # A client that trains by itself needs no others' rank, which noise would fill.
            rank=0 if adapter.ranks is None or of_examples else adapter.rank,
            private_seed=config.private_seed(weights),
            alone=config.engine.name == "inline" or 1 in (config.engine.lanes, getattr(config.engine, "actors", None)),
        )


class Worker:
    """Does one job at a time, and is used by one thread at a time."""

    def __init__(
        self,
        backbone: Backbone,
        targets: Mapping[str, tuple[int, int]],
        data: Dataset,
        settings: Settings,
        device: torch.device = CPU,
        beside: Worker | None = None,
    ) -> None:
        """targets: {layer: (d, k)} of the layers with adapters. device: what the bank is on.
        beside: a worker on the same device, whose copy of the backbone this one shares."""
        if device.type == "cpu":
            allocator.keep_freed()
        alone = beside is None
        made = (backbone, targets, settings.scale, device, settings.precision)
        self.replica = Replica(*made) if alone else beside.replica
        how = (settings.scale, settings.dropout, self.replica.exact, settings.rank)
        self.bank = Bank(self.replica.backbone, targets, *how)
        self.settings, self.spec, self.device = settings, backbone.input, device
        self._most = sys.maxsize  # clients that there was memory for in one pass
        self._whole_rows = all(width % ROW == 0 for shape in targets.values() for width in shape)
        if beside is not None:
            self.compiled = beside.compiled
        else:
            self.compiled = Compiled() if settings.compile else None
        self.resident = Resident(data, device)
        self.recorder = None if device.type == "cpu" else Recorder(self.resident, self.spec)

    def do(self, job: Job) -> tuple[Answer, ...]:
        """The answers to the job's tasks, in their order; ClientFailed for a client that fails."""
        with intra_op(self.settings.threads), computing(self.device, self.settings.precision, self.replica.repeats):
            self.replica.put(self.bank, job.base)
            if job.work == "train":
                return tuple(self._train(job.tasks))
            return tuple(self._attempt(job.work, task) for task in job.tasks)

    def close(self) -> None:
        """Give back what it holds beside its bank."""
        if self.recorder is not None:
            self.recorder.release()

    @contextmanager
    def lent(self, base: str) -> Iterator[Bank]:
        """The bank, over this base, for what is no job; it computes as in one."""
        with computing(self.device, self.settings.precision, self.replica.repeats):
            self.replica.put(self.bank, base)
            yield self.bank

    def _train(self, tasks: tuple[Task, ...]) -> list[Result | ClientFailed]:
        if self.settings.privacy is not None:
            return [self._train_privately(task, self.settings.privacy) for task in tasks]
        return self._train_within_memory(tasks)

    def _train_within_memory(self, tasks: tuple[Task, ...]) -> list[Result | ClientFailed]:
        """In one bank; by halves where there is too little memory for that and nobody's bytes depend on it."""
        if len(tasks) <= self._most or not self._rows_are_own(tasks):
            try:
                return self._train_bank(tasks)
            except Exception as error:
                if len(tasks) == 1 or not (out_of_memory(error.__cause__ or error) and self._rows_are_own(tasks)):
                    self._blame_machine(error, len(tasks))
                    raise
            self._most = -(-len(tasks) // 2)  # what was tried is free by now
            few = f"{self._most} clients in one pass, which changes no result"
            print(f"engine: too little memory for a bank of {len(tasks)}; from here on {few}", file=sys.stderr)
        half = -(-len(tasks) // 2)
        return self._train_within_memory(tasks[:half]) + self._train_within_memory(tasks[half:])

    def _rows_are_own(self, tasks: Sequence[Task]) -> bool:
        """Whether clients have the bytes in this bank that they would have in another (docs/architecture.md)."""
        plain = self.device == CPU and self.settings.precision == "fp32" and self.compiled is None
        ranks = {factors.rank for task in tasks for factors in task.adapter.values()}
        one_rank = not ranks or (len(ranks) == 1 and 1 not in ranks)  # a product of rank one is a vector's
        wide = self._whole_rows and self.settings.client.batch_size >= FEWEST
        return plain and one_rank and wide and rows_are_kept()

    def _failed(self, task: Task, stage: str, error: Exception, key: str = BATCH) -> ClientFailed:
        """The failure of a client that was asked alone, or with mutes. key: as of `_blame_machine`."""
        self._blame_machine(error, 1, key)
        if isinstance(error, StepFailed):
            return ClientFailed.of(task.client, "train", error.__cause__ or error, error.step)
        return ClientFailed.of(task.client, stage, error)

    def _blame_machine(self, error: Exception, count: int, key: str = BATCH) -> None:
        """Raise RunFailed where what failed is the machine's memory, or its device, and no client: else those whose
        turn it was would be missing in a round. count: clients of the pass. key: what makes it smaller, where it has
        one client."""
        cause = error.__cause__ or error
        if device_failed(cause):
            raise DeviceFailed(f"{self.device} failed ({first_line(cause)}); {GOES_ON}") from error
        if not out_of_memory(cause):
            if machine_failed(error):
                raise RunFailed(f"{first_line(cause)}; {GOES_ON}") from error
            return
        first = ""
        if self.device == CPU and not self.settings.alone:  # lanes share what there is
            first = "engine.lanes=1, or with Ray engine.actors=1, which changes no result; or "
        if count == 1:
            told = f"{self.device} has too little memory for one client"
            raise RunFailed(f"{told}; use {first}a lower {key}; {GOES_ON}") from error
        raise RunFailed(
            f"{self.device} has too little memory for {count} clients with batches of "
            f"{self.settings.client.batch_size} in one pass; use {first}engine.clients_per_bank={-(-count // 2)}, "
            "which is another run, since the size of a bank changes rounding"
        ) from error

    def _train_bank(self, tasks: tuple[Task, ...]) -> list[Result | ClientFailed]:
        """Together; where somebody fails for all, each with the others mute, at the same rounding. Raises what the
        machine fails at."""
        try:
            return self._train_together(tasks)
        except Exception as error:
            if machine_failed(error):
                raise
        return [self._train_among_mutes(tasks, i) for i in range(len(tasks))]

    def _train_together(self, tasks: tuple[Task, ...]) -> list[Result | ClientFailed]:
        try:
            return self._trained(tasks)
        except Exception as error:
            if not (out_of_memory(error.__cause__ or error) and self.recorder is not None and self.recorder.release()):
                raise
        return self._trained(tasks)  # with the memory that recordings of other banks held

    def _trained(self, tasks: tuple[Task, ...]) -> list[Result | ClientFailed]:
        settings = self.settings
        run = self.resident.data, self.spec, settings.client, settings.seed
        return train_bank(self.bank, tasks, *run, self.recorder, self.compiled)

    def _train_among_mutes(self, tasks: tuple[Task, ...], i: int) -> Result | ClientFailed:
        try:
            return self._train_together(tuple(t if t is tasks[i] else t.stand_in(tasks[i]) for t in tasks))[i]
        except Exception as error:
            if machine_failed(error):
                raise
            return self._failed(tasks[i], "train", error)

    def _train_privately(self, task: Task, privacy: ExamplePrivacyConfig) -> Result | ClientFailed:
        settings = self.settings
        run = self.resident, self.spec, settings.client, privacy, settings.rounds, settings.private_seed
        try:
            if task.mute:
                raise ValueError("failed before it was asked")
            return train_privately(self.bank, task, *run)
        except Exception as error:  # noqa: BLE001 (this client's)
            return self._failed(task, "plan", error)

    def _attempt(self, work: str, task: Task) -> Answer:
        do = {"measure": self._measure, "evaluate": self._evaluate, "features": self._features}[work]
        try:
            return do(task)
        except Exception as error:  # noqa: BLE001 (this client's)
            key = BATCH if work == "measure" and _goes_back(task.request) else "evaluation.batch_size"
            return self._failed(task, {"measure": "statistics"}.get(work, work), error, key=key)

    def _measure(self, task: Task) -> Measured:
        request, settings = task.request, self.settings
        if request is None:
            raise ValueError("a measurement without a request")
        if task.adapter:
            self.bank.load([task.adapter], [task.head], task.trainable)
        else:
            self.bank.bare()
        size = settings.client.batch_size if _goes_back(request) else settings.batch_size
        statistics = measure(
            self.bank, request, task.examples, task.client, self.resident, self.spec, size, task.secret
        )
        return Measured(task.client, statistics.sums, statistics.examples)

    def _evaluate(self, task: Task) -> Measured:
        self.replica.fold(self.bank, task)
        sums = score_sums(self.bank, task, self.resident, self.spec)
        return Measured(task.client, {"sums": sums}, len(task.examples))

    def _features(self, task: Task) -> Measured:
        self.bank.bare()
        features = features_of(self.bank, task, self.resident, self.spec)
        return Measured(task.client, {"features": features}, len(task.examples))


def _goes_back(request: Request | None) -> bool:
    """Whether a measurement has a backward pass, which holds what training holds."""
    return request is not None and request.source == "gradients"


def make_workers(
    backbone: Backbone,
    targets: Mapping[str, tuple[int, int]],
    data: Dataset,
    settings: Settings,
    device: str = "auto",
    lanes: int | None = None,
) -> list[Worker]:
    """A worker a lane; those of one device share its copy of the backbone.

    device: "auto" (CUDA where there is one), "cpu", "cuda" (all devices of the first one's kind) or "cuda:<n>".
    lanes: their number on CPU; None is as many as the cores have room for. Raises InputError for a device that is not
    there, and for more threads than cores.
    """
    workers: list[Worker] = []
    for place in devices(device, lanes, settings.threads):
        beside = next((w for w in workers if w.replica.device == place), None)
        workers.append(Worker(backbone, targets, data, settings, place, beside))
    return workers


def described(workers: Sequence[Worker]) -> str:
    """On what and how they compute, in a few words: "2 lanes on CPU, fp32"."""
    first, lanes = workers[0], len(workers)
    threads = f" of {first.settings.threads} threads" if first.settings.threads > 1 else ""
    place = f"{lanes} lane{'s' * (lanes > 1)}{threads} on CPU"
    if first.device.type == "cuda":
        place = " and ".join(dict.fromkeys(torch.cuda.get_device_name(worker.device) for worker in workers))
        place = f"{lanes} x {place}" if lanes > 1 else place
    return f"{place}, {first.settings.precision}{', compiled' * first.settings.compile}"
