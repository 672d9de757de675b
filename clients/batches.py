"""Which images a client sees in which step, and how they become a batch. All of it from the client's own seeds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.config.client import ClientConfig
from fedinit.losses import choose_loss
from fedinit.models.input_spec import InputSpec
from fedinit.seeding import torch_generator


def plan(examples: Tensor, settings: ClientConfig, seed: int, round: int, client: int) -> list[Tensor]:
    """The batches of one client's round, as index tensors (b,); the last of an epoch may be smaller.

    examples: (n,) indices into the data set. seed: of the run.
    Every epoch is a fresh permutation; `max_steps` cuts the list.
    """
    batches: list[Tensor] = []
    for epoch in range(settings.epochs):
        order = torch.randperm(len(examples), generator=torch_generator(seed, "order", round, client, epoch))
        batches += list(examples[order].split(settings.batch_size))
        if settings.max_steps is not None and len(batches) >= settings.max_steps:
            return batches[: settings.max_steps]
    return batches


@dataclass(frozen=True)
class Step:
    """One step of the active clients.

    indices: (active, b), short batches filled up with their own first image.
    weight: (active, b), 1/m for the m real images of a client and 0 for the filling, so that its sum over the
    per-image losses is that client's mean loss.
    """

    indices: Tensor
    weight: Tensor


def join(batches: list[Tensor], size: int) -> Step:
    """The clients' batches of one step, at one `size`, so that a client computes the same alone and in company."""
    indices = torch.stack([torch.cat([b, b[:1].expand(size - len(b))]) for b in batches])
    weight = torch.zeros(len(batches), size)
    for row, batch in zip(weight, batches, strict=True):
        row[: len(batch)] = 1 / len(batch)
    return Step(indices=indices, weight=weight)


def losses(logits: Tensor, labels: Tensor, step: Step, loss: str) -> Tensor:
    """(active,) each client's mean loss of a step.

    logits: (active, b, outputs). labels: (n, …) of the whole data set. loss: its name, `client.loss`.
    """
    targets = labels[step.indices].to(logits.device)  # (active, b) or (active, b, outputs)
    each = choose_loss(loss, targets.is_floating_point())(logits.flatten(0, 1), targets.flatten(0, 1))
    return (each.view(step.weight.shape) * step.weight.to(logits.device)).sum(1)


def normalise(images: Tensor, spec: InputSpec, device: torch.device) -> Tensor:
    """uint8 (n, c, h, w) to float32 on `device`, (x/255 − mean)/std per channel; what is float32 stays as it is."""
    return spec.normalise(images, device)


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """uint8 (n, c, h, w), one client's batch, augmented: kind ``none``: as it is; ``flip``: mirrored at random;
    ``crop_flip``: also shifted by up to an eighth of its size, with the edge repeated."""
    if kind == "none":
        return images
    n, _, height, width = images.shape
    flips = torch.rand(n, generator=generator) < 0.5
    images = torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images)
    if kind == "flip":
        return images
    reach_y, reach_x = max(height // 8, 1), max(width // 8, 1)
    shift_y = torch.randint(-reach_y, reach_y + 1, (n, 1), generator=generator)
    shift_x = torch.randint(-reach_x, reach_x + 1, (n, 1), generator=generator)
    rows = (torch.arange(height) + shift_y).clamp(0, height - 1)  # (n, h)
    columns = (torch.arange(width) + shift_x).clamp(0, width - 1)  # (n, w)
    return images[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
