"""LoRA-FAIR's correction against dense least squares, and its own laws. The descents are in test_fair_descent.py.

rtol 1e-7 where a system in Ā is solved: `well_posed` keeps its condition under 1e3, that of G under 1e6, and 1e6
times the 1e-16 of float64, with room, is 1e-9.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from strategies.means import image
from strategies.methods.fair_correction import ridge_correction
from strategies.methods.fair_moments import Moments
from tests.support import oracles
from tests.support.oracles import Clients, clients, draw_clients, fair, fair_product, rotated_clients, well_posed

quick = settings(deadline=None, max_examples=20)
lams = st.sampled_from([0.0, 1e-3, 0.01, 0.1, 1.0, 30.0])
ridges = st.sampled_from(["relative", "absolute"])
scales = st.sampled_from(["cosine", "relative", "absolute"])
NO_LAM = {"solver": "closed_form", "lam": 0.0}


# -- the closed form ---------------------------------------------------------------------------------------------------


@quick
@given(clients(), lams, ridges)
def test_closed_form_is_the_least_squares_solution(c: Clients, lam: float, scale: str) -> None:
    assume(well_posed(c))
    A, B = fair(c, solver="closed_form", lam=lam, lam_scale=scale)
    means = oracles.factor_means(c)
    delta = oracles.ridge_correction(c, oracles.relative_lam(c, lam) if scale == "relative" else lam)
    np.testing.assert_allclose(A, means[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(B - means[1], delta, rtol=1e-7, atol=1e-7 * np.abs(means[1]).max())


@quick
@given(clients(min_clients=2))
def test_without_lam_it_attains_the_best_cosine(c: Clients) -> None:
    """‖ΔW P_A‖/‖ΔW‖, never below FedIT's cosine, and above that of nearby corrections; and the magnitude is right."""
    assume(well_posed(c))
    A, B = fair(c, **NO_LAM)
    ideal = oracles.ideal_update(c)
    ours = oracles.cosine(ideal, B @ A)
    assert ours == pytest.approx(oracles.best_cosine(c), abs=1e-9)
    means = oracles.factor_means(c)
    assert ours >= oracles.cosine(ideal, means[1] @ means[0]) - 1e-12
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert ours >= oracles.cosine(ideal, (B + 0.1 * rng.standard_normal(B.shape)) @ A) - 1e-12
    projected = ideal @ oracles.row_projector(A)
    np.testing.assert_allclose(B @ A, projected, rtol=1e-7, atol=1e-7 * np.linalg.norm(projected))


def test_averaging_misses_the_best_cosine() -> None:
    """The negative control of the test above, on clients whose factors are turned against each other."""
    c = rotated_clients()
    means = oracles.factor_means(c)
    assert oracles.cosine(oracles.ideal_update(c), means[1] @ means[0]) < oracles.best_cosine(c) - 1e-3


