"""What an attacker's guesses prove of ε: the one-run membership audit.

Steinke, Nasr & Jagielski, NeurIPS 2023, "Privacy auditing with one (1) training run", arXiv 2305.08846. Of m canaries
each is put into the training data or left out by a fair coin. The attacker sees what the training released, and guesses
of r canaries of its choice whether they were in; v guesses are right. By their main theorem, in the form that their
Appendix D computes, if the training is (ε, δ)-DP, then for every v

    P[right ≥ v] ≤ β + 2mδ·α,     β = P[W ≥ v],     α = max_{1≤i≤v} P[v − i ≤ W < v] / i,

with W ~ Binomial(r, e^ε/(1 + e^ε)). An ε under which that is below `p` is refuted with confidence 1 − p.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The most that so many right guesses can be likely under (ε, δ)-DP.

    canaries: m. guesses: r ≤ m. right: v ≤ r. Raises ValueError for numbers that are out of order.
    """
    from scipy.stats import binom  # here: it takes a second to import

    if not 0 <= right <= guesses <= canaries or epsilon < 0 or not 0 <= delta <= 1:
        raise ValueError(f"{right} of {guesses} guesses about {canaries} canaries at ε = {epsilon}, δ = {delta}")
    accuracy = 1 / (1 + math.exp(-epsilon))  # of randomised response, the ε-DP mechanism that is easiest to guess
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, accuracy))  # P[v − i ≤ W < v] for i = 1 … v
    alpha = float((below / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, float(binom.sf(right - 1, guesses, accuracy)) + 2 * canaries * delta * alpha)


def least_epsilon(canaries: int, guesses: int, right: int, delta: float, p: float = 0.05) -> float:
    """The lower bound: a training that lets so many guesses be right has an ε of this or more at δ, with confidence
    1 − p; 0 where the guesses prove nothing. Arguments as of `p_value`."""
    low, high = 0.0, 1.0
    while p_value(canaries, guesses, right, high, delta) < p:  # some ε makes all guesses right
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        if p_value(canaries, guesses, right, middle, delta) < p:
            low = middle
        else:
            high = middle
    return low


def right_guesses(scores: Tensor, included: Tensor, guesses: int) -> int:
    """How often an attacker is right who takes the canaries of the highest scores for members and those of the lowest
    for left out, guesses/2 of either.

    scores: (m,), the higher the likelier a member. included: (m,) bool, the coins. guesses: even, m at most.
    """
    if guesses % 2 or not 0 <= guesses <= len(scores):
        raise ValueError(f"{guesses} guesses about {len(scores)} canaries; expected an even number of no more")
    order = scores.argsort(descending=True)
    half = guesses // 2
    return int(included[order[:half]].sum()) + int((~included[order[len(order) - half :]]).sum())
