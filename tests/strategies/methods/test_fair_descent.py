"""LoRA-FAIR's two descents on the paper's cosine objective, against each other and against the dense objective.

rtol 1e-9 between two ways to take the same few steps in float64.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedinit.factors import Factors, norm, stack
from strategies import create_aggregator
from strategies.means import image
from strategies.methods.fair_descent import dense_sgd, gram_sgd, normalised_rate
from tests.support import oracles
from tests.support.oracles import Clients, clients, draw_clients, fair, fair_product, rotated_clients
from tests.support.small import slow_unless

SIZES = [1e-4, 1e-2, 1.0, 100.0, 1e4]  # ‖B̄‖
quick = settings(deadline=None, max_examples=15)


@quick
@given(
    c=clients(min_clients=2),
    side=st.sampled_from(["B", "A", "both"]),
    start=st.sampled_from(["zero", "xavier"]),
    lam=st.sampled_from([0.0, 0.01, 1.0]),
    scale=st.sampled_from(["relative", "absolute"]),
)
def test_gram_sgd_takes_the_steps_of_dense_sgd(c: Clients, side: str, start: str, lam: float, scale: str) -> None:
    options = {"side": side, "delta_init": start, "lam": lam, "lam_scale": scale, "steps": 30}
    ours, theirs = (fair(c, solver=solver, **options) for solver in ("gram_sgd", "dense_sgd"))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@quick
@given(clients(min_clients=2), st.sampled_from([0.0, 0.01, 1.0]))
def test_both_descents_follow_the_papers_objective(c: Clients, lam: float) -> None:
    theirs = oracles.factor_means(c)[1] + oracles.cosine_descent(c, lam, steps=20, lr=0.02)
    for solver in ("gram_sgd", "dense_sgd"):
        ours = fair(c, solver=solver, lam=lam, steps=20, lr=0.02)[1]
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@quick
@given(st.integers(0, 2**31), st.integers(2, 7), st.integers(2, 7), st.sampled_from([0.0, 0.3]))
def test_the_gradient_is_that_of_the_dense_objective(seed: int, d: int, k: int, lam: float) -> None:
    """One step of size one against central differences, away from ΔB = 0. Differences with step 1e-5 are good to
    1e-10 in truncation and 1e-11 in rounding, times third derivatives of order ten: 1e-7."""
    c = draw_clients(seed, d, k, [2, 2, 1], [3, 1, 2])
    A, B = oracles.factor_means(c)
    delta = 0.3 * np.random.default_rng(seed).standard_normal(B.shape)
    assume(np.linalg.norm((B + delta) @ A) > 0.5)
    ideal = stack(c.factors(), list(c.p))
    M, G = image(c.factors(), list(c.p), torch.tensor(A)), torch.tensor(A @ A.T)
    moved = gram_sgd(M, G, norm(ideal), torch.tensor(B), torch.tensor(delta), lam, steps=1, lr=1.0)
    np.testing.assert_allclose(delta - moved.numpy(), oracles.cosine_gradient(c, delta, lam), rtol=1e-6, atol=1e-7)


def test_where_the_average_vanishes_both_descents_stand_still() -> None:
    """B̄ = 0 with ΔW ≠ 0: the cosine of a zero matrix has no gradient. (A floor under the norm would make it huge.)"""
    c = draw_clients(0, 6, 9, [2, 2])
    c = dataclasses.replace(c, B=(c.B[0], -c.B[0]))
    assert np.linalg.norm(oracles.ideal_update(c)) > 0.1
    for solver in ("gram_sgd", "dense_sgd"):
        assert not fair(c, solver=solver, steps=3)[1].any()
    closed = fair_product(c, solver="closed_form", lam=0.0)  # which has no such trouble
    assert oracles.cosine(oracles.ideal_update(c), closed) == pytest.approx(oracles.best_cosine(c), abs=1e-9)


def test_a_very_small_update_is_descended_like_a_large_one() -> None:
    """Products of norm 1e-10 have a cosine too; both descents take the same step there."""
    c = draw_clients(0, 6, 9, [2, 2])
    c = dataclasses.replace(c, B=tuple(1e-10 * b for b in c.B))
    theirs = oracles.factor_means(c)[1] + oracles.cosine_descent(c, 0.0, steps=1, lr=1e-2)
    for solver in ("gram_sgd", "dense_sgd"):
        ours = fair(c, solver=solver, steps=1, lr=1e-2, lam=0.0)[1]
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
        assert np.abs(ours - oracles.factor_means(c)[1]).max() > 1e-14


def test_the_descent_lies_between_averaging_and_the_best() -> None:
    """Turned clients: the cosine rises from FedIT's nearly to the best, while the magnitude stays wrong; the closed
    form mends both."""
    c = rotated_clients()
    ideal, (A, B) = oracles.ideal_update(c), oracles.factor_means(c)
    descended, closed = fair_product(c, solver="gram_sgd", lr=0.1), fair_product(c, lam=0.0)
    plain, best = oracles.cosine(ideal, B @ A), oracles.best_cosine(c)
    assert plain + 0.5 * (best - plain) < oracles.cosine(ideal, descended) <= best + 1e-12
    assert oracles.cosine(ideal, closed) > plain + 0.9 * (best - plain)
    errors = [np.linalg.norm(ideal - product) for product in (closed, descended, B @ A)]
    assert errors[0] < 0.5 * errors[1] < 0.5 * errors[2]


@pytest.mark.parametrize("seed", range(3))
def test_a_xavier_start_is_harmful_at_small_lam(seed: int) -> None:
    """The draw is larger than a trained B, and λ takes away less than 1 − (1 − 2·lr·λ)^1000 = 18 % of it.

    After the paper's 1000 steps at lr 0.01 and λ 0.01, on factors of a trained adapter's size (B well under the
    draw's bound √(6/(d + r))), the product is further from ΔW than from the start zero, and than averaging is.
    """
    c = rotated_clients(seed)
    c = dataclasses.replace(c, B=tuple(0.05 * b for b in c.B))
    ideal, (A, B) = oracles.ideal_update(c), oracles.factor_means(c)
    options = {"solver": "gram_sgd", "lam": 0.01}
    zero, noisy = (fair_product(c, **options, delta_init=start) for start in ("zero", "xavier"))
    errors = [np.linalg.norm(ideal - product) / np.linalg.norm(ideal) for product in (zero, noisy, B @ A)]
    assert errors[1] > 2 * errors[0] and errors[1] > 2 * errors[2]


def test_the_noise_of_a_xavier_start_decays_by_its_law() -> None:
    """Where the cosine has no gradient (ΔW = 0), only (1 − 2·lr·λ) a step is left: 0.8187 after 1000."""
    start = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    zero, G = torch.zeros(7, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    ours = gram_sgd(zero, G, 0.0, zero, start, lam=0.01, steps=1000, lr=0.01)
    theirs = dense_sgd(torch.zeros(7, 5, dtype=torch.float64), Factors(torch.ones(3, 5).double(), zero), start,
                       lam=0.01, steps=1000, lr=0.01)  # fmt: skip
    np.testing.assert_allclose(ours.numpy(), start.numpy() * (1 - 2e-4) ** 1000, rtol=1e-10)
    np.testing.assert_allclose(theirs.numpy(), ours.numpy(), rtol=1e-10)
    assert (1 - 2e-4) ** 1000 == pytest.approx(0.8187, abs=1e-4)


@pytest.mark.parametrize(
    ("scale", "size", "solver"),
    slow_unless(
        lambda scale, size, solver: solver == "gram_sgd" or (scale, size) in (("cosine", 1e4), ("relative", 1e-4)),
        itertools.product(["cosine", "relative"], SIZES, ["gram_sgd", "dense_sgd"]),
    ),
)
def test_whatever_the_size_of_B_a_descent_converges_or_says_that_it_has_not(solver, size, scale, caplog) -> None:
    """By default, within 1 % of the least value that L-BFGS finds; after three steps it is not, and says so."""
    c = draw_clients(0, 9, 14, [3] * 4, spread=0.3)
    c = dataclasses.replace(c, A=tuple(np.linalg.qr(a.T)[0].T + 0.1 * b for a, b in zip(c.A[:1] * 4, c.A, strict=True)))
    c = dataclasses.replace(c, B=tuple(b * (size / np.linalg.norm(oracles.factor_means(c)[1])) for b in c.B))
    mean, lam = oracles.factor_means(c)[1], 0.01 if scale == "cosine" else 0.01 / size**2
    least = oracles.least_cosine_loss(c, lam)
    for steps in (1000, 3):
        caplog.clear()
        options = {"solver": solver, "lam_scale": scale, "steps": steps, "diagnostics": False}
        made = create_aggregator("lora_fair", **options).aggregate(c.updates(), 7)
        B = made.layers["layer"].B.numpy()
        near = oracles.cosine_loss(c, B - mean, lam) <= 1.011 * least + 1e-12
        assert ("unconverged" in made.diagnostics) == (not near) == bool(caplog.records)
        assert np.linalg.norm(B) < 2 * size
        assert near or steps == 3
        if caplog.records:
            assert f"round 7: strategy.solver={solver}: has not converged after strategy.steps=3" in caplog.text
    assert near or caplog.records


def test_a_fixed_rate_lets_a_small_B_grow() -> None:
    """The negative control: the paper's 0.01 as it is, on ‖B̄‖ = 1e-3."""
    c = draw_clients(0, 9, 14, [3] * 4, spread=0.3)
    c = dataclasses.replace(c, B=tuple(b * (1e-3 / np.linalg.norm(oracles.factor_means(c)[1])) for b in c.B))
    A, B = (torch.tensor(value) for value in oracles.factor_means(c))
    M, G = image(c.factors(), list(c.p), A), A @ A.T
    ideal_norm = norm(stack(c.factors(), list(c.p)))
    grown = {
        rate: float((B + gram_sgd(M, G, ideal_norm, B, torch.zeros_like(B), 0.01, 100, rate)).norm() / B.norm())
        for rate in (0.01, normalised_rate(G, B, 0.01, 0.01))
    }
    assert list(grown.values())[0] > 10 and list(grown.values())[1] < 2
