"""A worker: one bank on one device, and what it takes to do a client's job with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from clients.engine.replica import Replica
from clients.evaluation import features_of, score_sums
from clients.statistics import measure
from clients.task import Answer, ClientFailed, Job, Measured, Result, StepFailed, Task
from clients.training import train_bank
from fedinit.adapters.bank import Bank
from fedinit.config.client import ClientConfig
from fedinit.config.schema import Config
from fedinit.data.dataset import Dataset
from fedinit.errors import InputError
from fedinit.models.backbone import Backbone
from fedinit.threads import cores

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every job of a run is done with.

    client: how clients train.
    seed: of the run.
    scale: s = α/r.
    dropout: the probability with which an adapter's inputs are dropped in training.
    batch_size: images of a pass in which nothing is trained.
    """

    client: ClientConfig
    seed: int
    scale: float
    dropout: float = 0.0
    batch_size: int = 256

    @staticmethod
    def of(config: Config) -> Settings:
        """What a run's configuration says of it."""
        adapter = config.adapter
        return Settings(
            client=config.client,
            seed=config.seed,
            scale=adapter.scale,
            dropout=adapter.dropout,
            batch_size=config.evaluation.batch_size,
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
        alone = beside is None
        self.replica = Replica(backbone, targets, settings.scale, device) if alone else beside.replica
        self.bank = Bank(self.replica.backbone, targets, settings.scale, settings.dropout)
        self.data, self.settings, self.spec = data, settings, backbone.input

    def do(self, job: Job) -> tuple[Answer, ...]:
        """The answers to the job's tasks, in their order; ClientFailed for a client that fails."""
        self.replica.put(self.bank, job.base)
        if job.work == "train":
            return tuple(self._train(job.tasks))
        return tuple(self._attempt(job.work, task) for task in job.tasks)

    def _train(self, tasks: tuple[Task, ...]) -> list[Result | ClientFailed]:
        try:
            return self._train_together(tasks)
        except Exception:  # noqa: BLE001 (somebody's; each is tried with the others mute, at the same rounding)
            return [self._train_among_mutes(tasks, i) for i in range(len(tasks))]

    def _train_together(self, tasks: tuple[Task, ...]) -> list[Result | ClientFailed]:
        return train_bank(self.bank, tasks, self.data, self.spec, self.settings.client, self.settings.seed)

    def _train_among_mutes(self, tasks: tuple[Task, ...], i: int) -> Result | ClientFailed:
        try:
            return self._train_together(tuple(t if t is tasks[i] else t.stand_in(tasks[i]) for t in tasks))[i]
        except StepFailed as error:
            return ClientFailed.of(tasks[i].client, "train", error.__cause__ or error, error.step)
        except Exception as error:  # noqa: BLE001 (this client's)
            return ClientFailed.of(tasks[i].client, "train", error)

    def _attempt(self, work: str, task: Task) -> Answer:
        do = {"measure": self._measure, "evaluate": self._evaluate, "features": self._features}[work]
        try:
            return do(task)
        except Exception as error:  # noqa: BLE001 (this client's)
            return ClientFailed.of(task.client, {"measure": "statistics"}.get(work, work), error)

    def _measure(self, task: Task) -> Measured:
        request, settings = task.request, self.settings
        if request is None:
            raise ValueError("a measurement without a request")
        if task.adapter:
            self.bank.load([task.adapter], [task.head], task.trainable)
        else:
            self.bank.bare()
        # A backward pass holds what training holds.
        size = settings.client.batch_size if request.source == "gradients" else settings.batch_size
        statistics = measure(self.bank, request, task.examples, task.client, self.data, self.spec, size, task.secret)
        return Measured(task.client, statistics.sums, statistics.examples)

    def _evaluate(self, task: Task) -> Measured:
        self.replica.fold(self.bank, task)
        sums = score_sums(self.bank, task, self.data, self.spec)
        return Measured(task.client, {"sums": sums}, len(task.examples))

    def _features(self, task: Task) -> Measured:
        self.bank.bare()
        features = features_of(self.bank, task, self.data, self.spec)
        return Measured(task.client, {"features": features}, len(task.examples))


def make_workers(
    backbone: Backbone,
    targets: Mapping[str, tuple[int, int]],
    data: Dataset,
    settings: Settings,
    device: str = "auto",
    lanes: int | None = None,
) -> list[Worker]:
    """A worker a lane; those of one device share its copy of the backbone.

    device: "auto" (CUDA where there is one), "cpu", "cuda" (all devices) or "cuda:<n>".
    lanes: their number on CPU; None is one a core. Raises InputError for a device that is not there.
    """
    workers: list[Worker] = []
    for place in devices(device, lanes):
        beside = next((w for w in workers if w.replica.device == place), None)
        workers.append(Worker(backbone, targets, data, settings, place, beside))
    return workers


def devices(device: str, lanes: int | None) -> list[torch.device]:
    """The device of each lane; arguments as in `make_workers`."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"engine.device={device}: expected auto, cpu, cuda or cuda:<n>") from error
    if wanted.type == "cpu":
        return [CPU] * (lanes or cores())
    if wanted.type != "cuda":
        raise InputError(f"engine.device={device}: expected auto, cpu, cuda or cuda:<n>")
    there = torch.cuda.device_count()
    if there == 0 or (wanted.index or 0) >= there:
        raise InputError(f"engine.device={device}: this machine has {there} CUDA devices; use engine.device=cpu")
    indices = range(there) if wanted.index is None else [wanted.index]
    return [torch.device("cuda", i) for i in indices]
