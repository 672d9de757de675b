"""What one client measures in round 0: sums over its examples, as a request from the server says.

The backbone is in evaluation mode, without augmentation and, unless the request is about them, without adapters;
values are float32, and sums of them float64. Which rows of an image are drawn depends on the seed and the
image alone, and sums are over images, so neither batches nor the split of the examples into clients changes a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from clients import batches
from clients.clipping import clip_factors, norms_of
from clients.resident import Resident
from fedinit.adapters.bank import Bank
from fedinit.draws import Draws, draws
from fedinit.errors import Code, Refused
from fedinit.losses import choose_loss
from fedinit.models.input_spec import InputSpec
from fedinit.seeding import derive, torch_generator
from fedinit.state.digest import of_tensors
from fedinit.statistics import Request, Sampling, Statistic, Statistics, create_statistics, shapes_of


class See(Protocol):
    """Is shown what the statistic of a layer sees."""

    def __call__(self, layer: str, values: Tensor, other: Tensor | None = None) -> None: ...


class TooFew(Refused):
    """This client has fewer examples than a statistic may be made of; it does not answer."""

    code = Code.too_few_examples


def measure(
    bank: Bank,
    request: Request,
    examples: Tensor,
    client: int,
    resident: Resident,
    spec: InputSpec,
    size: int,
    secret: str,
) -> Statistics:
    """The sums that the request asks for, over a client's examples.

    bank: without adapters, or loaded with the start whose gradients are asked for.
    examples: (n,) indices into the data. spec: the size and normalisation of the backbone's input.
    size: images a batch.
    secret: what the draw of the noise depends on besides the seed; a site keeps its own, so that nobody else can take
    the noise off again. Raises TooFew, and ValueError for NaN or infinite values, naming the layer.
    """
    sampling = request.sampling
    if len(examples) < sampling.min_examples:
        raise TooFew(f"{len(examples)} examples, fewer than min_examples={sampling.min_examples}")
    order = torch.randperm(len(examples), generator=torch_generator(request.seed, "init.examples", client))
    chosen = part_of(examples[order[: sampling.examples]], sampling, request.seed).sort().values
    statistics = create_statistics(request)
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes_of(request).items()}
    rows = dict.fromkeys(statistics, 0)  # the most rows of an image
    for part in chosen.split(size):
        for layer, (count, added) in _measure_batch(bank, request, statistics, part, resident, spec).items():
            rows[layer] = max(rows[layer], count)
            for key, value in added.items():
                sums[f"{layer}/{key}"] += value
    if sampling.noise:
        disturb(sums, statistics, rows, sampling, partial(draws, request.seed, secret, "init.noise", client))
    if sampling.weighting == "uniform":
        for layer in statistics:
            count = max(float(sums[f"{layer}/count"]), 1.0)
            for key in statistics[layer].shapes():
                sums[f"{layer}/{key}"] /= count
    return Statistics(len(chosen), sums)


def _measure_batch(
    bank: Bank, request: Request, statistics: Mapping[str, Statistic], part: Tensor, resident: Resident, spec: InputSpec
) -> dict[str, tuple[int, dict[str, Tensor]]]:
    """{layer: (rows of an image, 0 where they are not asked for; {key: what the images `part` (b,) add to its sum})}.
    Of a layer that images go through twice, the last time counts."""
    sampling, found = request.sampling, {}

    def see(layer: str, values: Tensor, other: Tensor | None = None) -> None:
        if not (torch.isfinite(values).all() and (other is None or torch.isfinite(other).all())):
            raise ValueError(f"{layer}: NaN or infinity in what the statistic is made of")
        count = 0
        if request.source == "inputs":
            values = values.reshape(len(part), -1, values.shape[-1])  # (b, …, k) -> (b, t, k)
            values = thin(values, part, sampling, request.seed)
            count = values.shape[1]
            values = clip(values.flatten(0, 1), sampling.clip)
        elif request.source == "features":
            values = clip(values, sampling.clip)
        elif request.source == "gradients" and other is not None:
            other = clip_gradients(values, other, sampling.clip)
        measured = statistics[layer].measure(values, other)
        found[layer] = count, {key: value.double().cpu() for key, value in measured.items()}

    images = batches.normalise(resident.pixels(part), spec, bank.device)
    SOURCES[request.source](bank, request, images, resident.data.labels[part], see)
    return found


def part_of(images: Tensor, sampling: Sampling, seed: int) -> Tensor:
    """Those of the images (n,) that a pass over `sampling.share` of them sees: an image is in or out by its index, with
    whichever others it is asked for, so that the part does not depend on the split into clients either."""
    if sampling.share == 1:
        return images
    lots = torch.tensor([derive(seed, "init.share", image) for image in images.tolist()], dtype=torch.float64)
    count = max(int((lots < sampling.share * 2**63).sum()), min(sampling.min_examples, len(images)))
    return images[lots.argsort(stable=True)[:count]]


def thin(values: Tensor, images: Tensor, sampling: Sampling, seed: int) -> Tensor:
    """(b, m, k): m rows of each image, drawn by the image's index; (b, t, k) unchanged where m is t or more."""
    total = values.shape[1]
    if sampling.tokens is None or sampling.tokens >= total:
        return values
    draw = torch.Generator()
    kept = []
    for image in images.tolist():
        draw.manual_seed(derive(seed, "init.tokens", image, total))
        kept.append(torch.randperm(total, generator=draw)[: sampling.tokens].sort().values)
    picked = torch.stack(kept).to(values.device)  # (b, m)
    return values.gather(1, picked[:, :, None].expand(-1, -1, values.shape[2]))


