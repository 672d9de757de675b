"""What the gate compares updates with is reckoned once for a start, and is that of its formulas."""

from __future__ import annotations

import pytest
import torch

from strategies.server.bounds import KnownBounds
from strategies.server.gate import Gate

D, K, R = 5, 7, 3
TRAINED = frozenset({"l/A", "l/B", "head/weight"})


def start() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"l/A": (R, K), "l/B": (D, R), "head/weight": (4, D), "head/bias": (4,)}
    return {name: 9 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def test_bounds_are_those_of_the_formulas() -> None:
    sent = start()
    bounds = Gate(max_factor_ratio=6.0, max_product_ratio=4.0).bounds(sent, TRAINED)
    sizes = {name: float(value.double().square().sum().sqrt()) for name, value in sent.items()}
    assert bounds.starts == pytest.approx(sizes, rel=1e-6) and bounds.numbers == R * K + D * R + 4 * D + 4
    assert bounds.formats == {name: (tuple(sent[name].shape), torch.float32) for name in TRAINED}
    for name, (low, high) in bounds.sizes.items():
        assert high == pytest.approx(6 * max(min(sent[name].shape) ** 0.5, sizes[name]), rel=1e-6)
        assert low == pytest.approx(0.0 if name == "head/weight" else sizes[name] / 6, rel=1e-6)
    assert bounds.products == {"l": (pytest.approx(4 * D**0.5), ("l/A", "l/B"))}


def test_a_factor_that_is_trained_alone_has_no_lower_limit() -> None:
    assert Gate().bounds(start(), frozenset({"l/B"})).sizes["l/B"][0] == 0.0


def test_they_are_made_once_for_a_start_and_what_comes_back() -> None:
    known, made = KnownBounds(), []
    one, other = start(), start()

    def of(sent: dict[str, torch.Tensor], trained: frozenset[str]) -> object:
        return known.of(sent, trained, lambda: made.append(sent) or Gate().bounds(sent, trained))

    first, fewer = of(one, TRAINED), frozenset({"l/B"})
    assert of(one, TRAINED) is first and len(made) == 1
    # Another start counts for itself, equal or not; so does another set of names.
    assert of(other, TRAINED) is not first and of(one, fewer) is not first and len(made) == 3
