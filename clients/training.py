"""One bank's local training: K clients from their start factors to what they return."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from clients import batches
from clients.optimizers import create_optimizer
from fedinit.base import EMPTY
from fedinit.config import ClientConfig
from fedinit.data.dataset import Dataset
from fedinit.factors import Factors
from fedinit.lora import Bank
from fedinit.models.backbone import InputSpec
from fedinit.seeding import derive, torch_generator


@dataclass(frozen=True)
class Task:
    """A client's part of a round.

    base: the key of the base offset this client trains over. offset: factors that belong to this client's base in
    this round, on top of that. scales: the optimiser's step scales by leaf that this client fixed in an earlier round.
    notes: numbers known before training, to be reported with the result.
    """

    client: int
    round: int
    examples: Tensor  # (n,) indices into the data set
    adapter: Mapping[str, Factors]
    head: Mapping[str, Tensor]
    trainable: frozenset[str]
    base: str = EMPTY
    offset: Mapping[str, Factors] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a client made of its task. loss: mean training loss over its steps; steps: how many it took; scales: the
    optimiser's step scales as they are now; state: how many numbers the optimiser kept for this client."""

    client: int
    adapter: Mapping[str, Factors]
    head: Mapping[str, Tensor]
    loss: float
    steps: int
    scales: Mapping[str, float] = field(default_factory=dict)
    state: int = 0


def train_bank(
    bank: Bank,
    tasks: Sequence[Task],
    data: Dataset,
    spec: InputSpec,
    settings: ClientConfig,
    seed: int,
    features: Tensor | None = None,
) -> list[Result]:
    """Train the tasks' clients together; results in the order of the tasks.

    features: (len(data), D) pooled features of the frozen backbone, for when no adapter is in play; the heads then
    train on those. All tasks are of one round, with the same trainable factors.
    """
    plans = {t.client: batches.plan(t.examples, settings, seed, t.round, t.client) for t in tasks}
    # Longest first, so that the clients still training are always the first rows of the bank.
    order = sorted(range(len(tasks)), key=lambda i: -len(plans[tasks[i].client]))
    members = [tasks[i] for i in order]
    device = next(bank.module.parameters()).device
    leaves = bank.load(
        [t.adapter for t in members],
        [t.head for t in members],
        members[0].trainable,
        offsets=[t.offset for t in members],
        generators=[_dropout(seed, t, device) for t in members],
    )
    draws = [torch_generator(seed, "augment", t.round, t.client) for t in members]
    optimizer = create_optimizer(leaves, settings, bank.owned(leaves), [t.scales for t in members])
    losses = torch.zeros(len(members), dtype=torch.float64, device=device)
    counts = [len(plans[t.client]) for t in members]
    for step in range(max(counts)):
        active = sum(count > step for count in counts)
        now = batches.join([plans[t.client][step] for t in members[:active]], settings.batch_size)
        if features is not None:
            logits = bank.classify(features[now.indices.flatten()].to(device), active)
        else:
            images = data.images[now.indices.flatten()]
            if settings.augment != "none":
                own = zip(images.split(settings.batch_size), draws[:active], strict=True)
                images = torch.cat([batches.augment(batch, settings.augment, draw) for batch, draw in own])
            logits = bank.forward(batches.normalise(images, spec, device), active)
        labels = data.labels[now.indices].to(device)
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(active, -1)
        mean = (each * now.weight.to(device)).sum(1)  # (active,)
        gradients = torch.autograd.grad(mean.sum(), list(leaves.values()))
        optimizer.step(dict(zip(leaves, gradients, strict=True)), active)
        losses[:active] += mean.detach()
    adapters, heads = bank.unload()
    losses = losses.cpu()
    made = [
        Result(
            t.client,
            adapters[row],
            heads[row],
            _finite_mean(losses[row], counts[row]),
            counts[row],
            optimizer.fixed_scales(row),
            optimizer.state_numbers,
        )
        for row, t in enumerate(members)
    ]
    return [result for _, result in sorted(zip(order, made, strict=True), key=lambda pair: pair[0])]


def _dropout(seed: int, task: Task, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(derive(seed, "dropout", task.round, task.client))


def _finite_mean(total: Tensor, count: int) -> float:
    value = float(total) / count
    return value if math.isfinite(value) else float("inf")
