"""Which linear layers of a backbone carry an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fedinit.config.checks import check_rank
from fedinit.errors import InputError, did_you_mean
from fedinit.models.backbone import Backbone
from fedinit.models.matrix import Matrix

# LoRA-FAIR (arXiv 2411.14961), experimental setting; of a Matrix, all it has.
PAPER_TARGETS: dict[type[nn.Module], tuple[str, ...]] = {
    Matrix: ("weight",),
    VisionTransformer: ("attn.proj", "mlp.fc2"),
    MlpMixer: ("mlp_tokens.fc2", "mlp_channels.fc2"),
}


def select_targets(module: nn.Module, patterns: Sequence[str] | None, rank: int) -> dict[str, tuple[int, int]]:
    """{layer name: (d, k)} of the nn.Linear layers that the patterns name, in the module's own order.

    A pattern is a layer name (``blocks.0.attn.qkv``), its end (``attn.qkv``), or either with shell wildcards
    (``blocks.[0-3].mlp.fc?``). None takes the paper's targets for a ViT or an MLP-Mixer.
    Raises InputError for a pattern that names no linear layer, and for a rank above min(d, k) of a target.
    """
    if patterns is None:
        patterns = next((p for kind, p in PAPER_TARGETS.items() if isinstance(module, kind)), None)
        if patterns is None:
            raise InputError(
                f"adapter.targets: {type(module).__name__} has no default targets; set adapter.targets=[...]"
            )
    linears = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    chosen: set[str] = set()
    for pattern in patterns:
        hits = {n for n in linears if fnmatchcase(n, pattern) or fnmatchcase(n, f"*.{pattern}")}
        if not hits:
            kinds = sorted({".".join(p for p in n.split(".")[-2:] if not p.isdigit()) for n in linears})
            raise InputError(
                f"adapter.targets: pattern '{pattern}' matches no linear layer{did_you_mean(pattern, kinds)}. "
                f"This model has: {', '.join(kinds)}."
            )
        chosen |= hits
    shapes = {n: (m.out_features, m.in_features) for n, m in linears.items() if n in chosen}
    check_rank(shapes, rank)
    return shapes


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
