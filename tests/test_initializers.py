"""Starts before round 1: their distributions, that they leave the model as it was, and that they repeat."""

from __future__ import annotations

import pytest
import torch

from fedinit.errors import InputError
from fedinit.initializers import INITIALIZERS, create_initializer
from fedinit.models import init_head

TARGETS = {"blocks.0.mlp.fc2": (96, 384), "blocks.1.mlp.fc2": (96, 384), "blocks.0.attn.proj": (96, 96)}


@pytest.mark.parametrize("name", sorted(INITIALIZERS))
def test_product_is_zero_and_draws_repeat(name):
    make = create_initializer(name)
    first, again, other = (make.start(TARGETS, 8, seed) for seed in (0, 0, 1))
    for layer, (d, k) in TARGETS.items():
        assert first[layer].shape == (d, k) and first[layer].rank == 8
        assert first[layer].dense().abs().max() < 1e-6  # float32 rounding of a product that is zero
        assert torch.equal(first[layer].A, again[layer].A) and torch.equal(first[layer].B, again[layer].B)
        assert not torch.equal(first[layer].A, other[layer].A)
    assert not torch.equal(first["blocks.0.mlp.fc2"].A, first["blocks.1.mlp.fc2"].A)


def test_a_layers_draw_does_not_depend_on_the_other_layers():
    make = create_initializer("kaiming")
    alone = make.start({"blocks.0.attn.proj": (96, 96)}, 8, 0)["blocks.0.attn.proj"]
    assert torch.equal(alone.A, make.start(TARGETS, 8, 0)["blocks.0.attn.proj"].A)


def test_kaiming_is_uniform_within_one_over_root_k():
    A = create_initializer("kaiming").start({"l": (4, 10_000)}, 4, 0)["l"].A
    assert A.abs().max() <= 0.01 and A.abs().max() > 0.0099
    assert abs(float(A.std()) - 0.01 / 3**0.5) < 5e-5  # the deviation of U(−a, a) is a/√3


def test_gaussian_has_deviation_one_over_r():
    A = create_initializer("gaussian").start({"l": (4, 10_000)}, 4, 0)["l"].A
    assert abs(float(A.std()) - 0.25) < 0.005


def test_orthogonal_has_two_live_factors_and_needs_an_even_rank():
    made = create_initializer("orthogonal").start({"l": (30, 20)}, 4, 0)["l"]
    assert made.A.norm() > 0.1 and made.B.norm() > 0.1
    with pytest.raises(InputError, match="even rank, got adapter.rank=3"):
        create_initializer("orthogonal").start({"l": (30, 20)}, 3, 0)


def test_scale_multiplies_and_bad_options_are_refused():
    one, small = (create_initializer("kaiming", {"scale": s}).start(TARGETS, 8, 0) for s in (1.0, 0.01))
    torch.testing.assert_close(small["blocks.0.attn.proj"].A, one["blocks.0.attn.proj"].A * 0.01)
    with pytest.raises(InputError, match="init.scale=0"):
        create_initializer("kaiming", {"scale": 0.0})
    with pytest.raises(InputError, match=r"init=kaimin: no such choice \(did you mean 'kaiming'\?\)"):
        create_initializer("kaimin")


def test_head_is_drawn_from_the_seed():
    one, again, other = (init_head("random", 10, 96, s) for s in (0, 0, 1))
    assert torch.equal(one["weight"], again["weight"]) and not torch.equal(one["weight"], other["weight"])
    assert one["weight"].abs().max() <= 96**-0.5
    assert not init_head("zero", 10, 96, 0)["weight"].any()
