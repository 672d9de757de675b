"""The last block computes the class token alone: features and gradients are those of timm's own block, in float64.

Sums of a few hundred terms in another order: rtol 1e-10.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedinit.adapters.bank import Bank
from fedinit.factors import Factors
from fedinit.models import Backbone, select_targets
from fedinit.models.class_token import every_token
from tests.support.bank_runs import close64, in_float64
from tests.support.timm_models import backbone_of

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
OTHERS = [
    ("vit_tiny_patch16_224", {}),
    ("vit_tiny_patch16_224", {"init_values": 0.5}),
    ("vit_tiny_patch16_224", {"qkv_bias": False}),
    ("vit_tiny_patch16_224", {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True}),
    ("vit_tiny_patch16_224", {"reg_tokens": 3}),
    ("vit_tiny_patch16_224", {"pre_norm": True, "fc_norm": True}),
    ("vit_giant_patch14_dinov2", {}),  # SwiGLU and scales a layer
    ("deit_tiny_patch16_224", {}),
]


Run = tuple[Tensor, dict[str, Tensor], dict[str, int]]


def last_block(module: nn.Module) -> nn.Module:
    return module.get_submodule("blocks.1")


def run(backbone: Backbone, patterns: list[str] | None, whole: bool) -> Run:
    """Features (2, 3, D) of two clients, the gradients of their adapters, {layer: tokens that it was given}; every
    tensor of the backbone is drawn, so that no bias or norm is what it starts as."""
    draw = torch.Generator().manual_seed(0)
    for value in backbone.module.state_dict().values():
        value.add_(torch.randn(value.shape, generator=draw, dtype=value.dtype) / 5)
    targets = select_targets(backbone.module, patterns, 2)
    bank = Bank(backbone, targets, 1.5)
    adapters = [
        {
            name: Factors(*(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((2, k), (d, 2))))
            for name, (d, k) in targets.items()
        }
        for _ in range(2)
    ]
    seen: dict[str, int] = {}

    def watch(layer: str, args: tuple[Tensor, ...]) -> None:
        seen[layer] = args[0].shape[1]

    for name, layer in bank.layers.items():
        layer.register_forward_pre_hook(partial(lambda layer, _, args: watch(layer, args), name))
    leaves = bank.load(adapters, [{}, {}])
    spec = backbone.input
    images = torch.randn(6, spec.channels, spec.height, spec.width, generator=draw, dtype=torch.float64)
    if whole:
        with bank.every_token():
            features = bank.forward(images, 2)
    else:
        features = bank.forward(images, 2)
    weights = torch.randn(features.shape, generator=draw, dtype=torch.float64)
    gradients = torch.autograd.grad((features * weights).sum(), list(leaves.values()))
    return features.detach(), dict(zip(leaves, gradients, strict=True)), seen


def both(name: str, kwargs: dict[str, Any], patterns: list[str] | None = None) -> list[Run]:
    return [run(in_float64(backbone_of(name, TINY | kwargs)), patterns, whole) for whole in (False, True)]


@pytest.mark.parametrize("patterns", [None, ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]])
@pytest.mark.parametrize(("name", "kwargs"), OTHERS)
def test_features_and_gradients_are_those_of_the_whole_block(
    name: str, kwargs: dict, patterns: list[str] | None
) -> None:
    (ours, grads, seen), (theirs, expected, all_seen) = both(name, kwargs, patterns)
    close64(ours, theirs)
    for leaf, gradient in expected.items():
        assert gradient.norm() > 0
        close64(grads[leaf], gradient)
    tokens = all_seen["blocks.0.attn.proj"]
    assert set(all_seen.values()) == {tokens}
    last = {layer: count for layer, count in seen.items() if layer.startswith("blocks.1.")}
    assert all(count == (tokens if layer.endswith("qkv") else 1) for layer, count in last.items())
    assert {count for layer, count in seen.items() if layer not in last} == {tokens}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"global_pool": "map"}),
        ("deit_tiny_distilled_patch16_224", {}),  # two tokens are read
        ("vit_tiny_patch16_224", {"block_fn": "parallel"}),
    ],
)
def test_models_that_read_more_than_the_class_token_are_left_as_they_are(name: str, kwargs: dict) -> None:
    from timm.models.vision_transformer import ParallelScalingBlock

    if kwargs.get("block_fn"):
        kwargs = {"block_fn": ParallelScalingBlock}
    (ours, _, seen), (theirs, _, all_seen) = both(name, kwargs)
    assert torch.equal(ours, theirs)
    assert seen == all_seen


def test_the_average_of_one_token_is_not_that_of_all() -> None:
    """Negative control: where the features are an average, the last block for one token gives other ones."""
    backbone = in_float64(backbone_of("vit_tiny_patch16_224", TINY))
    bank = Bank(backbone, {}, 1.0)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    vars(bank.module)["global_pool"], vars(bank.module)["pool_include_prefix"] = "avg", True
    short = bank.module(images)
    del vars(last_block(bank.module))["forward"]
    assert not torch.allclose(short, bank.module(images), rtol=1e-3)


def test_within_every_token_and_after_it() -> None:
    """The short way is back after it, also after an error; a module that never had it is left alone."""
    backbone = backbone_of("vit_tiny_patch16_224", TINY)
    bank = Bank(backbone, {}, 1.0)
    short = vars(last_block(bank.module))["forward"]
    with pytest.raises(KeyError), every_token(bank.module):
        assert "forward" not in vars(last_block(bank.module))
        raise KeyError
    assert vars(last_block(bank.module))["forward"] is short
    with every_token(backbone.module):
        pass
    assert "forward" not in vars(last_block(backbone.module))  # nor does a bank change the backbone that it shares
