"""One bank's local training: K clients from their start factors to what they return."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clients import batches
from clients.optimizers import create_optimizer
from clients.selection import Choice, choose, trained_part
from fedinit import slots
from fedinit.adapters.bank import Bank
from fedinit.config.client import ClientConfig
from fedinit.data.dataset import Dataset
from fedinit.factors import Factors
from fedinit.models.backbone import InputSpec
from fedinit.seeding import derive, torch_generator
from fedinit.slots import Chosen
from fedinit.state.base_offset import EMPTY


@dataclass(frozen=True)
class Task:
    """A client's part of a round.

    base: the key of the base offset this client trains over. offset: factors that belong to this client's base in
    this round, on top of that. scales: the optimiser's step scales by leaf that this client fixed in an earlier round.
    choice: how many slots of the trained factor this client may train, and which; None: all.
    notes: numbers known before training, to be reported with the result. mute: the task of a client that failed, which
    only keeps its place in the bank, on black images.
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
    choice: Choice | None = None
    notes: Mapping[str, float] = field(default_factory=dict)
    mute: bool = False

    def stand_in(self, like: Task) -> Task:
        """A mute task in this one's place: its ranks and steps, and for the rest the shapes of a task that works."""
        return replace(
            self,
            adapter={name: f.blank(self.adapter.get(name, f)) for name, f in like.adapter.items()},
            offset={name: f.blank(self.offset.get(name, f)) for name, f in like.offset.items()},
            head={name: torch.zeros_like(value) for name, value in like.head.items()},
            trainable=like.trainable,
            scales={},
            mute=True,
        )


class ClientFailed(Exception):
    """One client's failure. stage: start (before its task was made), plan, batch (its images, at a step), train (at a
    step, once it had begun), reply; of other questions: describe, statistics, evaluate."""

    def __init__(self, client: int, stage: str, cause: Exception, step: int | None = None) -> None:
        where = traceback.extract_tb(cause.__traceback__)[-1]
        at = f"client {client}, {stage}" + ("" if step is None else f", step {step}")
        super().__init__(f"{at}: {type(cause).__name__}: {cause} ({where.name}, line {where.lineno})")


