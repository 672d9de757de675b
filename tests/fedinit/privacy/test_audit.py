"""The one-run audit's bound, fedinit/privacy/audit.py: the theorem's formula in exact arithmetic, randomised response,
and figures of the paper."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from fedinit.privacy.audit import least_epsilon, p_value, right_guesses


def _by_formula(m: int, r: int, v: int, odds: Fraction, delta: Fraction) -> Fraction:
    """The theorem with e^ε = odds, in whole numbers."""
    q = odds / (1 + odds)
    pmf = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    alpha = max((sum(pmf[v - i : v], Fraction(0)) / i for i in range(1, v + 1)), default=Fraction(0))
    return min(Fraction(1), sum(pmf[v:], Fraction(0)) + 2 * m * delta * alpha)


@pytest.mark.parametrize("m, r, v", [(10, 10, 10), (40, 12, 9), (25, 20, 13), (8, 4, 0), (8, 0, 0)])
@pytest.mark.parametrize("odds", [Fraction(1), Fraction(3), Fraction(20)])
def test_it_is_the_theorem(m: int, r: int, v: int, odds: Fraction) -> None:
    for delta in (Fraction(0), Fraction(1, 100000), Fraction(1, 50)):
        expected = float(_by_formula(m, r, v, odds, delta))
        assert p_value(m, r, v, math.log(odds), float(delta)) == pytest.approx(expected, rel=1e-9)


def test_guesses_that_are_all_right_prove_what_is_written_out() -> None:
    """With δ = 0 and v = r the p-value is q^r, so that ε ≥ −log(p^(−1/r) − 1)."""
    for r in (5, 100, 1000):
        root = 0.05 ** (1 / r)
        assert least_epsilon(r, r, r, 0.0) == pytest.approx(math.log(root / (1 - root)), abs=1e-5)
    assert least_epsilon(1000, 1000, 1000, 0.0) == pytest.approx(5.8087, abs=1e-3)


def test_coins_prove_nothing_and_delta_takes_away() -> None:
    assert least_epsilon(100, 100, 50, 1e-5) == 0.0
    assert least_epsilon(100, 100, 100, 1e-5) < least_epsilon(100, 100, 100, 0.0)
    assert least_epsilon(10000, 100, 100, 1e-5) < least_epsilon(100, 100, 100, 1e-5)


def test_randomised_response_is_refuted_no_more_often_than_was_said() -> None:
    """A mechanism of known ε: each coin is told right with probability e^ε/(1 + e^ε). The bound is above ε in 5 % of
    runs at most, and not far below; the control claims half of it, and is refuted."""
    draw, epsilon, m = torch.Generator().manual_seed(0), 1.5, 400
    told = (torch.rand(200, m, generator=draw) < 1 / (1 + math.exp(-epsilon))).sum(1)
    bounds = torch.tensor([least_epsilon(m, m, int(right), 0.0) for right in told])
    assert float((bounds > epsilon).float().mean()) <= 0.08  # 5 %, and 2.4 standard errors
    assert float(bounds.median()) > 0.8 * epsilon and float((bounds > epsilon / 2).float().mean()) > 0.95


def test_the_highest_and_the_lowest_scores_are_guessed() -> None:
    scores, included = torch.tensor([0.1, 5.0, 3.0, -2.0, 0.2, -1.0]), torch.tensor([1, 1, 0, 0, 1, 1]).bool()
    assert right_guesses(scores, included, 2) == 2 and right_guesses(scores, included, 4) == 2
    with pytest.raises(ValueError, match="3 guesses about 6 canaries"):
        right_guesses(scores, included, 3)
    with pytest.raises(ValueError, match="7 of 4 guesses"):
        p_value(8, 4, 7, 1.0, 0.0)