def clip(rows: Tensor, limit: float | None) -> Tensor:
    """The rows (n, k), those longer than `limit` scaled down to it; None: as they are."""
    if limit is None:
        return rows
    return rows * clip_factors(norms_of(rows), limit, rows.dtype)[:, None]


def clip_gradients(inputs: Tensor, gradients: Tensor, limit: float | None) -> Tensor:
    """The gradients (b, t, d) at a layer's outputs, those of an image whose gradient in the weight, Σ y xᵀ over its t
    rows, is longer than `limit` scaled down to it; inputs: (b, t, k).

    ‖Σ y xᵀ‖² = Σ (Y Yᵀ) ∘ (X Xᵀ), so that no image's d×k gradient is built.
    """
    if limit is None:
        return gradients
    x, y = inputs.double(), gradients.double()
    squares = ((y @ y.mT) * (x @ x.mT)).sum((1, 2))
    return gradients * clip_factors(squares.clamp(min=0).sqrt(), limit, gradients.dtype)[:, None, None]


def disturb(
    sums: dict[str, Tensor],
    statistics: Mapping[str, Statistic],
    rows: Mapping[str, int],
    sampling: Sampling,
    draw: Callable[[str, str], Draws],
) -> None:
    """Add N(0, (noise · sensitivity)²) to every sum that has a sensitivity, in place.

    rows: {layer: the most rows that one image has in it}. draw: makes the stream of a sum, by the noise's size and the
    sum itself. So the same sum is given with the same noise, whatever is asked beside it, and also of two layers that
    have the same inputs: averages show no more of it. Two sums never share a draw, nor has a sum one draw in two
    sizes: with the same noise on both, of another size or none, both could be reckoned from the answers.
    Raises ValueError without a clip: one image may then change a sum by anything.
    """
    if sampling.clip is None:
        raise ValueError("noise needs a clip")
    for layer, statistic in statistics.items():
        for key, size in sorted(statistic.sensitivity(sampling.clip, rows[layer]).items()):
            total, scale = sums[f"{layer}/{key}"], sampling.noise * size
            total += scale * draw(repr(float(scale)), of_tensors({key: total})).normal(total.shape)


@torch.no_grad()
def inputs(bank: Bank, request: Request, images: Tensor, labels: Tensor, see: See) -> None:
    """The inputs (b, …, k) of each layer, while the images go through it, so that one layer's are held at a time; none
    of a layer that is not reached."""

    def watch(name: str):
        return lambda _, args: see(name, args[0].to(bank.exact_dtype))

    hooks = [bank.layers[name].register_forward_pre_hook(watch(name)) for name in request.layers]
    try:
        with bank.every_token():
            bank.embed(images)
    finally:
        for hook in hooks:
            hook.remove()


def adapters(bank: Bank, request: Request, images: Tensor, labels: Tensor, see: See) -> None:
    """The gradient in each leaf that the bank trains, of the request's loss summed over the images, and labels (b,)."""
    leaves = {name: bank.leaf(name) for name in request.layers}
    outputs, targets = bank.forward(images, 1)[0], labels.to(images.device)
    loss = choose_loss(request.options.get("loss", "auto"), targets.is_floating_point())(outputs, targets).sum()
    for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        see(name, gradient[0], labels)


@torch.no_grad()
def features(bank: Bank, request: Request, images: Tensor, labels: Tensor, see: See) -> None:
    """Pooled features (b, features) and labels (b,), of the one layer of such a request."""
    (name,) = request.layers
    see(name, bank.embed(images), labels)


def gradients(bank: Bank, request: Request, images: Tensor, labels: Tensor, see: See) -> None:
    """The inputs (b, t, k) of the layers and the gradients (b, t, d) at their outputs of the loss under the request's
    head, summed over the images, in the request's order. A layer that does not reach the loss has gradients of zero."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str):
        def hook(_, args, output):
            # No weight is trained, so the graph begins at the first layer that is watched.
            output = output if output.requires_grad else output.detach().requires_grad_(True)
            seen[name] = (args[0].detach(), torch.zeros_like(output, requires_grad=False))
            output.register_hook(lambda gradient: seen.__setitem__(name, (seen[name][0], gradient)))
            return output

        return hook

    hooks = [bank.layers[name].register_forward_hook(watch(name)) for name in request.layers]
    try:
        with bank.every_token():
            pooled = bank.embed(images)
        head = {key: value.to(pooled.device) for key, value in request.head.items()}
        logits = F.linear(pooled, head["weight"], head["bias"])
        F.cross_entropy(logits, labels.to(pooled.device), reduction="sum").backward()
    finally:
        for hook in hooks:
            hook.remove()
    for name in request.layers:
        if name in seen:
            x, y = seen.pop(name)
            x, y = x.to(bank.exact_dtype), y.to(bank.exact_dtype)
            see(name, x.reshape(len(images), -1, x.shape[-1]), y.reshape(len(images), -1, y.shape[-1]))


SOURCES: dict[str, Callable[[Bank, Request, Tensor, Tensor, See], None]] = {
    "adapters": adapters,
    "features": features,
    "gradients": gradients,
    "inputs": inputs,
}
