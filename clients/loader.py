"""The batches of a bank's clients, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clients import batches
from clients.failures import Failures
from clients.task import Task
from fedinit.config.client import ClientConfig
from fedinit.data.dataset import Dataset
from fedinit.models.input_spec import InputSpec
from fedinit.seeding import torch_generator


class BankLoader:
    """What the members of a bank see.

    members: the tasks, longest first, so that the clients still training are always the first rows of the bank.
    counts: how many steps each member takes, in that order.
    failures: the clients whose plan or batch could not be made.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        data: Dataset,
        spec: InputSpec,
        settings: ClientConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        """spec: the size and normalisation of the backbone's input. settings: how clients train. seed: of the run.
        device: where the batches are needed."""
        self.data, self.spec, self.settings, self.device = data, spec, settings, device
        self.failures = Failures(tasks)
        plans: dict[int, list[Tensor]] = {}
        for t in tasks:
            plans[t.client] = [torch.zeros(1, dtype=torch.long)]
            with self.failures.of(t.client, "plan"):
                if not len(t.examples):
                    raise ValueError("no examples to train on")
                planned = batches.plan(t.examples, settings, seed, t.round, t.client)
                data.labels[t.examples]  # raises IndexError for what is not there
                plans[t.client] = planned
        self.members = sorted(tasks, key=lambda t: -len(plans[t.client]))
        self.counts = [len(plans[t.client]) for t in self.members]
        self._plans = [plans[t.client] for t in self.members]
        self._draws = [torch_generator(seed, "augment", t.round, t.client) for t in self.members]
        self._features = self._table()

    def batch(self, step: int) -> batches.Step:
        """Which examples the members that are still training see in this step, 0 being the first."""
        return batches.join([plan[step] for plan in self._plans if len(plan) > step], self.settings.batch_size)

    def images(self, batch: batches.Step, step: int, augment: str | None = None) -> Tensor:
        """(active·b, c, h, w), black for clients that failed.

        Laid out in memory the same way for any of them, since a convolution may round differently by its input's
        strides. augment: other than what the settings say.
        """
        active = len(batch.indices)
        shape = (active, self.settings.batch_size, *self.data.images.shape[1:])
        images = torch.zeros(shape, dtype=self.data.images.dtype)
        for row, t in enumerate(self.members[:active]):
            if t.client not in self.failures.mute:
                with self.failures.of(t.client, "batch", step + 1):
                    chosen = self.data.images[batch.indices[row]]
                    images[row] = batches.augment(chosen, augment or self.settings.augment, self._draws[row])
        return batches.normalise(images.flatten(0, 1), self.spec, self.device)

    def features(self, batch: batches.Step) -> Tensor | None:
        """(active·b, D) pooled features of the frozen backbone in place of the images, where the tasks bring them."""
        return None if self._features is None else self._features[batch.indices.flatten()].to(self.device)

    def losses(self, logits: Tensor, batch: batches.Step) -> Tensor:
        """(active,) each active member's mean loss, from logits (active, b, outputs)."""
        return batches.losses(logits, self.data.labels, batch, self.settings.loss)

    def _table(self) -> Tensor | None:
        """(len(data), D) features, zero but at the tasks' examples; None where the tasks bring none."""
        given = [(t.examples, t.features) for t in self.members if t.features is not None]
        if not given:
            return None
        table = given[0][1].new_zeros(len(self.data), given[0][1].shape[1])
        for examples, features in given:
            table[examples] = features
        return table
