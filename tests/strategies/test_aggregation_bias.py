"""The bias of plain averaging and the quality of a method, as a run reports them, against dense matrices.

rel 1e-7: the systems behind the merged factors have a condition under 1e3 (`well_posed`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedinit.factors import Factors
from strategies import create_aggregator
from strategies.aggregator import UNCONVERGED, Aggregate, Update
from strategies.bias import measure_bias
from tests.support import oracles
from tests.support.oracles import Clients, clients, draw_clients, layer_product, well_posed

quick = settings(deadline=None, max_examples=20)

METHODS: dict[str, dict[str, Any]] = {
    "fedit": {},
    "lora_fair": {},
    "lora_fair A": {"side": "A"},
    "lora_fair both": {"side": "both"},
    "lora_fair gram": {"solver": "gram_sgd", "steps": 5},
    "lora_fair dense": {"solver": "dense_sgd", "steps": 5},
}


def aggregate(method: str, updates: list[Update]) -> Aggregate:
    return create_aggregator(method.split()[0], **METHODS[method]).aggregate(updates, 1)


def two_layers(*layers: Clients) -> list[Update]:
    """The same clients, with several layers of different shapes."""
    parts = [c.updates() for c in layers]
    return [
        dataclasses.replace(same[0], layers={f"layer{j}": u.layers["layer"] for j, u in enumerate(same)})
        for same in zip(*parts, strict=True)
    ]


@quick
@given(clients(min_clients=2), st.sampled_from(sorted(METHODS)))
def test_diagnostics_are_those_of_the_dense_matrices(c: Clients, method: str) -> None:
    assume(well_posed(c))
    made = aggregate(method, c.updates())
    ideal = oracles.ideal_update(c)
    theirs = {
        "bias": np.linalg.norm(oracles.covariance_bias(c)) / np.linalg.norm(ideal),
        "correctable": oracles.correctable(c),
        "cosine": oracles.cosine(ideal, layer_product(made)),
        "norm_ratio": np.linalg.norm(layer_product(made)) / np.linalg.norm(ideal),
    }
    # Five steps of a descent may be too few, which is counted beside the figures.
    figures = {name: value for name, value in made.diagnostics.items() if name != UNCONVERGED}
    assert figures == pytest.approx(theirs, rel=1e-7, abs=1e-9)


@quick
@given(st.tuples(clients(min_clients=3), clients(min_clients=3)))
def test_diagnostics_over_layers_are_those_of_one_block_diagonal_matrix(pair: tuple[Clients, Clients]) -> None:
    first, second = (Clients(c.A[:3], c.B[:3], (5, 2, 11)) for c in pair)
    assume(well_posed(first) and well_posed(second))
    measured = aggregate("fedit", two_layers(first, second)).diagnostics
    layers = (first, second)
    ideal = oracles.block_diagonal([oracles.ideal_update(c) for c in layers])
    bias = oracles.block_diagonal([oracles.covariance_bias(c) for c in layers])
    A, B = (oracles.block_diagonal(f) for f in zip(*map(oracles.factor_means, layers), strict=True))
    theirs = {
        "bias": np.linalg.norm(bias) / np.linalg.norm(ideal),
        "correctable": np.sum((bias @ oracles.row_projector(A)) ** 2) / np.sum(bias**2),
        "cosine": oracles.cosine(ideal, B @ A),
        "norm_ratio": np.linalg.norm(B @ A) / np.linalg.norm(ideal),
    }
    assert measured == pytest.approx(theirs, rel=1e-7, abs=1e-9)


def test_by_layer_they_are_those_of_each_layer_alone() -> None:
    """And not those of all layers together (the negative control)."""
    layers = [draw_clients(seed, 5, 7, [2, 2]) for seed in (3, 4)]
    updates = two_layers(*layers)
    whole = aggregate("lora_fair", updates)
    for name in ("layer0", "layer1"):
        alone = aggregate("lora_fair", [dataclasses.replace(u, layers={name: u.layers[name]}) for u in updates])
        assert whole.by_layer[name] == alone.diagnostics != whole.diagnostics
    assert not create_aggregator("lora_fair", diagnostics=False).aggregate(updates, 1).by_layer


def test_a_bias_of_one_millionth_is_still_measured() -> None:
    """‖ΔW‖² − ‖B̄Ā‖² in float64 would lose it: 1e-12 of relative bias squared is 1e-24."""
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((4, 9)), rng.standard_normal((7, 4))
    near = [(A + 1e-6 * rng.standard_normal(A.shape), B + 1e-6 * rng.standard_normal(B.shape)) for _ in range(3)]
    c = Clients(tuple(a for a, _ in near), tuple(b for _, b in near), (1, 2, 3))
    ours = aggregate("fedit", c.updates()).diagnostics["bias"]
    theirs = np.linalg.norm(oracles.covariance_bias(c)) / np.linalg.norm(oracles.ideal_update(c))
    assert 1e-13 < theirs < 1e-11
    assert ours == pytest.approx(theirs, rel=1e-3)  # A_i − Ā keeps ten of its digits; theirs does no better


@pytest.mark.parametrize("method", METHODS)
def test_no_update_at_all_is_measured_as_zero(method: str) -> None:
    """B = 0 everywhere, as before any training: no division by zero, and nothing is made up."""
    c = draw_clients(8, 5, 7, [2, 2])
    c = dataclasses.replace(c, B=(np.zeros((5, 2)),) * 2)
    made = aggregate(method, c.updates())
    assert made.diagnostics == {"bias": 0, "correctable": 0, "cosine": 0, "norm_ratio": 0}
    assert not layer_product(made).any()


def test_a_layer_without_a_minimum_beside_one_that_has_it():
    """Two clients whose averaged factors turn away from their products, in one layer of two: counted, and the rest of
    the figures are there. Two bad clients can bring that about."""

    def factors(a: float, b: float) -> Factors:
        return Factors(a * torch.ones(1, 3, dtype=torch.float64), b * torch.ones(4, 1, dtype=torch.float64))

    clients = ({"away": factors(3, -1), "plain": factors(1, 1)}, {"away": factors(-1, 3), "plain": factors(1, 2)})
    updates = [Update(i, 1, layers, {}) for i, layers in enumerate(clients)]
    measured = create_aggregator("lora_fair").aggregate(updates, 1)
    assert measured.diagnostics[UNCONVERGED] == 1 and measured.diagnostics["bias"] > 1
    assert UNCONVERGED not in measured.by_layer["away"]


def test_diagnostics_can_be_left_out() -> None:
    updates = draw_clients(9, 5, 7, [2, 2]).updates()
    one, other = (create_aggregator("lora_fair", diagnostics=on).aggregate(updates, 1) for on in (True, False))
    assert one.diagnostics and not other.diagnostics
    np.testing.assert_array_equal(layer_product(one), layer_product(other))


@quick
@given(clients(min_clients=2, mixed_ranks=False), st.integers(0, 2**31))
def test_the_ideal_update_does_not_see_a_gauge_of_each_client(c: Clients, seed: int) -> None:
    """(B_i R_i, R_i⁻¹ A_i) leaves ΔW: its norm, and its inner product with any matrix."""
    rng = np.random.default_rng(seed)
    rank, (d, k) = len(c.A[0]), (len(c.B[0]), c.A[0].shape[1])
    cores = [np.linalg.qr(rng.standard_normal((rank, rank)))[0] * rng.uniform(0.5, 2) for _ in c.A]
    any_matrix = draw_clients(seed, d, k, [rank]).factors()[0]
    ours, theirs = (measure_bias(x.factors(), list(x.p), any_matrix, any_matrix) for x in (c, c.regauged(cores)))
    size = ours["ideal2"] ** 0.5 * ours["merged2"] ** 0.5
    assert ours["ideal2"] == pytest.approx(theirs["ideal2"], rel=1e-9)
    assert ours["dot"] == pytest.approx(theirs["dot"], rel=1e-9, abs=1e-9 * size)


def test_averaging_sees_a_gauge_and_the_bias_tells() -> None:
    """The negative control: clients with one and the same product, whose factors are turned against each other."""
    same = draw_clients(0, 9, 6, [3] * 4, spread=0.0)
    turns = [np.linalg.qr(np.random.default_rng(i).standard_normal((3, 3)))[0] for i in range(4)]
    plain, turned = (aggregate("fedit", x.updates()) for x in (same, same.regauged(turns)))
    ideal = oracles.ideal_update(same)
    np.testing.assert_allclose(layer_product(plain), ideal, rtol=1e-9, atol=1e-9)
    assert np.linalg.norm(layer_product(turned) - ideal) > 0.5 * np.linalg.norm(ideal)
    assert plain.diagnostics["bias"] < 1e-12 and turned.diagnostics["bias"] > 0.5
