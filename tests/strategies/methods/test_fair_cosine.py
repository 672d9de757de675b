"""The minimiser of LoRA-FAIR's own objective against one that knows nothing of it: L-BFGS on dense float64 matrices.

The objective may exceed the oracle's by 1e-6 of itself, and by 1e-9 where it is all but zero: L-BFGS stops about there.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedinit.adapters.vera import VeRAFactors
from fedinit.factors import norm, stack
from strategies import create_aggregator
from strategies.aggregator import Update
from strategies.methods import fair_moments
from strategies.methods.fair_moments import SKETCHED, look, moments
from tests.support import oracles
from tests.support.oracles import Clients, clients, draw_clients, fair, well_posed
from tests.support.small import slow_unless

quick = settings(deadline=None, max_examples=4)
SIZES = [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3]  # ‖B̄‖


def sized(size: float, seed: int = 0, spread: float = 0.3) -> Clients:
    """Six clients whose ‖B̄‖ is as given."""
    c = draw_clients(seed, 12, 20, [4] * 6, [10, 11, 12, 13, 14, 15], spread)
    c = dataclasses.replace(c, A=tuple(a / 20**0.5 for a in c.A))
    return dataclasses.replace(c, B=tuple(b * (size / np.linalg.norm(oracles.factor_means(c)[1])) for b in c.B))


def loss(c: Clients, B: np.ndarray, lam: float) -> float:
    return oracles.cosine_loss(c, B - oracles.factor_means(c)[1], lam)


@pytest.mark.parametrize(
    ("lam", "size"),  # at two of them L-BFGS takes longer than at all the others
    slow_unless(lambda *point: point not in ((0.01, 0.1), (1.0, 0.01)), itertools.product([0.01, 1.0], SIZES)),
)
def test_no_descent_ends_lower_whatever_the_size_of_B(size: float, lam: float) -> None:
    c = sized(size)
    ours, theirs = loss(c, fair(c, lam=lam)[1], lam), oracles.least_cosine_loss(c, lam)
    assert theirs * (1 - 1e-2) < ours < theirs * (1 + 1e-6) + 1e-10


@pytest.mark.parametrize("size", [30.0, 100.0])
def test_the_other_scales_are_of_other_objectives(size: float) -> None:
    """The negative control: at a large ‖B̄‖ they end far above, and above no correction at all."""
    c = sized(size)
    best, plain = loss(c, fair(c)[1], 0.01), loss(c, oracles.factor_means(c)[1], 0.01)
    for scale in ("relative", "absolute"):
        assert loss(c, fair(c, lam=0.01, lam_scale=scale)[1], 0.01) > plain > best


@quick
@given(clients(min_clients=2), st.sampled_from([1e-3, 0.03, 1.0, 30.0, 1e3]), st.sampled_from([0.01, 1.0]))
def test_any_clients(c: Clients, size: float, lam: float) -> None:
    """Mixed ranks, unrelated factors, every shape; no start of L-BFGS ends lower. Where f has no minimum, the method
    says so, and is no worse than the plain averages."""
    assume(well_posed(c))
    c = dataclasses.replace(c, B=tuple(size * b for b in c.B))
    method = create_aggregator("lora_fair", lam=lam)
    made = method.aggregate(c.updates(), 1)
    ours, plain = loss(c, made.layers["layer"].B.numpy(), lam), loss(c, oracles.factor_means(c)[1], lam)
    assert ours <= plain + 1e-12
    if "unconverged" not in made.diagnostics:
        assert ours < oracles.least_cosine_loss(c, lam) * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("size", [1e-2, 1.0, 30.0])
def test_the_gradient_of_the_dense_objective_vanishes(size: float) -> None:
    """Central differences along random directions, of the size of B̄: rounding leaves 1e-16/1e-4."""
    c = sized(size)
    B, rng = fair(c)[1], np.random.default_rng(0)
    for _ in range(5):
        step = 1e-4 * size * rng.standard_normal(B.shape) / B.size**0.5
        assert (
            abs(loss(c, B + step, 0.01) - loss(c, B - step, 0.01))
            < 1e-3 * abs(loss(c, B + step, 0.01) - loss(c, B, 0.01)) + 1e-15
        )


@pytest.mark.parametrize("size", [1e-2, 0.1, 1.0, 10.0, 30.0])
def test_the_ridge_of_twice_lam_and_the_squared_norm_is_near(size: float) -> None:
    """2λ‖ΔW‖² in ridge units: within 1 % of the objective, where clients are near each other."""
    c = sized(size, spread=0.1)
    lam = 2 * 0.01 * float(np.linalg.norm(oracles.ideal_update(c)) ** 2)
    ridge, B = oracles.ridge_correction(c, lam), oracles.factor_means(c)[1]
    assert loss(c, fair(c)[1], 0.01) <= loss(c, B + ridge, 0.01) <= 1.01 * loss(c, fair(c)[1], 0.01)


def test_the_size_of_B_and_lam_go_together() -> None:
    """(c·B_i, λ/c²) has the same minimiser, times c: λ alone has no scale."""
    c = sized(1.0)
    larger = dataclasses.replace(c, B=tuple(8 * b for b in c.B))
    np.testing.assert_allclose(fair(larger, lam=0.25 / 64)[1], 8 * fair(c, lam=0.25)[1], rtol=1e-9)
    assert np.abs(fair(larger, lam=0.25)[1] - 8 * fair(c, lam=0.25)[1]).max() > 1e-3


@pytest.mark.parametrize("side", ["A", "both"])
def test_the_other_sides_minimise_their_transposed_objective(side: str) -> None:
    c = sized(3.0)
    A, B = fair(c, side=side, lam=0.1)
    first = c if side == "A" else dataclasses.replace(c, B=tuple(b + B - oracles.factor_means(c)[1] for b in c.B))
    ideal, mean = oracles.ideal_update(c), oracles.factor_means(first)[0]

    def value(A: np.ndarray) -> float:
        return 1 - oracles.cosine(ideal, B @ A) + 0.1 * float(np.sum((A - mean) ** 2))

    rng = np.random.default_rng(0)
    assert value(A) < value(mean)
    assert all(value(A) < value(A + 1e-3 * rng.standard_normal(A.shape)) for _ in range(10))


def test_where_there_is_no_minimum_it_says_so_once_a_round(caplog) -> None:
    """B̄ = 0 with ΔW ≠ 0: the smaller the product, the better. Two layers, one of them such."""
    c = draw_clients(0, 6, 9, [2, 2])
    none = dataclasses.replace(c, B=(c.B[0], -c.B[0]))
    layers = [{"good": f, "bad": g} for f, g in zip(c.factors(), none.factors(), strict=True)]
    updates = [Update(i, 1, both, {}) for i, both in enumerate(layers)]
    with caplog.at_level(logging.WARNING):
        made = create_aggregator("lora_fair", diagnostics=False).aggregate(updates, 3)
    assert made.diagnostics == {"unconverged": 1} and made.layers["bad"].B.isfinite().all()
    (record,) = caplog.records
    assert "round 3" in record.getMessage() and "has no minimum" in record.getMessage()
    assert record.getMessage().endswith("in 1 of 2 layers: bad")


@pytest.mark.parametrize("lam", [0.0, 1e-300, 1e-12])
def test_a_lam_of_nothing_keeps_the_best_cosine(lam: float) -> None:
    c = sized(1.0)
    A, B = fair(c, lam=lam)
    assert oracles.cosine(oracles.ideal_update(c), B @ A) == pytest.approx(oracles.best_cosine(c), abs=1e-9)


def test_a_large_sum_of_ranks_estimates_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """‖ΔW‖ from four random columns beside the rows of Ā: within 5 % where clients are unrelated, and the nearer the
    more they agree; that moves the objective by under 0.1 %. In a layer as small as these it is exact."""
    c = draw_clients(1, 60, 90, [16] * 6)
    found = look(c.factors(), list(c.p), torch.tensor(oracles.factor_means(c)[0]), True)
    assert found.size == pytest.approx(np.linalg.norm(oracles.ideal_update(c)), rel=1e-12)
    monkeypatch.setattr(fair_moments, "LARGE", 0)
    for spread, bound in ((1.0, 0.05), (0.2, 0.005)):
        c = draw_clients(1, 60, 90, [16] * 6, spread=spread)
        assert sum(len(a) for a in c.A) > SKETCHED
        weights, A = list(c.p), torch.tensor(oracles.factor_means(c)[0])
        exact = norm(stack(c.factors(), weights))
        assert abs(float(moments([look(c.factors(), weights, A, True)]).size) / exact - 1) < bound
        small = dataclasses.replace(c, B=tuple(0.1 * b for b in c.B))
        ours = loss(small, fair(small)[1], 0.01)
        assert ours < 1.001 * oracles.least_cosine_loss(small, 0.01)


@pytest.mark.parametrize("size", [1e-2, 1.0, 100.0])
def test_veras_b_is_the_minimiser_too(size: float) -> None:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    A, B, b, d = normal(4, 12), normal(9, 4), normal(9), normal(4)
    layers = [VeRAFactors(A, B, size * (b + 0.5 * normal(9)), d + 0.5 * normal(4)) for _ in range(5)]
    updates = [Update(i, 1, {"layer": f}, {}) for i, f in enumerate(layers)]
    ours = create_aggregator("lora_fair", lam=0.01).aggregate(updates, 1).layers["layer"]
    ideal = sum(f.dense() for f in layers) / 5
    mean = sum(f.b for f in layers) / 5
    frozen = (B * sum(f.d for f in layers) / 5) @ A

    def value(b: torch.Tensor) -> torch.Tensor:
        product = b[:, None] * frozen
        return 1 - (product * ideal).sum() / (product.norm() * ideal.norm()) + 0.01 * (b - mean).square().sum()

    assert float(value(ours.b)) < float(oracles.least(value, [mean])) * (1 + 1e-6) + 1e-10
    relative = create_aggregator("lora_fair", lam=0.01, lam_scale="relative").aggregate(updates, 1).layers["layer"]
    assert float(value(ours.b)) < float(value(relative.b)) or size < 1
