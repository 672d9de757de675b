"""Starts before round 1: their distributions, that they leave the model as it was, and that they repeat."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.initializers import create_initializer
from fedinit.models import init_head

TARGETS = {"blocks.0.mlp.fc2": (96, 384), "blocks.1.mlp.fc2": (96, 384), "blocks.0.attn.proj": (96, 96)}


@pytest.mark.parametrize("name", ["gaussian", "kaiming", "orthogonal"])
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


def test_random_core_is_orthonormal_around_a_zero_core():
    first, again, other = (create_initializer("random_core").start(TARGETS, 8, seed) for seed in (0, 0, 1))
    for name, factors in first.items():
        for rows in (factors.A, factors.B.T):
            torch.testing.assert_close(rows @ rows.T, torch.eye(8), rtol=0, atol=1e-5)
        assert factors.R.shape == (8, 8) and not factors.R.any()
        assert torch.equal(factors.A, again[name].A) and not torch.equal(factors.A, other[name].A)
        overlap = (factors.A @ other[name].A.T).abs().max()
        assert overlap < 0.9  # the negative control of the orthonormality above


def test_gaussian_core_has_unit_length_on_average():
    made = create_initializer("random_core", {"kind": "gaussian"}).start({"l": (2_000, 3_000)}, 8, 0)["l"]
    for rows in (made.A, made.B.T):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(8), rtol=0, atol=0.08)  # five standard deviations


class TestLoraXs:
    """Against numpy's SVD of the weight itself, in float64; the factors are float32."""

    WEIGHTS = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(i)) / shape[1] ** 0.5
        for i, (name, shape) in enumerate(TARGETS.items())
    }

    def made(self, seed: int = 0, **options) -> dict[str, Factors]:
        return create_initializer("lora_xs", options).start(TARGETS, 8, seed, self.WEIGHTS.__getitem__)

    @pytest.mark.parametrize("side", ["A", "B"])
    def test_factors_are_the_leading_part_of_the_weight(self, side):
        """B A is the best rank-8 approximation (Eckart–Young), and the singular values are on the side asked for."""
        for name, factors in self.made(sigma_side=side).items():
            U, S, Vh = np.linalg.svd(self.WEIGHTS[name].double().numpy(), full_matrices=False)
            best = U[:, :8] * S[:8] @ Vh[:8]
            np.testing.assert_allclose((factors.B @ factors.A).numpy(), best, atol=1e-5)
            carrier, bare = (factors.A, factors.B.T) if side == "A" else (factors.B.T, factors.A)
            np.testing.assert_allclose(carrier.norm(dim=1).numpy(), S[:8], rtol=1e-5)
            np.testing.assert_allclose((bare @ bare.T).numpy(), np.eye(8), atol=1e-5)
            assert (factors.A.gather(1, factors.A.abs().argmax(1, keepdim=True)) > 0).all()  # canonical signs

    def test_only_the_core_is_drawn_and_it_is_small(self):
        first, again, other = self.made(), self.made(), self.made(seed=1)
        for name, factors in first.items():
            assert torch.equal(factors.R, again[name].R) and not torch.equal(factors.R, other[name].R)
            assert torch.equal(factors.A, other[name].A) and torch.equal(factors.B, other[name].B)
        entries = torch.cat([f.R.flatten() for f in first.values()])
        assert abs(float(entries.std()) - 1e-5) < 5 * 1e-5 / (2 * len(entries)) ** 0.5  # five standard errors
        assert not any(f.R.any() for f in self.made(std=0.0).values())

    def test_needs_the_weights(self):
        with pytest.raises(ValueError, match="made from the frozen weights"):
            create_initializer("lora_xs").start(TARGETS, 8, 0)
        with pytest.raises(InputError, match=r"init.std=-1.0: expected a number in \[0, inf\)"):
            create_initializer("lora_xs", {"std": -1.0})


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
