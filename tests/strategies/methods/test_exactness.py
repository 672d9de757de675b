"""Methods that lose nothing of Σ p_iB_iA_i, to the last digits: 1e-12 of its norm in float64, 1e-6 in float32.

The sums run in float64 whatever the updates' type, so in float32 only the rounding of the result is left, 6e-8.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Aggregate, Update
from tests.support.oracles import as_trained, draw_clients

EXACT = ["fed_sb", "fedex_lora", "fedsvd", "ffa_lora", "flora", "lora_a2", "ravan", "rolora"]
BIASED = ["fedit", "hetlora", "rbla", "lora_fair"]
DIGITS = {torch.float64: 1e-12, torch.float32: 1e-6}
D, K = 40, 56


def miss(name: str, dtype: torch.dtype, round: int, seed: int) -> float:
    """‖factors + residual − Σ p_iB_iA_i‖/‖Σ p_iB_iA_i‖, the sum over dense float64 products of what clients sent."""
    mixed = AGGREGATORS[name].mixed_ranks and name != "lora_a2"  # whose clients train fewer slots of whole factors
    c = draw_clients(seed, D, K, [4, 8, 2, 8, 4] if mixed else [8] * 5, [3, 50, 1, 20, 7])
    start = draw_clients(seed + 1, D, K, [8]).factors(dtype)[0]
    sent = [as_trained(name, own, start, round) for own in c.factors(dtype)]
    updates = [Update(i, n, {"layer": f}, {}) for i, (n, f) in enumerate(zip(c.examples, sent, strict=True))]
    previous = Aggregate(layers={"layer": as_trained(name, start, start, round)})
    made = create_aggregator(name).aggregate(updates, round, previous)
    ideal = sum(p * f.to(torch.float64).dense().numpy() for p, f in zip(c.p, sent, strict=True))
    parts = [made.layers["layer"], *made.residual.values()]
    whole = sum(f.to(torch.float64).dense().numpy() for f in parts)
    return float(np.linalg.norm(whole - ideal) / np.linalg.norm(ideal))


@pytest.mark.parametrize("dtype", DIGITS, ids=str)
@pytest.mark.parametrize("round", [1, 2])
@pytest.mark.parametrize("name", EXACT)
def test_nothing_of_the_ideal_update_is_lost(name, round, dtype):
    assert max(miss(name, dtype, round, seed) for seed in range(3)) <= DIGITS[dtype]


@pytest.mark.parametrize("name", BIASED)
def test_averaged_factors_miss_it(name):
    """The control: the same clients, both factors trained."""
    assert min(miss(name, torch.float64, 1, seed) for seed in range(3)) > 1e-2
