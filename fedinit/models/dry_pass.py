"""What a forward pass does with a model's linear layers: one image, then two, compared.

A bank puts its own layer in the place of an adapted one and deals the rows of its input out among the clients. That is
right where the layer is called as a module, once a pass, with the rows of one image after those of the other. Layers
whose weight is used directly (BEiT's attn.qkv), whose input is one table for all images (a relative-position MLP) or
which are called again and again say so here, before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SAMPLE = 256  # numbers kept of a row's values: enough to tell two images apart
TOLERANCE = 1e-3  # of the largest value; a pass over more images rounds differently, another image's rows differ by 1


@dataclass(frozen=True)
class DryPass:
    """What one pass over a batch showed.

    output: the shape for one image, (1, features) of a model with pooling.
    faults: {linear layer: why it cannot carry an adapter}; a layer that is not named can.
    rows: {linear layer: how many rows its input has of an image}, of those that can.
    """

    output: tuple[int, ...]
    faults: Mapping[str, str]
    rows: Mapping[str, int]


@torch.no_grad()
def dry_pass(module: nn.Module, shape: tuple[int, int, int]) -> DryPass:
    """Pass one random image and then the same one with another through the module; what its nn.Linear layers saw.

    module: in eval mode. shape: (channels, height, width) of an image.
    Raises TypeError for a module whose output is no tensor, and whatever the module raises for images of this size.
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, *shape, generator=draw).to(next(module.parameters()).device)
    layers = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    alone, output = _observe(module, layers, images[:1])
    both, _ = _observe(module, layers, images)
    faults = {name: fault for name in layers if (fault := _fault(alone.get(name, []), both.get(name, [])))}
    rows = {name: math.prod(alone[name][0].shape[:-1]) for name in layers if name not in faults}
    return DryPass(tuple(output.shape), faults, rows)


@dataclass(frozen=True)
class _Seen:
    """One call of a layer: the shape of its input, and a sample (rows, SAMPLE) of its values."""

    shape: tuple[int, ...]
    sample: Tensor


def _observe(
    module: nn.Module, layers: Mapping[str, nn.Linear], images: Tensor
) -> tuple[dict[str, list[_Seen]], Tensor]:
    """({layer: its calls in one pass over the images}, what the module gives)."""
    calls: dict[str, list[_Seen]] = {}

    def look(name: str):
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            rows = args[0].flatten(1) if args[0].ndim > 1 else args[0][:, None]
            columns = torch.linspace(0, rows.shape[1] - 1, min(SAMPLE, rows.shape[1]), dtype=torch.float64).long()
            calls.setdefault(name, []).append(_Seen(tuple(args[0].shape), rows[:, columns.to(rows.device)]))

        return hook

    hooks = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    try:
        output = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(output, Tensor):
        raise TypeError(f"it gives {type(output).__name__}, no tensor")
    return calls, output


def _fault(alone: list[_Seen], both: list[_Seen]) -> str | None:
    """Why a layer with these calls cannot carry an adapter; None where it can.

    alone: of the pass over one image. both: of the pass over that and another.
    """
    if not both:
        return "is not called in a forward pass (its weight is used without the layer, or not at all)"
    if len(both) != 1 or len(alone) != 1:
        return f"is called {len(both)} times in a forward pass"
    one, two = alone[0], both[0]
    if two.shape[0] != 2 * one.shape[0]:
        return f"is given the same {one.shape[0]} rows for one image and for two"
    first = two.sample[: len(one.sample)]
    if first.shape != one.sample.shape or not _close(first, one.sample):
        return "is not given the rows of one image after those of the other"
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether they are equal but for rounding; NaN differs from nothing."""
    return not bool((a - b).abs().max() > TOLERANCE * b.abs().max())
