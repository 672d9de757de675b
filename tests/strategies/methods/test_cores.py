"""Methods that train a core R between frozen factors: exact, at the bytes of the core, through the whole path.

Oracles are dense float64 products in numpy; rtol 1e-9 where both sides are float64, as in test_methods.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.cohort import Cohort
from clients.site import Site, is_zero
from fedinit import wire
from fedinit.adapters.core import CoreFactors
from fedinit.errors import InputError
from fedinit.factors import Factors, norm
from fedinit.runs.export import load_adapter, save_adapter
from strategies import create_aggregator
from strategies.aggregator import Aggregate, Update
from strategies.server.compatibility import check_method
from strategies.server.federation import federate
from strategies.server_opt import create_server_optimizer
from tests.support.small import small_config
from tests.support.watching import SentTensors, numbers

quick = settings(deadline=None, max_examples=20)


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


class Around:
    """Clients with cores of their own around one A (r, k) and B (d, r); a client of rank r_i has the leading part."""

    def __init__(self, seed: int, d: int, k: int, ranks: Sequence[int], examples: Sequence[int]) -> None:
        rng = np.random.default_rng(seed)
        self.A, self.B = rng.standard_normal((max(ranks), k)), rng.standard_normal((d, max(ranks)))
        self.R = [rng.standard_normal((r, r)) for r in ranks]
        self.examples = examples

    @property
    def ideal(self) -> np.ndarray:
        """Σ p_i B R_i A over dense products."""
        p = np.array(self.examples) / sum(self.examples)
        return sum(w * self.B[:, : len(R)] @ R @ self.A[: len(R)] for w, R in zip(p, self.R, strict=True))

    def updates(self) -> list[Update]:
        A, B = torch.tensor(self.A), torch.tensor(self.B)
        return [
            Update(i, n, {"layer": CoreFactors(A[: len(R)], B[:, : len(R)], torch.tensor(R))}, {})
            for i, (n, R) in enumerate(zip(self.examples, self.R, strict=True))
        ]


@st.composite
def around(draw) -> Around:
    count = draw(st.integers(1, 5))
    d, k = draw(st.sampled_from([(7, 12), (12, 7), (9, 20)]))
    ranks = draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    examples = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    return Around(draw(st.integers(0, 10_000)), d, k, ranks, examples)


# -- Fed-SB --------------------------------------------------------------------------------------------------------


@quick
@given(around())
def test_fed_sb_is_the_ideal_update_for_any_ranks(c):
    made = create_aggregator("fed_sb").aggregate(c.updates(), 1)
    np.testing.assert_allclose(made.layers["layer"].dense().numpy(), c.ideal, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(made.layers["layer"].A.numpy(), c.A)
    np.testing.assert_array_equal(made.layers["layer"].B.numpy(), c.B)
    assert made.diagnostics["bias"] < 1e-12 and made.diagnostics["norm_ratio"] == pytest.approx(1)


def test_without_weights_the_core_is_another_one():
    """The negative control: the public code's plain mean misses the ideal update of clients of unequal size."""
    c = Around(0, 7, 12, [3, 3, 3], [1, 2, 30])
    made = create_aggregator("fed_sb", weighting="uniform").aggregate(c.updates(), 1)
    assert np.linalg.norm(made.layers["layer"].dense().numpy() - c.ideal) > 0.1 * np.linalg.norm(c.ideal)


def test_fed_sb_refuses_factors_that_are_not_shared():
    updates = Around(0, 7, 12, [3, 3], [1, 1]).updates()
    method = create_aggregator("fed_sb")
    layer = updates[1].layers["layer"]
    for bad in (
        CoreFactors(layer.A + 1, layer.B, layer.R),
        CoreFactors(layer.A, -layer.B, layer.R),
        Factors(layer.A, layer.B),
    ):
        with pytest.raises(ValueError, match="not the frozen ones that all clients share, around a core"):
            method.aggregate([updates[0], Update(1, 1, {"layer": bad}, {})], 1)
    with pytest.raises(ValueError, match="not the frozen ones"):  # nor may all of them differ from what was sent
        sent = CoreFactors(layer.A, layer.B + 1, layer.R)
        method.aggregate(updates, 1, Aggregate(layers={"layer": sent}))


