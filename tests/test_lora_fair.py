"""LoRA-FAIR's correction against dense least squares, the dense cosine objective, and its own laws.

Tolerances: rtol 1e-7 where a system in Ā is solved, whose condition `well_posed` keeps under 1e3 (1e6 in G, times
1e-16 a digit, with room); 1e-9 between two ways to take the same steps of descent.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedinit.factors import Factors, norm, stack
from strategies import create_aggregator
from strategies.aggregator import mean_factors
from strategies.lora_fair import dense_sgd, gram_sgd, moments, ridge_correction
from tests import oracles
from tests.oracles import Clients, clients, draw_clients, well_posed

quick = settings(deadline=None, max_examples=40)
lams = st.sampled_from([0.0, 1e-3, 0.01, 0.1, 1.0, 30.0])
scales = st.sampled_from(["relative", "absolute"])
NO_LAM = {"solver": "closed_form", "lam": 0.0}


def fair(c: Clients, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(A, B) that the method makes of the clients."""
    layer = create_aggregator("lora_fair", **options).aggregate(c.updates(), 1).layers["layer"]
    return layer.A.numpy(), layer.B.numpy()


def fair_product(c: Clients, **options: Any) -> np.ndarray:
    A, B = fair(c, **options)
    return B @ A


def rotated_clients(seed: int = 0, d: int = 20, k: int = 14, rank: int = 4, count: int = 6) -> Clients:
    """Clients that agree on the product, up to noise, and have each turned the factors a little their own way."""
    rng = np.random.default_rng(seed)
    near = draw_clients(seed, d, k, [rank] * count, spread=0.1)
    turns = [np.linalg.qr(np.eye(rank) + 0.25 * rng.standard_normal((rank, rank))) for _ in range(count)]
    return near.regauged([q * np.sign(np.diag(r)) for q, r in turns])


# -- the closed form ---------------------------------------------------------------------------------------------------


@quick
@given(clients(), lams, scales)
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
    """λ/‖B̄‖²: with B_i/c, c·A_i and ΔB/c the objective that is descended has the same value.

    Shown by one step at lr/c², since the gradient in ΔB grows by c.
    """
    c, times = rotated_clients(), 10.0
    turned = c.regauged([np.eye(4) / times] * 6)
    descent = {"solver": "gram_sgd", "lam": 3.0, "lam_scale": "relative", "steps": 40}
    one = fair_product(c, **descent, lr=0.05)
    other = fair_product(turned, **descent, lr=0.05 / times**2)
    np.testing.assert_allclose(one, other, rtol=1e-9)
    fixed = {**descent, "lam_scale": "absolute"}
    one, other = fair_product(c, **fixed, lr=0.05), fair_product(turned, **fixed, lr=0.05 / times**2)
    assert np.linalg.norm(one - other) > 1e-4 * np.linalg.norm(one)


def test_the_default_scale_follows_the_solver() -> None:
    """relative for the closed form, absolute for the descents, as the paper has it."""
    c = rotated_clients()
    for solver, scale in [("closed_form", "relative"), ("gram_sgd", "absolute"), ("dense_sgd", "absolute")]:
        options = {"solver": solver, "lam": 0.5, "steps": 5}
        np.testing.assert_array_equal(fair(c, **options)[1], fair(c, **options, lam_scale=scale)[1])
        other = {"relative": "absolute", "absolute": "relative"}[scale]
        assert np.abs(fair(c, **options)[1] - fair(c, **options, lam_scale=other)[1]).max() > 1e-6


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
    """M = ΔW Aᵀ for a given A, under (B_i R_i, R_i⁻¹ A_i); M from the averages, B̄ĀAᵀ, does see it (control)."""
    rng = np.random.default_rng(seed)
    rank = len(c.A[0])
    cores = [np.linalg.qr(rng.standard_normal((rank, rank)))[0] * rng.uniform(0.5, 2) for _ in c.A]
    turned = c.regauged(cores)
    A = rng.standard_normal(c.A[0].shape)
    (one, G), (other, _) = (moments(x.factors(), list(x.p), torch.tensor(A)) for x in (c, turned))
    np.testing.assert_allclose(G.numpy(), A @ A.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one.numpy(), oracles.ideal_update(c) @ A.T, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-8, atol=1e-8)
    naive = [mean_factors(x.factors(), list(x.p)).dense().numpy() @ A.T for x in (c, turned)]
    assert np.linalg.norm(naive[0] - naive[1]) > 1e-4 * np.linalg.norm(naive[0])


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
    """Every A_i has row 0 again as its last row, so Ā has rank r − 1 without a zero in it, and G is singular up to
    rounding, which grows with k."""
    for seed in range(10):
        c = draw_clients(seed, d, k, [rank] * 3, [3, 1, 2])
        c = dataclasses.replace(c, A=tuple(np.vstack([a[:-1], a[:1]]) for a in c.A))
        A, B = fair(c, **NO_LAM)
        delta = oracles.ridge_correction(c, 0.0)
        np.testing.assert_allclose(B - oracles.factor_means(c)[1], delta, rtol=1e-7, atol=1e-7)
        assert oracles.cosine(oracles.ideal_update(c), B @ A) == pytest.approx(oracles.best_cosine(c), abs=1e-9)


