"""Which slots of the trained factor a client works on in a round, where it may not train them all.

gradient  the largest changes of the product under one gradient step: the norm of a slot's product with the trained
          factor replaced by its gradient, over the first `probe` batches of the round, before any training.
weight    the largest slots as they are.
random    drawn from (seed, round, client): the control.

All layers' slots compete, so a layer may get many and another none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clients import batches
from fedinit import slots
from fedinit.adapters.bank import Bank
from fedinit.config.client import ClientConfig
from fedinit.factors import Factors
from fedinit.seeding import torch_generator

if TYPE_CHECKING:
    from clients.training import Task


Images = Callable[[batches.Step, int, int, str], Tensor]  # (step's batches, its number, active, augmentation)


@dataclass(frozen=True)
class Choice:
    """budget: slots of all layers together. how: gradient, weight or random. probe: batches, for gradient."""

    budget: int
    how: str
    probe: int


def trained_part(task: Task) -> str:
    """The one factor of which a client may choose slots."""
    (part,) = task.trainable & set(slots.AXIS)
    return part


def choose(
    bank: Bank,
    members: Sequence[Task],
    plans: Mapping[int, Sequence[Tensor]],
    labels: Tensor,
    images_of: Images,
    settings: ClientConfig,
    seed: int,
) -> list[dict[str, Tensor]]:
    """{layer: places} of each member; all places where one has no choice to make. Longest members come first."""
    part = trained_part(members[0])
    moved = [t.adapter for t in members]
    if any(t.choice is not None and t.choice.how == "gradient" for t in members):
        moved = _gradients(bank, members, plans, labels, images_of, settings, part)
    made = []
    for task, gradient in zip(members, moved, strict=True):
        counts = {name: slots.count(f, part) for name, f in task.adapter.items()}
        if task.choice is None:
            made.append({name: torch.arange(n) for name, n in counts.items()})
            continue
        if task.choice.how == "random":
            draw = torch_generator(seed, "slots", task.round, task.client)
            scores = {name: torch.rand(n, generator=draw) for name, n in counts.items()}
        else:
            judged = gradient if task.choice.how == "gradient" else task.adapter
            scores = {name: slots.norms(f, part) for name, f in judged.items()}
        made.append(slots.leading(scores, task.choice.budget))
    return made


def _gradients(
    bank: Bank,
    members: Sequence[Task],
    plans: Mapping[int, Sequence[Tensor]],
    labels: Tensor,
    images_of: Images,
    settings: ClientConfig,
    part: str,
) -> list[dict[str, Factors]]:
    """Each member's factors with the trained one replaced by its gradient; images as they are, without dropout."""
    leaves = bank.load([t.adapter for t in members], [t.head for t in members], frozenset({part}))
    wanted = {name: leaves[f"{name}/{part}"] for name in members[0].adapter}
    total = {name: torch.zeros_like(leaf) for name, leaf in wanted.items()}
    counts = [min(len(plans[t.client]), t.choice.probe if t.choice else 1) for t in members]
    for step in range(max(counts)):
        active = sum(len(plans[t.client]) > step for t in members)
        now = batches.join([plans[t.client][step] for t in members[:active]], settings.batch_size)
        loss = batches.losses(bank.forward(images_of(now, step, active, "none"), active), labels, now, settings.loss)
        for name, gradient in zip(wanted, torch.autograd.grad(loss.sum(), list(wanted.values())), strict=True):
            total[name] += gradient
    return [
        {n: dataclasses.replace(f, **{part: total[n][row].detach().cpu()}) for n, f in task.adapter.items()}
        for row, task in enumerate(members)
    ]