def test_the_server_optimizer_moves_the_core_alone():
    """With momentum β = 0 and lr ½ the core goes half of its way."""
    start, reached = (Around(seed, 7, 12, [3], [1]).updates()[0].layers["layer"] for seed in (0, 1))
    reached = CoreFactors(start.A, start.B, reached.R)
    optimizer = create_server_optimizer("momentum", {"lr": 0.5, "beta": 0.0})
    made = optimizer.step(Aggregate(layers={"l": start}), Aggregate(layers={"l": reached})).layers["l"]
    assert torch.equal(made.A, start.A) and torch.equal(made.B, start.B)
    torch.testing.assert_close(made.R, (start.R + reached.R) / 2)


# -- through the strategy --------------------------------------------------------------------------------------------


def test_a_round_of_fed_sb_is_the_cores_and_the_head(site):
    """A and B go down once; after that r² numbers a layer each way, and the head."""
    grid = SentTensors(Cohort(site), 3)
    outcome = federate(small_config("strategy=fed_sb", "init=lora_xs", "rounds=3"), grid, site.backbone)
    layers, shapes = len(site.targets), site.targets.values()
    for round, sent in grid.rounds.items():
        for down, up in sent:
            assert numbers(up, "A") == numbers(up, "B") == 0 and numbers(up, "R") == 4 * 4 * layers
            assert numbers(down, "R") == 4 * 4 * layers
            assert numbers(down, "A") == (4 * sum(k for _, k in shapes) if round == 1 else 0)
            assert numbers(down, "B") == (4 * sum(d for d, _ in shapes) if round == 1 else 0)
    drawn = outcome.aggregate.layers["blocks.0.attn.proj"]
    assert drawn.R.abs().max() > 1e-3  # it was trained: the start is N(0, 1e-5²)
    assert outcome.trainable == 4 * 4 * layers + 10 * 24 + 10


def test_clients_of_lower_rank_train_their_leading_cores(site):
    grid = SentTensors(Cohort(site), 3)
    words = ("strategy=fed_sb", "init=lora_xs", "adapter.ranks=[2,4]")
    federate(small_config(*words), grid, site.backbone)
    layers = len(site.targets)
    assert [numbers(up, "R") // layers for _, up in grid.rounds[2]] == [4, 16, 4]


def test_a_core_that_a_method_does_not_train_is_absorbed(site):
    """init=lora_xs with FedIT starts from the same product, in two factors."""
    grid = SentTensors(Cohort(site), 3)
    federate(small_config("strategy=fedit", "init=lora_xs", "init.std=1.0", "rounds=1"), grid, site.backbone)
    cored = SentTensors(Cohort(site), 3)
    federate(small_config("strategy=fed_sb", "init=lora_xs", "init.std=1.0", "rounds=1"), cored, site.backbone)
    plain, _ = wire.from_tensors(grid.rounds[1][0][0])
    whole, _ = wire.from_tensors(cored.rounds[1][0][0])
    for name in site.targets:
        assert type(plain[name]) is Factors and isinstance(whole[name], CoreFactors) and norm(whole[name]) > 0
        torch.testing.assert_close(plain[name].dense(), whole[name].dense())


def test_a_zero_core_is_a_zero_adapter(site):
    """So that the features of the bare backbone serve until the first training."""
    draw = torch.Generator().manual_seed(0)
    product = CoreFactors(torch.randn(2, 5, generator=draw), torch.randn(4, 2, generator=draw), torch.zeros(2, 2))
    assert is_zero({"l": product}) and not is_zero({"l": CoreFactors(product.A, product.B, torch.eye(2))})


@pytest.mark.parametrize("blocks", [False, True])
def test_export_folds_the_core_in(tmp_path, blocks):
    draw = torch.Generator().manual_seed(0)
    core = torch.randn(2, 2, 2, generator=draw) if blocks else torch.randn(4, 4, generator=draw)
    product = CoreFactors(torch.randn(4, 9, generator=draw), torch.randn(7, 4, generator=draw), core)
    save_adapter(tmp_path, {"l": product}, {"weight": torch.zeros(2, 3)}, {}, small_config(), ["a", "b"])
    back = load_adapter(tmp_path)[0]["l"]
    assert type(back) is Factors and back.rank == 4
    torch.testing.assert_close(back.dense(), product.dense())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["strategy=fed_sb"], "init=kaiming has none; choose one of: .*lora_xs, random_core"),
        (["strategy=fed_sb", "init=lora_xs", "reinit=svd"], "keeps A and B frozen.*choose one of: average, local"),
    ],
)
def test_pairs_that_make_no_sense(words, message):
    with pytest.raises(InputError, match=message):
        check_method(small_config(*words))