def test_no_A_at_all() -> None:
    """Ā = 0: nothing can be corrected, and nothing is."""
    zero = torch.zeros(3, 3, dtype=torch.float64)
    M, B = torch.zeros(5, 3, dtype=torch.float64), torch.ones(5, 3, dtype=torch.float64)
    for lam in (0.0, 0.5):
        assert not ridge_correction(M, zero, B, lam).any()


# -- the descents ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    c=clients(min_clients=2),
    side=st.sampled_from(["B", "A", "both"]),
    start=st.sampled_from(["zero", "xavier"]),
    lam=st.sampled_from([0.0, 0.01, 1.0]),
    scale=scales,
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


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.integers(2, 7), st.integers(2, 7), st.sampled_from([0.0, 0.3]))
def test_the_gradient_is_that_of_the_dense_objective(seed: int, d: int, k: int, lam: float) -> None:
    """One step of size one against central differences, away from ΔB = 0. Differences with step 1e-5 are good to
    1e-10 in truncation and 1e-11 in rounding, times third derivatives of order ten: 1e-7."""
    c = draw_clients(seed, d, k, [2, 2, 1], [3, 1, 2])
    A, B = oracles.factor_means(c)
    delta = 0.3 * np.random.default_rng(seed).standard_normal(B.shape)
    assume(np.linalg.norm((B + delta) @ A) > 0.5)
    ideal = stack(c.factors(), list(c.p))
    M, G = moments(c.factors(), list(c.p), torch.tensor(A))
    moved = gram_sgd(M, G, norm(ideal), torch.tensor(B), torch.tensor(delta), lam, steps=1, lr=1.0)
    np.testing.assert_allclose(delta - moved.numpy(), oracles.cosine_gradient(c, delta, lam), rtol=1e-6, atol=1e-7)


def test_where_the_average_vanishes_both_descents_stand_still() -> None:
    """B̄ = 0 with ΔW ≠ 0: the cosine of a zero matrix has no gradient. (A floor under the norm would make it huge.)"""
    c = draw_clients(0, 6, 9, [2, 2])
    c = dataclasses.replace(c, B=(c.B[0], -c.B[0]))
    assert np.linalg.norm(oracles.ideal_update(c)) > 0.1
    for solver in ("gram_sgd", "dense_sgd"):
        assert not fair(c, solver=solver, steps=3)[1].any()
    closed = fair_product(c, **NO_LAM)  # which has no such trouble
    assert oracles.cosine(oracles.ideal_update(c), closed) == pytest.approx(oracles.best_cosine(c), abs=1e-9)


def test_a_very_small_update_is_descended_like_a_large_one() -> None:
    """Products of norm 1e-10 have a cosine too; both descents take the same step there."""
    c = draw_clients(0, 6, 9, [2, 2])
    c = dataclasses.replace(c, B=tuple(1e-10 * b for b in c.B))
    theirs = oracles.factor_means(c)[1] + oracles.cosine_descent(c, 0.0, steps=1, lr=1e-22)
    for solver in ("gram_sgd", "dense_sgd"):
        ours = fair(c, solver=solver, steps=1, lr=1e-22, lam=0.0)[1]
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
        assert np.abs(ours - oracles.factor_means(c)[1]).max() > 1e-14


def test_the_descent_lies_between_averaging_and_the_best() -> None:
    """Turned clients: the cosine rises from FedIT's nearly to the best, while the magnitude stays wrong; the closed
    form mends both."""
    c = rotated_clients()
    ideal, (A, B) = oracles.ideal_update(c), oracles.factor_means(c)
    descended, closed = fair_product(c, solver="gram_sgd", lr=0.1), fair_product(c)
    plain, best = oracles.cosine(ideal, B @ A), oracles.best_cosine(c)
    assert plain + 0.5 * (best - plain) < oracles.cosine(ideal, descended) <= best + 1e-12
    assert oracles.cosine(ideal, closed) > plain + 0.9 * (best - plain)
    errors = [np.linalg.norm(ideal - product) for product in (closed, descended, B @ A)]
    assert errors[0] < 0.5 * errors[1] < 0.5 * errors[2]


@pytest.mark.parametrize("seed", range(3))
def test_a_xavier_start_is_harmful_at_small_lam(seed: int) -> None:
    """Its noise is outside what the cosine sees least, and λ removes (1 − 2·lr·λ)^1000 = 0.82 of nothing much.

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
