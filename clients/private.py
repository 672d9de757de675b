"""Private training (`privacy=examples`): one client's round by DP-SGD, whose bank has an example in every row.

Abadi et al., CCS 2016, arXiv 1607.00133. In every step each example is in the batch S with probability q = b/n, and

    g = (Σ_{i∈S} g_i · min(1, C/‖g_i‖) + N(0, (zC)²)) / b

is what the optimiser gets, b = client.batch_size being the expected size of S, whatever its size was: the denominator
says nothing. g_i is the gradient of example i over all that the client trains, adapters and head together. What the
optimiser makes of g (momentum, decay, clipping, a proximal term, step scales fixed by the first gradient) looks at no
example, and costs nothing.

A client's steps are its own, a bank at a time, so that its bytes do not depend on its mates'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clients import batches
from clients.clipping import clip_factors, norms_of
from clients.optimizers import create_optimizer
from clients.optimizers.contract import BankOptimizer
from clients.resident import Resident
from clients.task import Result, StepFailed, Task
from clients.training import load, unload
from fedinit.adapters.bank import Bank
from fedinit.config.client import ClientConfig
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.draws import Draws, draws
from fedinit.losses import choose_loss
from fedinit.models.input_spec import InputSpec
from fedinit.philox import philox
from fedinit.privacy.steps import Steps
from fedinit.seeding import derive


def train_privately(
    bank: Bank,
    task: Task,
    resident: Resident,
    spec: InputSpec,
    settings: ClientConfig,
    privacy: ExamplePrivacyConfig,
    rounds: int,
    seed: int,
) -> Result:
    """Train one client; its loss, a mean over examples, is not told.

    bank, spec, settings, seed: as of `train_bank`. resident: with the images.
    rounds: of the run, over which ε is to last.
    Raises InputError as `Steps.of` does, and StepFailed.
    """
    steps = Steps.of(len(task.examples), settings, rounds, privacy)
    leaves = load(bank, [task], None, ())
    optimizer = create_optimizer(leaves, settings, bank.owned(leaves), [task.step_scales])
    round = PrivateRound(bank, task, resident, spec, settings, privacy.clip, seed)
    noise, purposes = steps.noise, ("privacy.batches", "privacy.noise")
    chosen, drawn = (draws(seed, task.secret, purpose, task.round, task.client, "") for purpose in purposes)
    for step in range(steps.a_round):
        try:
            batch = poisson(len(task.examples), steps.rate, chosen)
            total = round.clipped_sum(batch, step)
            total += drawn.normal(total.shape, torch.float32).to(total) * (noise * privacy.clip)
            move(optimizer, total / settings.batch_size)
        except Exception as error:
            raise StepFailed(step + 1) from error
    return unload(bank, [task], [steps.a_round], None, [None], optimizer)[0]


def poisson(examples: int, rate: float, draw: Draws) -> Tensor:
    """(m,) places of the examples of a batch, each of them there with probability `rate`; m is often 0 where few are
    expected."""
    return (draw.uniform(examples) < rate).nonzero().flatten()


def move(optimizer: BankOptimizer[Any], gradient: Tensor) -> None:
    """One step of the optimiser of one client by the gradient (P,), all leaves of it side by side."""
    parts = gradient.split([leaf.numel() for leaf in optimizer.leaves.values()])
    shaped = {n: part.view(leaf.shape) for (n, leaf), part in zip(optimizer.leaves.items(), parts, strict=True)}
    optimizer.step(shaped, 1)


@dataclass(frozen=True, eq=False)
class PrivateRound:
    """What the steps of one client's private round see. bank: with this client loaded. clip: C."""

    bank: Bank
    task: Task
    resident: Resident
    spec: InputSpec
    settings: ClientConfig
    clip: float
    seed: int

    def clipped_sum(self, batch: Tensor, step: int) -> Tensor:
        """(P,): Σ g_i · min(1, C/‖g_i‖) over a batch (m,) of places among the client's examples, in passes of at most
        client.batch_size examples.

        An example whose gradient is not finite has none, so that it moves the sum by no more than any other.
        """
        total = torch.zeros((), device=self.bank.device)
        for places in batch.split(self.settings.batch_size) if len(batch) else [batch]:
            gradients = self.gradients(places, step)
            norms = norms_of(gradients)
            factors = clip_factors(norms, self.clip, gradients.dtype)
            whole = norms.isfinite()
            gradients[~whole] = 0.0
            total = total + torch.where(whole, factors, 0.0) @ gradients
            del gradients  # before the next pass has its own
        return total

    def gradients(self, places: Tensor, step: int) -> Tensor:
        """(m, P): each example's gradient of its own loss, over all leaves side by side."""
        count, labels = len(places), self.resident.data.labels[self.task.examples[places]].to(self.bank.device)
        with self.bank.as_examples(count, self._dropout(places, step)) as rows:
            if not count:
                return torch.zeros(0, sum(row.shape[1:].numel() for row in rows.values()), device=self.bank.device)
            if self.task.features is not None:
                logits = self.bank.classify(self.task.features[places].to(self.bank.device), count)
            else:
                logits = self.bank.forward(self._images(places, step), count)
            loss = choose_loss(self.settings.loss, labels.is_floating_point())(logits.flatten(0, 1), labels)
            gradients = torch.autograd.grad(loss.sum(), list(rows.values()))
        sizes = [gradient.shape[1:].numel() for gradient in gradients]
        beside = gradients[0].new_empty(count, sum(sizes))
        for gradient, part in zip(gradients, beside.split(sizes, dim=1), strict=True):
            part.unflatten(1, gradient.shape[1:]).copy_(gradient)  # `flatten` would copy those that are transposed
        return beside

    def _dropout(self, places: Tensor, step: int) -> list[torch.Generator]:
        """One an example, by the step and its place. Masks that followed each other would make every example's
        gradient, and those of all later steps, depend on who else is there, by more than the clip of one."""
        device = self.bank.device
        if not self.bank.dropout:
            return []
        seeds = [self._drawn("dropout", step, place) for place in places.tolist()]
        return [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def _drawn(self, purpose: str, *keys: int) -> int:
        """A seed of this client's round. By its secret where it has one: with an example more those behind it have
        other places, and who knew the seed would see each of them drawn anew."""
        secret = [self.task.secret] if self.task.secret else []
        return derive(self.seed, purpose, self.task.round, self.task.client, *keys, *secret)

    def _images(self, places: Tensor, step: int) -> Tensor:
        """(m, c, h, w) normalised; an example is augmented by the step and its place, not by who else is there."""
        images, zero = self.resident.pixels(self.task.examples[places]), torch.zeros_like(places)
        key = torch.tensor(self._drawn("augment"))
        words = philox(key, torch.stack([places, torch.full_like(places, step), zero, zero], dim=-1)).to(images.device)
        return batches.normalise(batches.augment(images, self.settings.augment, words), self.spec, self.bank.device)
