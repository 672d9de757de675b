"""LoRA-FAIR with a cosine a column, against L-BFGS on the objective as torch's own cosine_similarity gives it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from strategies import create_aggregator
from tests.support import oracles
from tests.support.oracles import Clients, draw_clients, fair


def sized(size: float) -> Clients:
    c = draw_clients(0, 9, 14, [2, 3, 3], [1, 2, 3], 0.3)
    return dataclasses.replace(c, B=tuple(b * (size / np.linalg.norm(oracles.factor_means(c)[1])) for b in c.B))


def objective(c: Clients, lam: float):
    """Of B′, on dense matrices scaled up so that the floor of 1e-8 in torch's cosine is nothing."""
    A, B = (torch.tensor(value) for value in oracles.factor_means(c))
    ideal, size = torch.tensor(oracles.ideal_update(c)), float(B.norm())

    def value(corrected: torch.Tensor) -> torch.Tensor:
        cosines = torch.nn.functional.cosine_similarity(ideal / size, corrected @ A / size, dim=0)
        return 1 - cosines.mean() + lam * (corrected - B).square().sum()

    return value, B


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("lam", [0.01, 1.0])
def test_no_descent_ends_lower(size: float, lam: float) -> None:
    c = sized(size)
    value, B = objective(c, lam)
    made = create_aggregator("lora_fair", similarity="columns", lam=lam).aggregate(c.updates(), 1)
    least = oracles.least(value, [B])
    assert least * 0.99 - 1e-9 < float(value(made.layers["layer"].B)) < least * (1 + 1e-4) + 1e-9
    assert "unconverged" not in made.diagnostics


@pytest.mark.parametrize("seed", range(6))
def test_without_lam_the_size_is_that_of_least_squares(seed: int) -> None:
    """On what was three times too large before, since no cosine sees it."""
    c = draw_clients(seed, 6, 40, [2] * (2 + seed % 4), list(range(1, 3 + seed % 4)), 0.5)
    A, B = fair(c, similarity="columns", lam=0.0)
    ideal = oracles.ideal_update(c)
    assert float((ideal * (B @ A)).sum()) == pytest.approx(float(np.square(B @ A).sum()), rel=1e-9)
    value, mean = objective(c, 0.0)
    assert float(value(torch.tensor(B))) <= float(value(mean)) + 1e-12


@pytest.mark.parametrize("rounds", [40, pytest.param(60, marks=pytest.mark.slow)])
def test_where_it_says_converged_it_is_no_worse_than_plain_averages(rounds: int) -> None:
    """Also where the columns' cosines add up to another direction than ⟨ΔW, B′Ā⟩, which no size can turn round."""
    opposed = 0
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        sizes = 10.0 ** rng.uniform(-3, 3, 12)  # of the columns
        pairs = [(rng.standard_normal((2, 12)) * sizes, rng.standard_normal((7, 2))) for _ in range(2 + seed % 3)]
        c = Clients(tuple(a for a, _ in pairs), tuple(b for _, b in pairs), (10,) * len(pairs))
        made = create_aggregator("lora_fair", similarity="columns", lam=0.0).aggregate(c.updates(), 1)
        value, mean = objective(c, 0.0)
        found = made.layers["layer"]
        opposed += float((torch.tensor(oracles.ideal_update(c)) * (found.B @ found.A)).sum()) < 0
        if "unconverged" not in made.diagnostics:
            assert float(value(found.B)) <= float(value(mean)) + 1e-9, seed
    assert opposed, "none of these rounds is of the kind"


def turned(seed: int, side: str) -> tuple[Clients, np.ndarray, np.ndarray, dict]:
    """Five clients, some of turned signs, without λ: what is made of them, and the diagnostics."""
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((4, 8)), 0.1 * rng.standard_normal((30, 4))
    signs = [1, -1, 1, -1, 1]
    moved = [(s * A + 0.3 * rng.standard_normal(A.shape), s * B + 0.3 * rng.standard_normal(B.shape)) for s in signs]
    c = Clients(tuple(a for a, _ in moved), tuple(b for _, b in moved), (10,) * 5)
    made = create_aggregator("lora_fair", similarity="columns", lam=0.0, side=side).aggregate(c.updates(), 1)
    return c, made.layers["layer"].A.numpy(), made.layers["layer"].B.numpy(), dict(made.diagnostics)


@pytest.mark.parametrize("seeds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_search_without_end_is_not_followed(seeds: int) -> None:
    """Of such clients' rounds some have no minimum; none leaves factors that no step of theirs survives."""
    ended = [turned(seed, side) for seed in range(seeds) for side in ("B", "both")]
    assert any("unconverged" in diagnostics for *_, diagnostics in ended)
    for c, A, B, _ in ended:
        means = oracles.factor_means(c)
        theirs = max(np.linalg.norm(value) for value in (*means, *c.A, *c.B))
        assert max(np.linalg.norm(A), np.linalg.norm(B)) < 100 * theirs


def test_it_is_another_objective() -> None:
    """The negative control: the minimiser of one cosine is not that of the columns', nor the other way round."""
    c = sized(1.0)
    value, _ = objective(c, 0.01)
    columns, matrix = (fair(c, similarity=name)[1] for name in ("columns", "matrix"))
    assert float(value(torch.tensor(columns))) < 0.999 * float(value(torch.tensor(matrix)))
    mean = oracles.factor_means(c)[1]
    assert oracles.cosine_loss(c, matrix - mean, 0.01) < 0.999 * oracles.cosine_loss(c, columns - mean, 0.01)


def test_the_dense_descent_goes_the_same_way_or_says_that_it_has_not_arrived() -> None:
    c = sized(1.0)
    value, _ = objective(c, 1.0)
    options = {"solver": "dense_sgd", "similarity": "columns", "lam": 1.0}
    made = {s: create_aggregator("lora_fair", steps=s, **options).aggregate(c.updates(), 1) for s in (1, 1000)}
    least = float(value(torch.tensor(fair(c, similarity="columns", lam=1.0)[1])))
    for aggregate in made.values():
        near = float(value(aggregate.layers["layer"].B)) <= 1.01 * least + 1e-12
        assert near == ("unconverged" not in aggregate.diagnostics)
    assert float(value(made[1000].layers["layer"].B)) < float(value(made[1].layers["layer"].B))


def test_equal_clients_are_not_corrected() -> None:
    c = draw_clients(0, 9, 14, [3])
    same = Clients(c.A * 3, c.B * 3, (1, 5, 2))
    np.testing.assert_allclose(fair(same, similarity="columns")[1], c.B[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"solver": "gram_sgd"}, "does not go with strategy.solver=gram_sgd"),
        ({"lam_scale": "relative"}, "does not go with strategy.lam_scale=relative"),
    ],
)
def test_what_knows_no_columns_is_refused(options, said) -> None:
    with pytest.raises(ValueError, match=said):
        create_aggregator("lora_fair", similarity="columns", **options)