@quick
@given(clients(), st.sampled_from([0.0, 0.01, 1.0]), st.sampled_from(["B", "A", "both"]), scales)
def test_one_client_or_equal_clients_are_not_corrected(c: Clients, lam: float, side: str, scale: str) -> None:
    """ΔW = B̄Ā then, so M = B̄G and ΔB = 0 for every λ."""
    count = len(c.A)
    same = Clients(c.A[:1] * count, c.B[:1] * count, c.examples)
    assume(well_posed(same))
    for one in (same, Clients(c.A[:1], c.B[:1], c.examples[:1])):
        A, B = fair(one, solver="closed_form", lam=lam, side=side, lam_scale=scale)
        np.testing.assert_allclose(A, c.A[0], rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(B, c.B[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("solver", ["gram_sgd", "dense_sgd"])
@pytest.mark.parametrize("side", ["B", "A", "both"])
def test_equal_clients_are_at_rest_in_the_descent(solver: str, side: str) -> None:
    """cos = 1 has no gradient; a client that differs has one (negative control)."""
    c = draw_clients(0, 9, 6, [3], [1])
    same = Clients(c.A * 3, c.B * 3, (1, 5, 2))
    A, B = fair(same, solver=solver, side=side, steps=50)
    np.testing.assert_allclose(A, c.A[0], rtol=1e-10)
    np.testing.assert_allclose(B, c.B[0], rtol=1e-10)
    other = draw_clients(1, 9, 6, [3] * 3)
    A, B = fair(other, solver=solver, side=side, steps=50)
    assert np.abs(B - oracles.factor_means(other)[1]).max() + np.abs(A - oracles.factor_means(other)[0]).max() > 1e-4


@quick
@given(clients(), st.sampled_from([0.0, 0.01, 1.0]), scales)
def test_side_A_is_the_transposed_problem(c: Clients, lam: float, scale: str) -> None:
    assume(well_posed(c))
    A, B = fair(c, side="A", solver="closed_form", lam=lam, lam_scale=scale)
    turned_A, turned_B = fair(c.padded.turned, side="B", solver="closed_form", lam=lam, lam_scale=scale)
    np.testing.assert_allclose(A, turned_B.T, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(B, turned_A.T, rtol=1e-12, atol=1e-12)


@quick
@given(clients(min_clients=2))
def test_both_sides_are_no_worse_than_one(c: Clients) -> None:
    """At λ = 0 the second step minimises the same error, from the first step's solution."""
    assume(well_posed(c))
    ideal = oracles.ideal_update(c)
    errors = [np.linalg.norm(ideal - fair_product(c, **NO_LAM, side=side)) for side in ("both", "B")]
    assert errors[0] <= errors[1] + 1e-9 * np.linalg.norm(ideal)


def test_both_sides_are_better_than_one_somewhere() -> None:
    c = rotated_clients(spread_seed := 3)
    ideal = oracles.ideal_update(c)
    errors = {side: np.linalg.norm(ideal - fair_product(c, **NO_LAM, side=side)) for side in ("both", "B", "A")}
    assert errors["both"] < 0.9 * min(errors["A"], errors["B"]), spread_seed


def test_square_symmetric_layers_hide_a_transpose() -> None:
    """Why shapes here are drawn with d ≠ k: a solver that took ΔWᵀ for ΔW is right where A_i = B_iᵀ, and only there.

    On a square layer that is not symmetric it is another answer, and ours is the one of ΔW; on any other layer its
    shapes do not fit.
    """
    c = draw_clients(0, 8, 8, [3] * 4)

    def wrong(c: Clients) -> np.ndarray:
        A, _ = oracles.factor_means(c)
        return oracles.ideal_update(c).T @ oracles.row_projector(A)

    symmetric = dataclasses.replace(c, A=tuple(b.T for b in c.B))
    np.testing.assert_allclose(fair_product(symmetric, **NO_LAM), wrong(symmetric), rtol=1e-7, atol=1e-9)
    ours = fair_product(c, **NO_LAM)
    right = oracles.ideal_update(c) @ oracles.row_projector(oracles.factor_means(c)[0])
    np.testing.assert_allclose(ours, right, rtol=1e-7, atol=1e-9)
    assert np.linalg.norm(ours - wrong(c)) > 0.5 * np.linalg.norm(ours)
    with pytest.raises(ValueError):
        wrong(draw_clients(0, 8, 5, [3] * 4))


# -- scales and gauges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.01, 1.0])
def test_relative_lam_does_not_see_how_size_is_shared_between_the_factors(lam: float) -> None:
    """(B_i/c, c·A_i): the product stays with relative λ, and moves with absolute λ (negative control)."""
    c = rotated_clients()
    turned = c.regauged([np.eye(4) / 10] * 6)
    for scale, moves in [("relative", False), ("absolute", True)]:
        one, other = (fair_product(x, solver="closed_form", lam=lam, lam_scale=scale) for x in (c, turned))
        change = np.linalg.norm(one - other) / np.linalg.norm(one)
        assert (change > 1e-5) if moves else (change < 1e-10)


def test_relative_lam_of_the_cosine_objective() -> None:
    """λ/‖B̄‖²: with B_i/c, c·A_i and ΔB/c the objective that is descended has the same value, and so does the rate."""
    c, times = rotated_clients(), 10.0
    turned = c.regauged([np.eye(4) / times] * 6)
    descent = {"solver": "gram_sgd", "lam": 3.0, "lam_scale": "relative", "steps": 40}
    one = fair_product(c, **descent, lr=0.05)
    other = fair_product(turned, **descent, lr=0.05)
    np.testing.assert_allclose(one, other, rtol=1e-9)
    fixed = {**descent, "lam_scale": "absolute"}
    one, other = fair_product(c, **fixed, lr=0.05), fair_product(turned, **fixed, lr=0.05)
    assert np.linalg.norm(one - other) > 1e-4 * np.linalg.norm(one)


def test_the_default_scale_is_the_papers() -> None:
    """λ against 1 − cos; to the descents, which have no other objective, absolute λ is the same."""
    c = rotated_clients()
    for solver in ("closed_form", "gram_sgd", "dense_sgd"):
        options = {"solver": solver, "lam": 0.5, **({} if solver == "closed_form" else {"steps": 5})}
        ours = fair(c, **options)[1]
        np.testing.assert_array_equal(ours, fair(c, **options, lam_scale="cosine")[1])
        assert np.abs(ours - fair(c, **options, lam_scale="relative")[1]).max() > 1e-6
        same = np.array_equal(ours, fair(c, **options, lam_scale="absolute")[1])
        assert same == (solver != "closed_form")


@quick
@given(clients(min_clients=2, mixed_ranks=False), st.integers(0, 2**31), st.sampled_from([0.0, 0.01, 1.0]))
def test_a_gauge_that_all_clients_share_changes_no_product(c: Clients, seed: int, lam: float) -> None:
    """A rotation, for any λ; any invertible R, at λ = 0."""
    assume(well_posed(c))
    rng = np.random.default_rng(seed)
    rank = len(c.A[0])
    R = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
    if lam == 0:
        R = R @ np.diag(rng.uniform(0.5, 2, rank))
    one, other = (fair_product(x, solver="closed_form", lam=lam) for x in (c, c.regauged([R] * len(c.A))))
    np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-7 * np.linalg.norm(one))


@quick
@given(clients(min_clients=2, mixed_ranks=False), st.integers(0, 2**31))
def test_the_target_does_not_see_a_gauge_of_each_client(c: Clients, seed: int) -> None:
    """M = ΔW Aᵀ for a given A, under (B_i R_i, R_i⁻¹ A_i)."""
    rng = np.random.default_rng(seed)
    rank = len(c.A[0])
    cores = [np.linalg.qr(rng.standard_normal((rank, rank)))[0] * rng.uniform(0.5, 2) for _ in c.A]
    turned = c.regauged(cores)
    A = rng.standard_normal(c.A[0].shape)
    one, other = (image(x.factors(), list(x.p), torch.tensor(A)) for x in (c, turned))
    np.testing.assert_allclose(one.numpy(), oracles.ideal_update(c) @ A.T, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-8, atol=1e-8)


# -- where Ā loses rank ------------------------------------------------------------------------------------------------


@quick
@given(clients(min_clients=2), st.integers(1, 4), st.sampled_from([0.0, 0.01]))
def test_zero_padding_stays_zero(c: Clients, extra: int, lam: float) -> None:
    """Rows that are zero in every A_i, as after padding to the server's rank: ΔB is zero there, and the rest is as
    if they were not there. λ is absolute, since tr(G)/r counts the padding."""
    assume(well_posed(c))
    wide = c.padded
    wide = dataclasses.replace(
        wide,
        A=tuple(np.pad(a, ((0, extra), (0, 0))) for a in wide.A),
        B=tuple(np.pad(b, ((0, 0), (0, extra))) for b in wide.B),
    )
    options = {"solver": "closed_form", "lam": lam, "lam_scale": "absolute"}
    (A, B), (narrow_A, narrow_B) = fair(wide, **options), fair(c, **options)
    assert not A[-extra:].any() and not B[:, -extra:].any()
    np.testing.assert_allclose(B[:, :-extra], narrow_B, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(A[:-extra], narrow_A, rtol=1e-12)


@pytest.mark.parametrize(("d", "k", "rank"), [(8, 12, 4), (40, 3072, 2), (40, 3072, 16)])
def test_dependent_rows_give_the_solution_of_least_norm(d: int, k: int, rank: int) -> None:
    """The last row of every A_i is the same combination of its other rows, so Ā has rank r − 1 without a zero in it,
    and G is singular up to rounding, which grows with k."""
    mix = np.random.default_rng(0).standard_normal((1, rank - 1))
    for seed in range(4):
        c = draw_clients(seed, d, k, [rank] * 3, [3, 1, 2])
        c = dataclasses.replace(c, A=tuple(np.vstack([a[:-1], mix @ a[:-1]]) for a in c.A))
        A, B = fair(c, **NO_LAM)
        delta = oracles.ridge_correction(c, 0.0)
        np.testing.assert_allclose(B - oracles.factor_means(c)[1], delta, rtol=1e-7, atol=1e-7)
        assert oracles.cosine(oracles.ideal_update(c), B @ A) == pytest.approx(oracles.best_cosine(c), abs=1e-9)


@pytest.mark.parametrize("lam", [1e-8, 1e-4, 0.0])
def test_nothing_moves_where_A_has_no_rows(lam: float) -> None:
    """Rounding of M there, over a small λ, was up to 1e-6 of B."""
    draw = torch.Generator().manual_seed(0)
    A = torch.randn(1, 30, generator=draw, dtype=torch.float64).expand(4, 30) * torch.tensor([[1.0], [2], [3], [5]])
    target = torch.randn(20, 30, generator=draw, dtype=torch.float64)
    B, G = torch.randn(20, 4, generator=draw, dtype=torch.float64), A @ A.T
    delta = ridge_correction(Moments.of((target @ A.T)[None], G[None]), B[None], lam)[0]
    v = torch.linalg.svd(A).U[:, :1]  # all that Ā has
    residual = (target - B @ A) @ A.T @ v
    torch.testing.assert_close(delta, residual / (v.T @ G @ v + lam) @ v.T, rtol=1e-11, atol=1e-12)


def test_no_A_at_all() -> None:
    """Ā = 0: nothing can be corrected, and nothing is."""
    B = torch.ones(1, 5, 3, dtype=torch.float64)
    known = Moments.of(torch.zeros(1, 5, 3, dtype=torch.float64), torch.zeros(1, 3, 3, dtype=torch.float64))
    for lam in (0.0, 0.5):
        assert not ridge_correction(known, B, lam).any()
