"""A backbone cut before one of its blocks: what comes before is a function of the image alone, and can be kept.

Where no layer before a block carries an adapter, the block's input is the same in every step and round. `cut` gives
both sides, that of `before`, from images to the tokens that the block is given, and a backbone that takes those tokens
in place of images and goes on from there. It is the same module tree, so that layers keep their names; what comes
before the block is passed over, or done once on one blank image where it cannot be left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedinit.errors import InputError
from fedinit.models.backbone import Backbone, share
from fedinit.models.blocks import block_of, linear_layers
from fedinit.models.input_spec import InputSpec

TOLERANCE = 1e-4  # of the largest feature; the two ways differ by the rounding of other batch sizes alone


@dataclass(frozen=True)
class Cut:
    """Both sides of a backbone that is cut before a block.

    block: its name. whole: the backbone itself. tokens: the shape of what the block is given for one image.
    after: the backbone that takes such tokens, (n, 1, 1, numbers) float32, in place of images.
    """

    block: str
    whole: Backbone
    tokens: tuple[int, ...]
    after: Backbone


def before(module: nn.Module, block: str, images: Tensor) -> Tensor:
    """What the block is given for normalised images (n, c, h, w), as (n, 1, 1, numbers) float32.

    module: a whole backbone's."""
    return _reach(module, block, images).float().reshape(len(images), 1, 1, -1)


class _Reached(Exception):
    """Ends a forward pass at the block; its argument is what that is given."""


@torch.inference_mode()
def _reach(module: nn.Module, block: str, images: Tensor) -> Tensor:
    def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Reached(*args[:1])

    hook = module.get_submodule(block).register_forward_pre_hook(stop)
    try:
        module(images)
    except _Reached as reached:
        return reached.args[0]
    finally:
        hook.remove()
    raise LookupError(f"{block} is not called")


class _Held:
    """The tokens of the pass that is being made: from the module's front to the block."""

    value: Tensor | None = None


@dataclass(frozen=True)
class _Front:
    """The module's pre-hook: holds the tokens, and lets one blank image through in their place."""

    held: _Held
    tokens: tuple[int, ...]
    image: tuple[int, ...]

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.held.value = args[0].reshape(len(args[0]), *self.tokens)
        return args[0].new_zeros(1, *self.image), *args[1:]


@dataclass(frozen=True)
class _Entry:
    """The block's pre-hook: gives it the tokens that are held."""

    held: _Held

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        value, self.held.value = self.held.value, None
        return value, *args[1:]


class _Passed(nn.Module):
    """In the place of a block that nobody needs."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x


def first_block(backbone: Backbone, targets: Sequence[str] | Mapping[str, Any]) -> str:
    """The name of the first block that a target is in. Raises InputError where nothing comes before it, or a target is
    outside of the blocks."""
    blocks = {name: block_of(name) for name in targets}
    order = list(dict.fromkeys(block for name in linear_layers(backbone.module) if (block := block_of(name))))
    beside = [name for name, block in blocks.items() if block is None]
    if beside or not blocks:
        raise InputError(f"engine.prefix_cache=true: {beside[0] if beside else 'no layer'} is in no block")
    first = min((cast(str, block) for block in blocks.values()), key=order.index)
    if first == order[0]:
        raise InputError(
            f"engine.prefix_cache=true: the adapters begin in {first}, the first block, so that nothing before them is "
            f"frozen; use adapter.blocks=last:<n>, with n below {len(order)}, or engine.prefix_cache=false"
        )
    return first


def cut(backbone: Backbone, block: str) -> Cut:
    """The backbone cut before the block of this name.

    Raises InputError where the model does something else with its blocks than to hand on one tensor: what both sides
    together give is compared with what the backbone gives.
    """
    spec, draw = backbone.input, torch.Generator().manual_seed(0)
    images = torch.randn(2, spec.channels, spec.height, spec.width, generator=draw)
    what = f"engine.prefix_cache=true: this model cannot be cut before {block}"
    try:
        tokens = _reach(backbone.module, block, images)
        if len(tokens) != len(images):
            raise ValueError(f"what the block is given, {tuple(tokens.shape)}, has no row an image")
        made = Cut(block, backbone, tuple(tokens.shape[1:]), _after(backbone, block, tuple(tokens.shape[1:])))
        with torch.inference_mode():
            there, straight = made.after.module(before(backbone.module, block, images)), backbone.module(images)
        if not bool((there - straight).abs().max() <= TOLERANCE * straight.abs().max()):
            raise ValueError("its blocks pass on more than one tensor")
    except Exception as error:  # whatever a module of timm's raises
        raise InputError(f"{what} ({' '.join(str(error).split())}); use engine.prefix_cache=false") from error
    return made


def _after(backbone: Backbone, block: str, tokens: tuple[int, ...]) -> Backbone:
    """The backbone that begins at the block."""
    module, spec, held = share(backbone.module), backbone.input, _Held()
    parent, _, place = block.rpartition(".")
    row = module.get_submodule(parent)
    for name, _child in list(row.named_children()):
        if name.isdigit() and int(name) < int(place):
            setattr(row, name, _Passed())
    module.register_forward_pre_hook(_Front(held, tokens, (spec.channels, spec.height, spec.width)))
    module.get_submodule(block).register_forward_pre_hook(_Entry(held))
    one = InputSpec(channels=1, height=1, width=math.prod(tokens), mean=spec.mean[:1], std=spec.std[:1])
    return replace(backbone, module=module, input=one)
