"""Where adapters sit by default: in each block the layers by which attention and the MLP give to the residual stream.

They are `attn.proj` and `mlp.fc2` of a ViT, `mlp_tokens.fc2` and `mlp_channels.fc2` of an MLP-Mixer, the layers of
LoRA-FAIR's experiments (arXiv 2411.14961), and what stands in their place elsewhere: of an attention or an MLP the last
linear layer that gives no fewer numbers than its first one takes. docs/models.md lists them by family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

ATTENTION = re.compile(r"(^|_)(attn|mhsa|token_mixer|xca|factoratt_crpe)(_in|_out|_downsample)?\d*$")
MLP = re.compile(r"(^|_)(mlp|ffn)(_in|_tokens|_channels)?\d*$")
BESIDE = re.compile(r"^(attn_pool|cpb_mlp|meta_mlp)$|pos(_|\d|$)")  # pooling, and MLPs of relative positions
BRANCHES = {"attns", "ffns"}  # side by side in one block, each given what the block is
WITHIN = re.compile(r"^(attn|mlp)_\w*proj$")  # of a block that holds both as layers of its own


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """{name: layer} of all nn.Linear layers, in the module's own order."""
    return {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}


def default_layers(module: nn.Module) -> list[str]:
    """The names of the layers that carry adapters by default, in the module's own order; empty where there is no
    attention and no MLP of linear layers."""
    linears = linear_layers(module)
    groups: dict[str, list[str]] = {}
    for name in linears:
        part = _part(name)
        if part is not None:
            groups.setdefault(part, []).append(name)
    for block, own in _own_layers(module).items():
        if not any(ATTENTION.search(part.removeprefix(f"{block}.")) for part in groups if part.startswith(f"{block}.")):
            groups.setdefault(block, own)
    chosen = {_last(group, linears) for group in groups.values()}
    return [name for name in linears if name in chosen]


def block_of(name: str) -> str | None:
    """The name of the block that a layer is in, "blocks.3" of "blocks.3.mlp.fc2", "layers.2.blocks.1" of a Swin's; None
    of a layer in none."""
    part = _part(name)
    above = name.split(".")[:-1] if part is None else part.split(".")
    while above and (not above[-1].isdigit() or BRANCHES & {*above[-2:-1]}):
        above.pop()
    return ".".join(above) or None


def _part(name: str) -> str | None:
    """The name of the attention or MLP that a layer belongs to, the outermost one; None outside of them."""
    *above, leaf = name.split(".")
    if any(BESIDE.search(word) for word in above):
        return None
    for i, word in enumerate(above):
        if ATTENTION.search(word) or MLP.search(word):
            return ".".join(above[: i + 1])
    within = WITHIN.match(leaf)
    return None if within is None else ".".join([*above, within[1]])


def _own_layers(module: nn.Module) -> dict[str, list[str]]:
    """{block: its own linear layers}, of the blocks that stand in a sequence of them (ResMLP's linear_tokens)."""
    own = {}
    for name, block in module.named_modules():
        if any(BESIDE.search(word) for word in name.split(".")):
            continue
        if name.rpartition(".")[2].isdigit() and not isinstance(block, (nn.Sequential, nn.ModuleList, nn.Linear)):
            layers = [f"{name}.{leaf}" for leaf, m in block.named_children() if isinstance(m, nn.Linear)]
            if layers and not any(WITHIN.match(layer.rpartition(".")[2]) for layer in layers):
                own[name] = layers
    return own


def _last(group: list[str], linears: Mapping[str, nn.Linear]) -> str:
    width = linears[group[0]].in_features
    return next((name for name in reversed(group) if linears[name].out_features >= width), group[-1])
