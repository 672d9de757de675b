"""The batches of a bank's clients, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from clients import batches
from clients.failures import Failures
from clients.task import Task
from fedinit.config.client import ClientConfig
from fedinit.data.dataset import Dataset
from fedinit.models.input_spec import InputSpec
from fedinit.philox import philox
from fedinit.seeding import derive


class BankLoader:
    """What the members of a bank see.

    members: the tasks, longest first, so that the clients still training are always the first rows of the bank.
    counts: how many steps each member takes, in that order.
    active: how many members are still training, of every step.
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
            with self.failures.of(t.client, "plan"):
                if not len(t.examples):
                    raise ValueError("no examples to train on")
                planned = batches.plan(t.examples, settings, seed, t.round, t.client)
                data.labels[t.examples]  # raises IndexError for what is not there
                plans[t.client] = planned
            if t.client not in plans:
                plans[t.client] = batches.blank(len(t.examples), settings)
        # Of as many images side by side, whose batches are equally long in every step.
        self.members = sorted(tasks, key=lambda t: (-len(plans[t.client]), -len(t.examples)))
        self.counts = [len(plans[t.client]) for t in self.members]
        self._plans = [plans[t.client] for t in self.members]
        self.seed = seed
        self.active = (torch.tensor(self.counts) > torch.arange(self.counts[0])[:, None]).sum(1).tolist()
        self._features = self._table()

    @property
    def on_images(self) -> bool:
        """Whether the members train on images, not on features in their place."""
        return self._features is None

    def batch(self, step: int) -> batches.Step:
        """Which examples the members that are still training see in this step, 0 being the first."""
        return batches.join([plan[step] for plan in self._plans[: self.active[step]]], self.width(step))

    def width(self, step: int) -> int:
        """How many images of each of them that is."""
        return max(self._width(plan[step]) for plan in self._plans[: self.active[step]])

    def parts(self, step: int) -> list[batches.Step]:
        """What the same members see, in parts of neighbours with batches of one length: nothing is computed to fill one
        up, and a client computes the same alone and in company. Elsewhere than on CPU, where many small passes cost
        more than what they leave out, in one part of whole batches."""
        there, first, found = [plan[step] for plan in self._plans[: self.active[step]]], 0, []
        if self.device.type != "cpu":
            return [batches.join(there, self.settings.batch_size)]
        for width, group in itertools.groupby(there, key=self._width):
            together = list(group)
            found.append(batches.join(together, width, first))
            first += len(together)
        return found

    def _width(self, batch: Tensor) -> int:
        return max(len(batch), min(batches.FEWEST, self.settings.batch_size))

    def images(self, batch: batches.Step, step: int, augment: str | None = None) -> Tensor:
        """(active·b, c, h, w) normalised, on the device; black for clients that failed.

        augment: other than what the settings say.
        """
        return batches.normalise(self.pixels(batch, step, augment).flatten(0, 1), self.spec, self.device)

    def pixels(self, batch: batches.Step, step: int, augment: str | None = None) -> Tensor:
        """(active, b, c, h, w) of the data set's dtype, augmented, in memory; black for clients that failed.

        Laid out in memory the same way for any of them, since a convolution may round differently by its input's
        strides.
        """
        active, width = batch.indices.shape
        shape = (active, width, *self.data.images.shape[1:])
        kind = augment or self.settings.augment
        members = self.members[batch.first : batch.first + active]
        words = self.words(torch.tensor([step]))[0][batch.first :] if kind != "none" else torch.empty(active, 0, 4)
        images = torch.zeros(shape, dtype=self.data.images.dtype)
        for row, t in enumerate(members):
            if t.client not in self.failures.mute:
                with self.failures.of(t.client, "batch", step + 1):
                    chosen = self.data.images[batch.indices[row]]
                    images[row] = batches.augment(chosen, kind, words[row, :width])
        return images

    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every step of every member: indices (steps, K, b), weight (steps, K, b), and moving (steps, K, 1), whether
        the member still trains then; one that is done sees its first image, with weight zero."""
        size, count = self.settings.batch_size, self.counts[0]
        whole = [batch for plan in self._plans for batch in plan]
        if len(whole) == count * len(self._plans) and all(len(batch) == size for batch in whole):
            indices = torch.cat(whole).view(-1, count, size).transpose(0, 1)
            return indices, torch.full(indices.shape, 1 / size), torch.ones(*indices.shape[:2], 1, dtype=torch.bool)
        indices = torch.zeros(len(self._plans), count, size, dtype=torch.long)
        weight = torch.zeros(len(self._plans), count, size)
        for row, plan in enumerate(self._plans):
            steps = batches.join(plan, size)
            indices[row], weight[row, : len(plan)] = plan[0][0], steps.weight
            indices[row, : len(plan)] = steps.indices
        moving = torch.tensor(self.counts)[None] > torch.arange(count)[:, None]
        return indices.transpose(0, 1), weight.transpose(0, 1), moving[..., None]

    def words(self, steps: Tensor) -> Tensor:
        """(n, K, b, 4), what the members' images of these steps (n,) are augmented by: a function of the seed, the
        round, the client, the step and the place in the batch. Made on the device of `steps`."""
        place = torch.arange(self.settings.batch_size, device=steps.device).expand(len(steps), -1)
        nothing = torch.zeros_like(place)
        counter = torch.stack([place, steps[:, None].expand_as(place), nothing, nothing], dim=-1)  # (n, b, 4)
        keys = torch.tensor([derive(self.seed, "augment", t.round, t.client) for t in self.members])
        return philox(keys.to(steps.device)[:, None], counter[:, None])

    def features(self, batch: batches.Step) -> Tensor:
        """(n·b, D) pooled features of the frozen backbone in place of the images. Raises ValueError where the tasks
        bring none."""
        if self._features is None:
            raise ValueError("these tasks train on images")
        examples, features = self._features
        return features[torch.searchsorted(examples, batch.indices.flatten())].to(self.device)

    def losses(self, logits: Tensor, batch: batches.Step) -> Tensor:
        """(active,) each active member's mean loss, from logits (active, b, outputs)."""
        return batches.losses(logits, self.targets(batch), batch.weight, self.settings.loss)

    def targets(self, batch: batches.Step) -> Tensor:
        """(active, b) labels of the images, or (active, b, outputs) numbers, where the batches are needed."""
        return self.data.labels[batch.indices].to(self.device)

    def _table(self) -> tuple[Tensor, Tensor] | None:
        """The tasks' examples (n,), sorted, and the features (n, D) of each; None where the tasks bring none."""
        given = [(t.examples, t.features) for t in self.members if t.features is not None]
        if not given:
            return None
        examples, order = torch.cat([of for of, _ in given]).sort()
        return examples, torch.cat([features for _, features in given])[order]