class StepFailed(Exception):
    """What failed for a whole bank in a step, 1 being the first; its cause says what."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass(frozen=True)
class Result:
    """What a client made of its task. loss: mean training loss over its steps; steps: how many it took; scales: the
    optimiser's step scales as they are now; state: how many numbers the optimiser kept for this client; chosen: the
    slots it trained, where it had a choice."""

    client: int
    adapter: Mapping[str, Factors]
    head: Mapping[str, Tensor]
    loss: float
    steps: int
    scales: Mapping[str, float] = field(default_factory=dict)
    state: int = 0
    chosen: Chosen | None = None


def train_bank(
    bank: Bank,
    tasks: Sequence[Task],
    data: Dataset,
    spec: InputSpec,
    settings: ClientConfig,
    seed: int,
    features: Tensor | None = None,
) -> list[Result | ClientFailed]:
    """Train the tasks' clients together; results in the order of the tasks, the same bytes every time.

    features: (len(data), D) pooled features of the frozen backbone, for when no adapter is in play; the heads then
    train on those. All tasks are of one round, with the same trainable factors.
    A client whose plan or batch fails goes mute from there on. Its row stays, and rows do not touch each other, so its
    mates' results are, bit for bit, those of a bank where nothing failed. Raises what fails for all of them together,
    in a step as StepFailed.
    """
    failed: dict[int, ClientFailed] = {}
    plans = {}
    for t in tasks:
        try:
            plans[t.client] = batches.plan(t.examples, settings, seed, t.round, t.client)
            data.labels[t.examples]  # raises IndexError for what is not there
        except Exception as error:  # noqa: BLE001 (one client's; its mates go on)
            failed[t.client] = ClientFailed(t.client, "plan", error)
            plans[t.client] = [torch.zeros(1, dtype=torch.long)]
    mute = {t.client for t in tasks if t.mute} | failed.keys()
    # Longest first, so that the clients still training are always the first rows of the bank.
    order = sorted(range(len(tasks)), key=lambda i: -len(plans[tasks[i].client]))
    members = [tasks[i] for i in order]
    device = next(bank.module.parameters()).device
    draws = [torch_generator(seed, "augment", t.round, t.client) for t in members]

    def images_of(now: batches.Step, step: int, active: int, augment: str = settings.augment) -> Tensor:
        """(active·b, c, h, w), black for clients that failed; laid out in memory the same way for any of them, since a
        convolution may round differently by its input's strides."""
        images = data.images.new_zeros((active, settings.batch_size, *data.images.shape[1:]))
        for row, t in enumerate(members[:active]):
            if t.client not in mute:
                try:
                    images[row] = batches.augment(data.images[now.indices[row]], augment, draws[row])
                except Exception as error:  # noqa: BLE001 (one client's; its mates go on)
                    failed[t.client] = ClientFailed(t.client, "batch", error, step + 1)
                    mute.add(t.client)
        return batches.normalise(images.flatten(0, 1), spec, device)

    adapters, offsets = [t.adapter for t in members], [t.offset for t in members]
    room: dict[str, int] = {}
    chosen: list[Chosen | None] = [None] * len(members)
    if any(t.choice is not None for t in members):
        chosen = choose(bank, members, plans, data.labels, images_of, settings, seed)
        adapters, offsets = zip(*map(_parted, members, chosen), strict=True)
        # The bank's shapes do not depend on what was chosen, so that no client's rounding depends on its mates' choice.
        room = {name: product.rank for name, product in members[0].adapter.items()}
    leaves = bank.load(
        adapters,
        [t.head for t in members],
        members[0].trainable,
        offsets=offsets,
        generators=[_dropout(seed, t, device) for t in members],
        room=room,
    )
    optimizer = create_optimizer(leaves, settings, bank.owned(leaves), [t.scales for t in members])
    losses = torch.zeros(len(members), dtype=torch.float64, device=device)
    counts = [len(plans[t.client]) for t in members]

    def take(step: int) -> None:
        active = sum(count > step for count in counts)
        now = batches.join([plans[t.client][step] for t in members[:active]], settings.batch_size)
        if features is not None:
            logits = bank.classify(features[now.indices.flatten()].to(device), active)
        else:
            logits = bank.forward(images_of(now, step, active), active)
        mean = batches.losses(logits, data.labels, now, settings.loss)  # (active,)
        gradients = torch.autograd.grad(mean.sum(), list(leaves.values()))
        optimizer.step(dict(zip(leaves, gradients, strict=True)), active)
        losses[:active] += mean.detach()

    for step in range(max(counts)):
        try:
            take(step)
        except Exception as error:
            raise StepFailed(step + 1) from error
    adapters, heads = bank.unload()
    adapters = [a if own is None else _whole(t, own, a) for t, own, a in zip(members, chosen, adapters, strict=True)]
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
            None if t.choice is None else chosen[row],
        )
        for row, t in enumerate(members)
    ]
    by_client = {result.client: result for result in made} | failed
    return [by_client[t.client] for t in tasks]


def _parted(task: Task, chosen: Chosen) -> tuple[dict[str, Factors], dict[str, Factors]]:
    """The chosen slots of the task's factors, to be trained, and the others, which are part of its base."""
    part, trained, frozen = trained_part(task), {}, {}
    for name, product in task.adapter.items():
        trained[name] = slots.take(product, part, chosen[name])
        frozen[name] = slots.take(product, part, slots.others(product, part, chosen[name])).absorb()
    return trained, frozen


def _whole(task: Task, chosen: Chosen, trained: Mapping[str, Factors]) -> dict[str, Factors]:
    """The task's factors with the trained slots in their places."""
    part = trained_part(task)
    return {n: slots.fill(f, part, chosen[n], getattr(trained[n], part)) for n, f in task.adapter.items()}


def _dropout(seed: int, task: Task, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(derive(seed, "dropout", task.round, task.client))


def _finite_mean(total: Tensor, count: int) -> float:
    value = float(total) / count
    return value if math.isfinite(value) else float("inf")
