"""Rules against bad clients: their formulas on dense vectors in float64, their laws, and what a mean does instead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedinit.errors import InputError, RunFailed
from strategies.robust import ROBUST, create_robust
from strategies.robust.contract import Changes, Robust, refuse_misjudged
from strategies.robust.multi_krum import MultiKrum

RULES = [(name, {"root": 2} if name == "trust" else {}) for name in sorted(ROBUST) if name != "none"]
every = pytest.mark.parametrize(("name", "options"), RULES, ids=[name for name, _ in RULES])


def rule(name: str, **options) -> Robust:
    made = create_robust(name, options)
    assert made is not None
    return made


def vectors(seed: int, count: int = 7, size: int = 12, spread: float = 0.5) -> np.ndarray:
    """Changes with a direction in common, (K, size)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(size) + spread * rng.standard_normal((count, size))


def shares(count: int, seed: int = 0) -> np.ndarray:
    p = np.random.default_rng(seed).uniform(1, 2, count)
    return p / p.sum()


def changes(U: np.ndarray, p: np.ndarray | None = None) -> Changes:
    p = np.full(len(U), 1 / len(U)) if p is None else p
    return Changes(range(len(U)), p.tolist(), torch.from_numpy(U @ U.T))


def weigh(name: str, U: np.ndarray, p: np.ndarray | None = None, **options) -> np.ndarray:
    return rule(name, **options).weigh(changes(U, p)).numpy()


@every
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([0.01, 0.5, 5.0]))
def test_weights_are_shares_and_follow_their_clients(name, options, seed, spread):
    U, p = vectors(seed, spread=spread), shares(7, seed)
    w = weigh(name, U, p, **options)
    assert (w >= 0).all() and w.sum() <= 1 + 1e-12
    order = np.random.default_rng(seed).permutation(7)
    if "root" in options:
        options = {"root": int(np.flatnonzero(order == options["root"])[0])}
    np.testing.assert_allclose(weigh(name, U[order], p[order], **options), w[order], rtol=1e-6, atol=1e-9)


@every
def test_clients_that_agree_count_as_they_would_without_a_rule(name, options):
    U, p = np.tile(vectors(0, 1), (7, 1)), shares(7)
    options = options | ({"bad": 0} if name == "multi_krum" else {})
    options |= {"tau": 1.0} if name == "centered_clipping" else {}
    np.testing.assert_allclose(weigh(name, U, p, **options), p, rtol=1e-6)


@every
def test_two_of_seven_that_went_the_other_way_twenty_times_as_far(name, options):
    """The mean goes the other way with them; what a rule makes of the round goes the honest one's."""
    U = vectors(1, spread=0.3)
    honest = U[2:].mean(0)
    U[:2] *= -20
    assert np.dot(U.mean(0), honest) < 0  # the control
    moved = weigh(name, U, **options) @ U
    assert np.dot(moved, honest) > 0.35 * np.dot(honest, honest)


def test_bounded_is_the_mean_of_clipped_changes():
    U, p = vectors(2, spread=1.0), shares(7)
    norms = np.linalg.norm(U, axis=1)
    limit = 0.8 * np.sort(norms)[3]
    clipped = sum(share * u * min(1, limit / n) for share, u, n in zip(p, U, norms, strict=True))
    np.testing.assert_allclose(weigh("bounded", U, p, tau=0.8) @ U, clipped, rtol=1e-10)


def test_the_geometric_median_has_the_least_sum_of_distances():
    """Its gradient Σ p_i (v − U_i)/‖v − U_i‖ is nought, and nothing near it is better."""
    U, p = vectors(3, spread=1.0), shares(7)
    v = weigh("geometric_median", U, p, iterations=300) @ U
    away = v - U
    assert np.linalg.norm((p[:, None] * away / np.linalg.norm(away, axis=1, keepdims=True)).sum(0)) < 1e-6

    def cost(point: np.ndarray) -> float:
        return float(p @ np.linalg.norm(point - U, axis=1))

    rng = np.random.default_rng(0)
    assert all(cost(v + step * rng.standard_normal(12)) > cost(v) for step in (1e-3, 1e-2, 1.0) for _ in range(20))
    assert cost(v) < cost(p @ U)


def test_where_most_agree_the_geometric_median_is_there():
    """More than half of the weight in one point: the median is that point, however far away the others are."""
    U = np.concatenate([np.tile(vectors(4, 1), (4, 1)), 1e3 * vectors(5, 3)])
    np.testing.assert_allclose(weigh("geometric_median", U, iterations=300) @ U, U[0], rtol=1e-3)


def krum(U: np.ndarray, f: int, left: list[int]) -> list[int]:
    """The clients that are left by Krum's score, from its definition."""

    def score(i: int) -> float:
        others = sorted(float(((U[i] - U[j]) ** 2).sum()) for j in left if j != i)
        return sum(others[: max(len(left) - f - 2, 1)])

    return sorted(left, key=score)


