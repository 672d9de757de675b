"""Sums over clients, laid side by side a few at a time, against NumPy's of the dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedinit.factors import Factors
from strategies import means
from strategies.aggregator import Update
from strategies.means import averaging_error, image, mean_factors
from strategies.methods.lora_fair import LoRAFAIR
from tests.support import oracles
from tests.support.oracles import draw_clients


@pytest.mark.parametrize("numbers", [1, 40, 2**18])  # of one client at a time, of a few, of all
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("ranks", [[2] * 5, [1, 3, 2, 4]])
def test_the_image_is_the_ideal_updates(
    numbers: int, rows: int, ranks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(means, "SIDE_BY_SIDE", numbers)
    c = draw_clients(3, 7, 11, ranks, [4, 1, 2, 8, 3][: len(ranks)])
    X = np.random.default_rng(0).standard_normal((rows, 11))
    found = image(c.factors(), list(c.p), torch.tensor(X))
    np.testing.assert_allclose(found.numpy(), oracles.ideal_update(c) @ X.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("numbers", [1, 200, 2**18])
@pytest.mark.parametrize(("d", "k"), [(7, 11), (11, 7)])
@pytest.mark.parametrize("ranks", [[2] * 16, [1, 3, 2, 4] * 3, [2, 1]])  # the last are too few for a matrix
def test_the_averaging_error_is_the_same_however_many_at_once(
    numbers: int, d: int, k: int, ranks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(means, "SIDE_BY_SIDE", numbers)
    c = draw_clients(3, d, k, ranks, range(1, len(ranks) + 1))
    average = mean_factors(c.factors(), list(c.p))
    error = averaging_error(c.factors(), list(c.p), average)
    assert (error.rank == min(d, k)) == (len(ranks) > 2 and numbers < 2**18)
    A, B = oracles.factor_means(c)
    np.testing.assert_allclose(error.dense().numpy(), oracles.ideal_update(c) - B @ A, rtol=1e-11, atol=1e-12)


def test_weights_in_another_order_are_another_sum() -> None:
    """The negative control."""
    c = draw_clients(3, 7, 11, [2] * 3, [4, 1, 2])
    rows = torch.eye(11, dtype=torch.float64)
    one, other = (image(c.factors(), w, rows) for w in (list(c.p), list(c.p)[::-1]))
    assert float((one - other).norm() / one.norm()) > 1e-2


@pytest.mark.parametrize(
    "options", [{}, {"lam_scale": "relative"}, {"lam": 0.0}, {"side": "both"}, {"side": "A"}], ids=str
)
@pytest.mark.parametrize("K", [3, 9])  # with 9 of rank 8 the norm is estimated
def test_layers_at_once_are_as_each_alone(options: dict, K: int) -> None:
    """Of several shapes, one of them without an update, one with a row of A that nobody has."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def layers() -> dict[str, Factors]:
        short = normal(8, 12)
        short[-1] = 0
        return {
            "a": Factors(normal(8, 20), normal(15, 8)),
            "none": Factors(normal(8, 20), torch.zeros(15, 8, dtype=torch.float64)),
            "b": Factors(normal(8, 12), 1e-3 * normal(15, 8)),
            "c": Factors(normal(8, 20), 1e3 * normal(15, 8)),
            "short": Factors(short, normal(15, 8)),
        }

    updates = [Update(i, i + 1, layers(), {}) for i in range(K)]
    method = LoRAFAIR(diagnostics=False, **options)
    together = method.aggregate(updates, 1)
    for name in updates[0].layers:
        alone = method.aggregate([Update(u.client, u.examples, {name: u.layers[name]}, {}) for u in updates], 1)
        for part in ("A", "B"):
            ours, theirs = (getattr(made.layers[name], part) for made in (together, alone))
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12 * float(theirs.norm()))
    plain = mean_factors([u.layers["a"] for u in updates], method.weights(updates))
    assert not all(torch.equal(getattr(together.layers["a"], part), getattr(plain, part)) for part in ("A", "B"))


def test_layers_that_look_alike_are_not_one_problem() -> None:
    """Of six clients one layer's norm is estimated from four rows more, beside twelve, and another's of rank 16 is not:
    what was seen of both has 16 columns."""
    draw = torch.Generator().manual_seed(0)

    def drawn(rank: int) -> Factors:
        return Factors(*(torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((rank, 40), (30, rank))))

    ranks = {"estimated": [12] * 6, "exact": [16, 1, 1, 1, 1, 1]}
    updates = [Update(i, 1, {name: drawn(of[i]) for name, of in ranks.items()}, {}) for i in range(6)]
    together = LoRAFAIR(diagnostics=False).aggregate(updates, 1)
    for name in ranks:
        alone = LoRAFAIR(diagnostics=False).aggregate(
            [Update(u.client, 1, {name: u.layers[name]}, {}) for u in updates], 1
        )
        torch.testing.assert_close(together.layers[name].B, alone.layers[name].B, rtol=1e-10, atol=1e-12)
