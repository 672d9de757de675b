"""What no sum over clients can be made of, which is all that is judged with the gate off."""

from __future__ import annotations

import pytest
import torch

from fedinit.scores import MAX_EXAMPLES
from strategies.server.faults import fault_of_sums

SENT = {"W/A": torch.ones(2, 3)}
FORMATS = {"W/A": ((2, 3), torch.float32)}


def fault(examples: object = 5, value: torch.Tensor = SENT["W/A"]) -> str | None:
    found = fault_of_sums({"W/A": value}, SENT, FORMATS, {"num-examples": examples})
    return None if found is None else found[0]


@pytest.mark.parametrize("examples", [1, 0.5, MAX_EXAMPLES])
def test_numbers_of_examples_that_can_be_shares(examples):
    assert fault(examples) is None


@pytest.mark.parametrize("examples", [0, -1, MAX_EXAMPLES + 1, 1e308, float("nan"), float("inf")])
def test_two_of_1e308_together_would_leave_nobody_a_share(examples):
    assert fault(examples) in ("weight", "metrics")


@pytest.mark.parametrize(
    ("size", "odd"), [(3e38, None), (4e38, "values"), (1e300, "values"), (float("nan"), "not_finite")]
)
def test_values_whose_squares_float64_does_not_hold(size, odd):
    assert fault(value=torch.full((2, 3), size, dtype=torch.float64)) == odd
