"""Which images a client sees in which step, and how they become a batch. All of it from the client's own seeds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedinit.config.client import ClientConfig
from fedinit.losses import choose_loss
from fedinit.models.input_spec import InputSpec
from fedinit.philox import below
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


FEWEST = 4  # images of a pass: products of fewer rows round by how many others there are beside them (on CPU)


def blank(examples: int, settings: ClientConfig) -> list[Tensor]:
    """What stands for the plan of a client with so many examples, its batches as long, so that no mate's steps change
    their shape."""
    there = torch.zeros(max(examples, 1), dtype=torch.long)
    epoch = there.split(settings.batch_size)
    return [epoch[step % len(epoch)] for step in range(settings.steps(examples))]


def halved(least: int, most: int) -> int:
    """`most`, halved as often as `least` still fits in: one of few sizes, for what is recorded for each."""
    while most > 1 and least <= -(-most // 2):
        most = -(-most // 2)
    return most


@dataclass(frozen=True)
class Step:
    """One step of n clients, or of those among them whose batches are equally long.

    indices: (n, b), b of the longest batch among them; shorter ones are filled up with their own first image.
    weight: (n, b), 1/m for the m real images of a client and 0 for the filling, so that its sum over the per-image
    losses is that client's mean loss.
    first: the bank's row of the first of them.
    """

    indices: Tensor
    weight: Tensor
    first: int = 0


def join(batches: list[Tensor], size: int, first: int = 0) -> Step:
    """The clients' batches of one step, at one `size`."""
    filled = [b if len(b) == size else torch.cat([b, b[:1].expand(size - len(b))]) for b in batches]
    counts = torch.tensor([len(b) for b in batches])[:, None]
    weight = torch.where(torch.arange(size) < counts, 1 / counts, 0.0)
    return Step(indices=torch.stack(filled), weight=weight, first=first)


def losses(logits: Tensor, targets: Tensor, weight: Tensor, loss: str) -> Tensor:
    """(active,) each client's mean loss of a step.

    logits: (active, b, outputs). targets: (active, b) labels, or (active, b, outputs) numbers. weight: (active, b).
    loss: its name, `client.loss`.
    """
    each = choose_loss(loss, targets.is_floating_point())(logits.flatten(0, 1), targets.flatten(0, 1))
    return (each.view(weight.shape) * weight.to(logits.device)).sum(1)


def normalise(images: Tensor, spec: InputSpec, device: torch.device) -> Tensor:
    """uint8 (n, c, h, w) to float32 on `device`, (x/255 − mean)/std per channel; what is float32 stays as it is."""
    return spec.normalise(images, device)


def augment(images: Tensor, kind: str, words: Tensor) -> Tensor:
    """uint8 (n, c, h, w) augmented, each image by its own words: kind ``none``: as it is; ``flip``: mirrored at random;
    ``crop_flip``: also shifted by up to an eighth of its size, with the edge repeated.

    words: (n, 4) int64 as `fedinit.philox` draws them, on the images' device.
    """
    if kind == "none":
        return images
    n, _, height, width = images.shape
    images = torch.where(below(words[:, 0], 2).bool().view(-1, 1, 1, 1), images.flip(-1), images)
    if kind == "flip":
        return images
    down, right = (_shifted(words[:, i], size) for i, size in ((1, height), (2, width)))  # (n, h), (n, w)
    each = torch.arange(n, device=images.device)[:, None, None]
    moved = images[each, :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)
    # In the usual order in memory, of one channel too: a convolution may round differently by its input's strides.
    return moved.clone(memory_format=torch.contiguous_format)


def _shifted(words: Tensor, size: int) -> Tensor:
    """(n, size): where each row or column of a shifted image comes from."""
    reach = max(size // 8, 1)
    shift = below(words, 2 * reach + 1) - reach
    return (torch.arange(size, device=words.device) + shift[:, None]).clamp(0, size - 1)
