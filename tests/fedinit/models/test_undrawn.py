"""Where weights come from a file none are drawn before: what is not of the file is as ever."""

from __future__ import annotations

import pytest
import torch
from timm.layers.weight_init import trunc_normal_
from torch import nn

from fedinit.models.creation import create
from fedinit.models.undrawn import DRAWING, Undrawn


@pytest.mark.parametrize("name", sorted(DRAWING & vars(nn.init).keys()))
def test_nothing_is_drawn_into_a_parameter(name):
    draw = getattr(nn.init, name)
    value, drawn = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    before = torch.random.get_rng_state()
    with Undrawn():
        assert draw(value) is value
    assert not value.any() and value.requires_grad and torch.equal(before, torch.random.get_rng_state())
    draw(drawn)
    assert drawn.any() and not torch.equal(before, torch.random.get_rng_state()), "the control"


def test_timms_truncated_normal_draws_nothing_either_and_by_name_too():
    value = nn.Parameter(torch.ones(4, 4))
    with Undrawn():
        trunc_normal_(value, std=0.02)
        nn.init.normal_(tensor=value)
    assert not value.any()


def test_buffers_constants_and_fresh_tensors_are_as_ever():
    torch.manual_seed(0)
    wanted = torch.empty(3).normal_(), torch.randn(3), nn.LayerNorm(3).weight
    torch.manual_seed(0)
    with Undrawn():
        given = torch.empty(3).normal_(), torch.randn(3), nn.LayerNorm(3).weight
    assert all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True)) and given[2].all()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "MlpMixer"])
def test_a_model_is_drawn_where_no_file_has_its_weights(name):
    size = {"embed_dim": 24, "img_size": 32} | ({"depth": 1, "num_heads": 3} if name != "MlpMixer" else {})
    size |= {"num_blocks": 1} if name == "MlpMixer" else {}
    drawn, made = (create(name, size, weights)[0] for weights in ("none", "file"))
    for (key, ours), theirs in zip(made.state_dict().items(), drawn.state_dict().values(), strict=True):
        assert ours.shape == theirs.shape and (not ours.any() or torch.equal(ours, theirs)), key
    first = next(key for key in made.state_dict() if key.endswith("proj.weight"))
    assert drawn.state_dict()[first].any() and not made.state_dict()[first].any()
