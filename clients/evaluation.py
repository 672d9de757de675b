"""How good one adapter and head are, with the adapter folded into the weights."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from flwr.app import MetricRecord
from torch import Tensor

from clients import batches
from clients.engine import Engine
from clients.engine.plan import plan
from clients.resident import Resident
from clients.task import Answer, ClientFailed, Measured, Task
from fedinit.adapters.bank import Bank
from fedinit.data.dataset import Dataset
from fedinit.models.input_spec import InputSpec
from fedinit.scores import Score

Sums = dict[int, tuple[float, float]]  # {domain: the two sums of a score}


def judge(engine: Engine, data: Dataset, task: Task, size: int) -> Sums:
    """{domain: the two sums of a score} over the task's examples: correct predictions and images, or Σ‖ŷ − y‖² and
    Σ‖y‖² where the targets are those of a regression.

    engine: holds the task's base. size: images a batch.
    With the task's features, (n, D) of the frozen backbone, those stand for the images.
    """
    answers = itertools.chain.from_iterable(engine.run(plan(split(task, size), 1)))
    return by_domain(data, task.examples, list(answers))


class FrozenFeatures:
    """Pooled features of the images under the backbone without any adapter, computed when they are first asked for.

    A pass is always of the same images, of training before those of the test, so that the features' bits depend on
    nothing but the data: not on who asks first, nor on where a run was stopped.
    """

    def __init__(self, engine: Engine, data: Dataset, size: int) -> None:
        """size: images a pass."""
        order = data.test.int().argsort(stable=True)
        self._engine, self._size, self._passes = engine, size, order.split(size)
        self._place = torch.empty_like(order)
        self._place[order] = torch.arange(len(order))
        self._done: set[int] = set()
        self._values = torch.empty(0)

    def of(self, examples: Tensor) -> Tensor:
        """(n, D), of n examples."""
        missing = sorted(set((self._place[examples] // self._size).unique().tolist()) - self._done)
        tasks = [Task(-1, 0, self._passes[i], {}, {}, frozenset(), work="features") for i in missing]
        answers = itertools.chain.from_iterable(self._engine.run(plan(tasks, 1)))
        for i, answer in zip(missing, answers, strict=True):
            features = measured(answer).tensors["features"]
            if not self._done:  # no inference tensor, which could not take part in training the heads
                self._values = torch.zeros(len(self._place), features.shape[1], dtype=features.dtype)
            self._values[self._passes[i]] = features
            self._done.add(i)
        return self._values[examples]


def split(task: Task, size: int) -> list[Task]:
    """The task in batches of `size` images, where its images do not depend on each other."""
    if task.work not in ("evaluate", "features"):
        return [task]
    parts = task.examples.split(size)
    features = [None] * len(parts) if task.features is None else task.features.split(size)
    return [replace(task, examples=part, features=f) for part, f in zip(parts, features, strict=True)]


def measured(answer: Answer) -> Measured:
    """The answer as a measurement. Raises a failure's cause, or the failure; TypeError for a training's result."""
    if isinstance(answer, ClientFailed):
        raise answer.__cause__ or answer
    if not isinstance(answer, Measured):
        raise TypeError(f"expected a measurement, got {type(answer).__name__}")
    return answer


def by_domain(data: Dataset, examples: Tensor, answers: Sequence[Answer]) -> Sums:
    """The sums of consecutive batches of the examples (n,), by the domain of the image. Raises a batch's failure."""
    sums = torch.cat([measured(answer).tensors["sums"] for answer in answers], dim=1)  # (2, n)
    domains = data.domains[examples]
    totals = {int(d): sums[:, domains == d].sum(1).tolist() for d in domains.unique(sorted=True)}
    return {domain: (part, whole) for domain, (part, whole) in totals.items()}


@torch.inference_mode()
def score_sums(bank: Bank, task: Task, resident: Resident, spec: InputSpec) -> Tensor:
    """(2, n): what each of the task's n examples adds to the two sums. bank: has adapter and head folded into it."""
    device, data = bank.device, resident.data
    if task.features is not None:
        logits = bank.classify(task.features.to(device), 1)
    else:
        logits = bank.forward(batches.normalise(resident.pixels(task.examples), spec, device), 1)
    score = sums_of_regression if data.is_regression else sums_of_classes
    return score(logits[0].cpu(), data.labels[task.examples])


@torch.inference_mode()
def features_of(bank: Bank, task: Task, resident: Resident, spec: InputSpec) -> Tensor:
    """(n, D) pooled features of the examples, by a bank without adapters."""
    return bank.embed(batches.normalise(resident.pixels(task.examples), spec, bank.device)).cpu()


def sums_of_classes(outputs: Tensor, labels: Tensor) -> Tensor:
    """(2, n) int64: whether each prediction is correct, and one for each; outputs (n, classes), labels (n,)."""
    hits = (outputs.argmax(-1) == labels).long()
    return torch.stack([hits, torch.ones_like(hits)])


def sums_of_regression(outputs: Tensor, targets: Tensor) -> Tensor:
    """(2, n) float64: ‖ŷ − y‖² and ‖y‖² of each; both (n, outputs)."""
    outputs, targets = outputs.double(), targets.double()
    return torch.stack([(outputs - targets).square().sum(-1), targets.square().sum(-1)])


def sums_record(sums: Mapping[int, tuple[float, float]], score: type[Score]) -> MetricRecord:
    """{domain: two sums} as it travels: three lists of numbers."""
    part, whole = ([row[i] for row in sums.values()] for i in range(2))
    return MetricRecord({"domains": list(sums), score.wire[0]: part, score.wire[1]: whole})
