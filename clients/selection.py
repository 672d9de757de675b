"""Which slots of the trained factor a client works on in a round, where it may not train them all.

gradient  the largest changes of the product under one gradient step: the norm of a slot's product with the trained
          factor replaced by its gradient, over the first `probe` batches of the round, before any training.
weight    the largest slots as they are.
random    drawn from (seed, round, client): the control.

All layers' slots compete, so a layer may get many and another none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from clients.loader import BankLoader
from clients.task import Task
from fedinit import slots
from fedinit.adapters.bank import Bank
from fedinit.factors import Factors
from fedinit.seeding import torch_generator
from fedinit.views import Slots


def choose(bank: Bank, loader: BankLoader, seed: int) -> list[Slots]:
    """The slots that each member of the bank trains, in their order; all of them where one has no choice to make.

    Loads the bank, where a choice is by gradient. seed: of the run.
    """
    members = loader.members
    part = slots.part_of(members[0].trainable)
    gradients: list[Mapping[str, Factors]] = [t.adapter for t in members]
    if any(t.choice is not None and t.choice.how == "gradient" for t in members):
        gradients = _gradients(bank, loader, part)
    return [Slots(part, _places(t, part, moved, seed)) for t, moved in zip(members, gradients, strict=True)]


def _places(task: Task, part: str, gradient: Mapping[str, Factors], seed: int) -> Mapping[str, torch.Tensor]:
    """{layer: places} of the slots that one client trains. gradient: its factors, the trained one's gradient in it."""
    counts = {name: slots.count(f, part) for name, f in task.adapter.items()}
    if task.choice is None:
        return {name: torch.arange(n) for name, n in counts.items()}
    if task.choice.how == "random":
        draw = torch_generator(seed, "slots", task.round, task.client)
        scores = {name: torch.rand(n, generator=draw) for name, n in counts.items()}
    else:
        judged = gradient if task.choice.how == "gradient" else task.adapter
        scores = {name: slots.norms(f, part) for name, f in judged.items()}
    return slots.leading(scores, task.choice.budget)


def _gradients(bank: Bank, loader: BankLoader, part: str) -> list[Mapping[str, Factors]]:
    """Each member's factors with the trained one replaced by its gradient; images as they are, without dropout."""
    members = loader.members
    leaves = bank.load([t.adapter for t in members], [t.head for t in members], frozenset({part}))
    wanted = {name: leaves[f"{name}/{part}"] for name in members[0].adapter}
    total = {name: torch.zeros_like(leaf) for name, leaf in wanted.items()}
    probes = [t.choice.probe if t.choice else 1 for t in members]
    for step in range(max(map(min, loader.counts, probes))):
        losses = []
        for batch in loader.parts(step):
            logits = bank.forward(loader.images(batch, step, "none"), len(batch.indices), batch.first)
            losses.append(loader.losses(logits, batch))
        loss = torch.cat(losses).sum()
        for name, gradient in zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True):
            total[name] += gradient
    return [
        {name: _with(f, part, total[name][row].detach().cpu()) for name, f in task.adapter.items()}
        for row, task in enumerate(members)
    ]


def _with(factors: Factors, part: str, gradient: torch.Tensor) -> Factors:
    """The factors with this part replaced by its gradient, which the bank has at its own rank, that may be larger."""
    own = tuple(map(slice, getattr(factors, part).shape))
    return dataclasses.replace(factors, **{part: gradient[own]})
