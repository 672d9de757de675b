"""One bank's local training: K clients from their start factors to what they return."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clients.compiled import Compiled
from clients.loader import BankLoader
from clients.optimizers import create_optimizer
from clients.optimizers.contract import BankOptimizer
from clients.replay import Recorder
from clients.selection import choose
from clients.step import Pass, Training
from clients.task import ClientFailed, Result, StepFailed, Task
from fedinit.adapters.bank import Bank
from fedinit.config.client import ClientConfig
from fedinit.data.dataset import Dataset
from fedinit.errors import RunFailed
from fedinit.models.input_spec import InputSpec
from fedinit.seeding import derive
from fedinit.views import Slots


def train_bank(
    bank: Bank,
    tasks: Sequence[Task],
    data: Dataset,
    spec: InputSpec,
    settings: ClientConfig,
    seed: int,
    recorder: Recorder | None = None,
    compiled: Compiled | None = None,
) -> list[Result | ClientFailed]:
    """Train the tasks' clients together; results in the order of the tasks, the same bytes every time.

    bank: over the tasks' base offset. tasks: of one round, with the same trainable factors. Where they bring features,
    no adapter is in play, and the heads alone train on those.
    spec: the size and normalisation of the backbone's input. settings: how clients train. seed: of the run.
    recorder: of the bank's CUDA device, which replays the steps; None: they are taken one by one.
    compiled: takes steps of the whole bank; None: none is compiled.

    A client whose plan or batch fails goes mute from there on. Its row stays, and rows do not touch each other, so its
    mates' results are, bit for bit, those of a bank where nothing failed. Raises what fails for all of them together,
    in a step as StepFailed.
    """
    device = bank.device
    loader = BankLoader(tasks, data, spec, settings, seed, device)
    members = loader.members
    choosing = any(t.choice is not None for t in members)
    views = choose(bank, loader, seed) if choosing else None
    leaves = load(bank, members, views, [dropout(seed, t, device) for t in members])
    optimizer = create_optimizer(leaves, settings, bank.owned(leaves), [t.step_scales for t in members])
    losses = torch.zeros(len(members), dtype=torch.float64, device=device)
    training = Training(bank, leaves, optimizer, losses, settings, compiled)

    if recorder is not None and recorder.takes(training, loader):
        training = recorder.train(training, loader)
    else:
        train(training, loader)

    means = [_finite_mean(*of) for of in zip(training.losses.cpu(), loader.counts, strict=True)]
    results = unload(bank, members, loader.counts, views, means, training.optimizer)
    by_client = {result.client: result for result in results} | loader.failures.by_client
    return [by_client[t.client] for t in tasks]


def train(training: Training, loader: BankLoader) -> None:
    """All steps, one after another. Raises StepFailed."""
    for step in range(len(loader.active)):
        try:
            passes = []
            for part in loader.parts(step):
                inputs = loader.images(part, step) if loader.on_images else loader.features(part)
                passes.append(Pass(inputs, loader.targets(part), part.weight, part.first))
            training.optimizer.advance()
            training.step(passes, not loader.on_images)
        except Exception as error:
            raise StepFailed(step + 1) from error


def load(
    bank: Bank, members: Sequence[Task], views: Sequence[Slots] | None, generators: Sequence[torch.Generator]
) -> Mapping[str, Tensor]:
    """Put the members' starts into the bank; the leaves to train, {name: (K, …)}.

    views: the slots that each member trains; the others are part of its base. None: all train all of their factors.
    generators: of each member's dropout.
    """
    adapters, offsets, room, beneath = [t.adapter for t in members], [t.offset for t in members], {}, 2
    if views is not None:
        rest = [view.others(a).restrict(a) for view, a in zip(views, adapters, strict=True)]
        offsets = [{name: product.absorb() for name, product in layers.items()} for layers in rest]
        # The bank's shapes do not depend on what was chosen, so that no client's rounding depends on its mates' choice.
        room, beneath = {name: product.rank for name, product in adapters[0].items()}, 1
        adapters = [view.restrict(a) for view, a in zip(views, adapters, strict=True)]
    heads, trainable = [t.head for t in members], members[0].trainable
    return bank.load(adapters, heads, trainable, offsets=offsets, generators=generators, room=room, beneath=beneath)


def unload(
    bank: Bank,
    members: Sequence[Task],
    counts: Sequence[int],
    views: Sequence[Slots] | None,
    losses: Sequence[float | None],
    optimizer: BankOptimizer,
) -> list[Result]:
    """The members' results, in their order. counts: their steps. views: as in `load`. losses: their means over these
    steps. Raises RunFailed for an optimiser that keeps what its state() does not tell of."""
    if untold := optimizer.untold():
        raise RunFailed(
            f"client={optimizer.settings.optimizer}: {type(optimizer).__name__} keeps {', '.join(untold)} from step to "
            "step, which its state() does not return: it would be left for the next clients (docs/examples.md)"
        )
    adapters, heads = bank.unload()
    if views is not None:
        trained = zip(views, adapters, members, strict=True)
        adapters = [view.embed(part, task.adapter) for view, part, task in trained]
    return [
        Result(
            t.client,
            adapters[row],
            heads[row],
            losses[row],
            counts[row],
            optimizer.fixed_scales(row),
            optimizer.state_size(row),
            None if views is None or t.choice is None else views[row].places,
        )
        for row, t in enumerate(members)
    ]


def dropout(seed: int, task: Task, device: torch.device) -> torch.Generator:
    """What a client's dropout of a round is drawn from."""
    return torch.Generator(device).manual_seed(derive(seed, "dropout", task.round, task.client))


def _finite_mean(total: Tensor, count: int) -> float:
    """total/count; infinity where that is NaN."""
    value = float(total) / count
    return value if math.isfinite(value) else float("inf")
