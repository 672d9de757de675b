"""How much each client's update counts in a round: the method's own p_i, none of them above the gate's limit."""

from __future__ import annotations

from collections.abc import Sequence

from strategies.aggregator import Update
from strategies.server.method import Method


def weigh(updates: Sequence[Update], method: Method) -> dict[int, float]:
    """{client: its weight}, Σ = 1, in the order of the updates."""
    weights = method.gate.capped(method.aggregator.weights(updates))
    return {update.client: weight for update, weight in zip(updates, weights, strict=True)}
