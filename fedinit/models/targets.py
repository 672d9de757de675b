"""Which linear layers of a backbone carry an adapter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType

import torch
from torch import nn

from fedinit.config.checks import check_rank
from fedinit.errors import InputError, did_you_mean
from fedinit.models.backbone import Backbone
from fedinit.models.blocks import block_of, default_layers, linear_layers
from fedinit.models.matrix import Matrix


def adapted_layers(
    backbone: Backbone, patterns: Sequence[str] | None, rank: int, last_blocks: int | None = None
) -> dict[str, tuple[int, int]]:
    """`select_targets`, checked against a forward pass: {layer name: (d, k)} of layers that can carry an adapter.

    Raises InputError for a layer that is not called as a module, once a pass, with the batch in front.
    """
    faults = backbone.dry_pass.faults
    targets = select_targets(backbone.module, patterns, rank, faults, last_blocks)
    wrong = [name for name in targets if name in faults]
    if wrong:
        linears = linear_layers(backbone.module)
        right = [name for name in targets if name not in faults] or [name for name in linears if name not in faults]
        others = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(
            f"adapter.targets: {wrong[0]}{others} {faults[wrong[0]]}, so it can carry no adapter; "
            + (f"use adapter.targets=[{','.join(spelled(right))}]" if right else "choose a model with layers that can")
        )
    return targets


def select_targets(
    module: nn.Module,
    patterns: Sequence[str] | None,
    rank: int,
    faults: Mapping[str, str] = MappingProxyType({}),
    last_blocks: int | None = None,
) -> dict[str, tuple[int, int]]:
    """{layer name: (d, k)} of the nn.Linear layers that the patterns name, in the module's own order.

    A pattern is a layer name (``blocks.0.attn.qkv``), its end (``attn.qkv``), or either with shell wildcards
    (``blocks.[0-3].mlp.fc?``). None takes the default layers (blocks.py) but those with faults; of a Matrix, all it
    has.
    faults: {layer: why it can carry no adapter}, where that is known.
    last_blocks: of the layers those in as many blocks, the last ones that have any; None: all.
    Raises InputError for a pattern that names no linear layer, for an end that names layers of an attention pooling
    block beside others, for a model without default layers, for more blocks than there are, and for a rank above
    min(d, k) of a target.
    """
    linears = linear_layers(module)
    chosen: set[str] = set()
    for pattern in patterns or ():
        chosen |= _named(pattern, linears, pooling_layers(module))
    if patterns is None:
        chosen = set(linears if isinstance(module, Matrix) else default_layers(module)) - faults.keys()
        if not chosen:
            there = kinds(name for name in linears if name not in faults)
            what = f"set adapter.targets=[...] to some of {', '.join(there)}"
            raise InputError(
                f"adapter.targets: {type(module).__name__} has no default targets; "
                + (what if there else "none of its layers can carry an adapter: choose another model")
            )
    if last_blocks is not None:
        chosen = _in_last_blocks([name for name in linears if name in chosen], last_blocks)
    shapes = {n: (m.out_features, m.in_features) for n, m in linears.items() if n in chosen}
    check_rank(shapes, rank)
    return shapes


def _in_last_blocks(names: Sequence[str], count: int) -> set[str]:
    """Those of the layers, in the module's order, that are in the last `count` blocks. Raises InputError for more."""
    blocks = {name: block_of(name) for name in names}
    there = list(dict.fromkeys(block for block in blocks.values() if block))
    if count > len(there):
        raise InputError(
            f"adapter.blocks=last:{count}: the targets are in {len(there)} blocks"
            + (f"; expected at most last:{len(there)}" if there else ", none of which has a number")
        )
    return {name for name, block in blocks.items() if block in there[-count:]}


def _named(pattern: str, linears: Iterable[str], pool: set[str]) -> set[str]:
    """The layers that a pattern names. pool: those of attention pooling. Raises InputError as `select_targets` does."""
    hits = {n for n in linears if fnmatchcase(n, pattern) or fnmatchcase(n, f"*.{pattern}")}
    if not hits:
        raise InputError(
            f"adapter.targets: pattern '{pattern}' matches no linear layer{did_you_mean(pattern, kinds(linears))}. "
            f"This model has: {', '.join(kinds(linears)) or 'none'}."
        )
    beside = sorted(hits & pool)
    if beside and hits - pool and not set("*?[") & set(pattern):
        without, added = spelled(n for n in linears if n in hits - pool), ",".join(beside)
        raise InputError(
            f"adapter.targets: '{pattern}' names {beside[0]} of the attention pooling beside the blocks; "
            f"use {','.join(without)} in its place, and {added} as well where that is meant"
        )
    return hits


def kinds(names: Iterable[str]) -> list[str]:
    """The ends of layers' names, "mlp.fc2" of "blocks.0.mlp.fc2", each once."""
    return sorted({".".join(part for part in n.split(".")[-2:] if not part.isdigit()) or n for n in names})


def spelled(names: Iterable[str]) -> list[str]:
    """Patterns that name these layers and nothing deeper, "blocks.?.mlp.fc2": digits as ``?``, in the names' order."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", lambda digits: "?" * len(digits[0]), n) for n in names))


def pooling_layers(module: nn.Module) -> set[str]:
    """The linear layers within attention pooling, which is not one of the blocks (SigLIP's attn_pool)."""
    pools = [name for name, m in module.named_modules() if type(m).__name__.startswith("AttentionPool")]
    return {name for name in linear_layers(module) if any(name.startswith(f"{pool}.") for pool in pools)}


@torch.no_grad()
def shared_inputs(backbone: Backbone, targets: Iterable[str]) -> dict[str, str]:
    """{layer: the first of the targets that is given the very same tensor}, from one pass over a blank image.

    A layer that the pass does not reach stands for itself.
    """
    seen: dict[str, torch.Tensor] = {}  # kept, so that no memory is used twice and the addresses tell tensors apart
    module, spec = backbone.module, backbone.input

    def remember(name: str) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
        return lambda _, args: seen.__setitem__(name, args[0])

    hooks = [module.get_submodule(name).register_forward_pre_hook(remember(name)) for name in targets]
    try:
        module(torch.zeros(1, spec.channels, spec.height, spec.width, device=next(module.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    first: dict[tuple, str] = {}
    places = {name: (x.data_ptr(), x.shape, x.stride()) for name, x in seen.items()}
    return {name: first.setdefault(places.get(name, (name,)), name) for name in targets}