@pytest.mark.parametrize("f", [0, 1, 2])
def test_multi_krum_keeps_the_lowest_scores(f):
    U, p = vectors(6, spread=1.0), shares(7)
    kept = krum(U, f, [*range(7)])[: 7 - f]
    expected = np.where(np.isin(range(7), kept), p, 0)
    np.testing.assert_allclose(weigh("multi_krum", U, p, bad=f), expected / expected.sum(), rtol=1e-12)


def test_bulyans_selection_scores_anew_after_each():
    U, f, left, kept = vectors(0, 9, spread=1.0), 2, [*range(9)], []
    while len(kept) < 9 - 2 * f:
        kept.append(krum(U, f, left)[0])
        left.remove(kept[-1])
    w = weigh("multi_krum", U, bad=f, selection="iterated")
    assert sorted(np.flatnonzero(w)) == sorted(kept) and np.allclose(w[w > 0], 1 / len(kept))
    assert sorted(kept) != sorted(krum(U, f, [*range(9)])[: len(kept)])  # the two selections differ here


def test_centred_clipping_moves_its_centre():
    U, p = vectors(8, spread=1.0), shares(7)
    radius, v = 0.5 * np.sort(np.linalg.norm(U, axis=1))[3], np.zeros(12)
    for _ in range(4):
        v = v + sum(q * (u - v) * min(1, radius / np.linalg.norm(u - v)) for q, u in zip(p, U, strict=True))
    np.testing.assert_allclose(weigh("centered_clipping", U, p, tau=0.5, iterations=4) @ U, v, rtol=1e-9, atol=1e-12)
    one = weigh("centered_clipping", U, p, tau=0.5, iterations=1)
    np.testing.assert_allclose(one, weigh("bounded", U, p, tau=0.5), rtol=1e-12)


def test_trust_is_the_cosine_with_the_roots_change():
    U, p = vectors(9, spread=1.5), shares(7)
    U[4] *= -1
    norms = np.linalg.norm(U, axis=1)
    scores = p * np.maximum(U @ U[2] / norms / norms[2], 0)
    expected = scores / scores.sum() * np.minimum(1, norms[2] / norms)
    w = weigh("trust", U, p, root=2)
    np.testing.assert_allclose(w, expected, rtol=1e-10)
    assert w[4] == 0 and w[2] > 0


def test_where_the_root_trusts_nobody_its_own_change_is_the_rounds():
    U = np.stack([-np.ones(4), np.ones(4), -np.ones(4)])
    np.testing.assert_allclose(weigh("trust", U, root=1), [0, 1, 0])


def test_a_rule_says_what_it_cannot_judge():
    assert rule("trust", root=3).fault([0, 1, 2]) == "robust.root=3: the trusted client's update is not there"
    assert rule("trust", root=3).fault([1, 3]) == ""
    few = rule("multi_krum", bad=2).fault(range(4))
    assert few == "robust.bad=2: with 2 bad updates among them it needs 5 or more, there are 4"
    assert rule("multi_krum", bad=2).fault(range(5)) == rule("bounded").fault([0]) == ""
    assert MultiKrum(bad=2, selection="iterated").fault(range(4))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("bounded", {"tau": 0.0}, "robust.tau=0.0"),
        ("multi_krum", {"bad": 0.5}, "robust.bad=0.5"),
        ("multi_krum", {"bad": -1}, "robust.bad=-1"),
        ("geometric_median", {"iterations": 0}, "robust.iterations=0"),
        ("trust", {"root": -2}, "robust.root=-2"),
        ("median", {}, "robust"),
        ("bounded", {"root": 1}, "robust.root: robust=bounded does not read it; robust=trust does"),
    ],
)
def test_wrong_options_end_in_one_line(name, options, said):
    with pytest.raises(InputError, match=said):
        create_robust(name, options)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (torch.tensor([0.5, float("nan")]), "0.5, nan, expected none below 0"),
        (torch.tensor([0.5, float("inf")]), "0.5, inf"),
        (torch.tensor([1.5, -0.5]), "1.5, -0.5, expected none below 0"),
        (torch.tensor([1.0, 1.0]), "1, 1, expected none below 0 and a sum of 1 or less"),
        (torch.tensor([1.0]), r"float32 \(1,\), expected a tensor \(2,\)"),
        ([0.5, 0.5], "list, expected a tensor"),
        (None, "NoneType"),
    ],
)
def test_what_are_no_weights_is_told(weights, said) -> None:
    """Of a rule of one's own; a negative weight was a larger one of the start."""
    with pytest.raises(RunFailed, match=f"^MultiKrum weighs 2 clients as {said}"):
        refuse_misjudged(weights, 2, rule("multi_krum"))
    kept = torch.tensor([0.25, 0.5], dtype=torch.float64)
    assert refuse_misjudged(kept, 2, rule("multi_krum")) is kept
