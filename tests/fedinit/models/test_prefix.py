"""A backbone cut before a block: both sides together are the backbone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedinit.errors import InputError
from fedinit.models import Backbone, adapted_layers, build_backbone
from fedinit.models.prefix import before, cut, first_block
from tests.support.timm_models import settings


def images_of(backbone: Backbone, count: int) -> torch.Tensor:
    spec = backbone.input
    return torch.randn(count, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(1))


def test_both_sides_are_the_whole(tiny_backbone):
    made, images = cut(tiny_backbone, "blocks.1"), images_of(tiny_backbone, 5)
    tokens = before(tiny_backbone.module, "blocks.1", images)
    assert tokens.shape == (5, 1, 1, made.after.input.width) and tokens.dtype == torch.float32
    torch.testing.assert_close(made.after.module(tokens), tiny_backbone.module(images), rtol=1e-5, atol=1e-6)
    other = made.after.module(tokens.flip(0))
    assert not torch.allclose(other, tiny_backbone.module(images), atol=1e-2), "the control: tokens of other images"


def test_layers_keep_their_names_and_their_weights(tiny_backbone):
    made = cut(tiny_backbone, "blocks.1")
    own, cut_ = dict(tiny_backbone.module.named_parameters()), dict(made.after.module.named_parameters())
    assert cut_.keys() <= own.keys() and all(cut_[name] is own[name] for name in cut_)
    assert not any(name.startswith("blocks.0.") for name in cut_)
    assert any(name.startswith("blocks.0.") for name in own), "the whole stays whole"


def test_copies_do_not_share_what_they_hold(tiny_vit):
    """Every lane has a copy of the tree, and two of them are in a pass at once."""
    made = cut(tiny_vit, "blocks.1")
    one, two = copy.deepcopy(made.after.module), copy.deepcopy(made.after.module)
    first, second = (before(tiny_vit.module, "blocks.1", images_of(tiny_vit, n)) for n in (2, 3))
    held = {}

    class Between(nn.Module):
        def forward(self, x):
            held["other"] = two(second)
            return x

    one.patch_embed = nn.Sequential(one.patch_embed, Between())
    torch.testing.assert_close(one(first), made.after.module(first))
    torch.testing.assert_close(held["other"], made.after.module(second))


def test_where_it_is_cut(tiny_vit):
    layers = adapted_layers(tiny_vit, None, 2, last_blocks=1)
    assert set(layers) == {"blocks.1.attn.proj", "blocks.1.mlp.fc2"}
    assert first_block(tiny_vit, layers) == "blocks.1"
    with pytest.raises(
        InputError, match="begin in blocks.0, the first block.* use adapter.blocks=last:<n>, with n below 2"
    ):
        first_block(tiny_vit, adapted_layers(tiny_vit, None, 2))
    with pytest.raises(InputError, match="fc_norm is in no block"):
        first_block(tiny_vit, ["fc_norm"])


def test_branches_side_by_side_are_one_block():
    """Each of `attns` and `ffns` of such a block is given what the block is: none comes before another."""
    kwargs = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 32}
    parallel = build_backbone(settings("vit_small_patch16_18x2_224", kwargs=kwargs))
    layers = adapted_layers(parallel, None, 2, last_blocks=1)
    assert list(layers) == [f"blocks.1.{b}" for b in ("attns.0.attn.proj", "attns.1.attn.proj")] + [
        f"blocks.1.ffns.{b}.mlp.fc2" for b in (0, 1)
    ]
    made, images = cut(parallel, first_block(parallel, layers)), images_of(parallel, 3)
    assert made.block == "blocks.1"
    tokens = before(parallel.module, made.block, images)
    torch.testing.assert_close(made.after.module(tokens), parallel.module(images), rtol=1e-5, atol=1e-6)


def test_more_blocks_than_there_are(tiny_vit):
    with pytest.raises(
        InputError, match=r"^adapter.blocks=last:3: the targets are in 2 blocks; expected at most last:2$"
    ):
        adapted_layers(tiny_vit, None, 2, last_blocks=3)


def test_a_model_whose_blocks_hand_on_more_than_one_tensor_is_refused(tiny_vit):
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

        def forward(self, x):
            rows = x.flatten(1)[:, :16]
            return self.blocks[1](self.blocks[0](rows)) + rows  # the input goes around the blocks

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Backbone(Aside().requires_grad_(False), 16, tiny_vit.input)
    with pytest.raises(
        InputError, match="cannot be cut before blocks.1 .*more than one tensor.*engine.prefix_cache=false"
    ):
        cut(model, "blocks.1")
