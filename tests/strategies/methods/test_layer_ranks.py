"""Ranks that differ by layer, as EVA deals them, through every method, re-initialiser and kind of adapter that takes
such a start."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clients.cohort import Cohort
from clients.site import Site
from fedinit.initializers import create_initializer
from fedinit.transport.local import LocalGrid
from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Aggregate, Update
from strategies.reinit import REINITS
from strategies.server.federation import federate
from tests.support.oracles import as_trained, draw_clients
from tests.support.small import slow_unless, small_config

SHAPES = {"one": (17, 24, 4), "two": (24, 19, 8)}  # d, k, r
EVA = ("init=eva", "init.examples=32", "client.max_steps=1")
# EVA's B is zero and it has no core.
TAKING = [n for n, method in AGGREGATORS.items() if not method.cores]


def rounds(name: str) -> tuple[list[Update], Aggregate]:
    """Three clients' updates of layers of rank 4 and 8, and what they started from."""
    clients = {n: draw_clients(i, d, k, [r] * 3, [3, 10, 1]) for i, (n, (d, k, r)) in enumerate(SHAPES.items())}
    start = {n: draw_clients(9 + i, d, k, [r]).factors()[0] for i, (n, (d, k, r)) in enumerate(SHAPES.items())}
    start = {n: as_trained(name, f, f) for n, f in start.items()}
    sent = [{n: as_trained(name, c.factors()[i], start[n]) for n, c in clients.items()} for i in range(3)]
    return [Update(i, n, layers, {}) for i, (n, layers) in enumerate(zip((3, 10, 1), sent, strict=True))], Aggregate(
        layers=start
    )


def only(name: str, updates: list[Update], start: Aggregate) -> tuple[list[Update], Aggregate]:
    return [Update(u.client, u.examples, {name: u.layers[name]}, {}) for u in updates], Aggregate(
        layers={name: start.layers[name]}
    )


@pytest.mark.parametrize("name", sorted(AGGREGATORS.keys() - {"hetlora"}))
def test_a_layers_result_does_not_depend_on_another_layers_rank(name):
    """But for hetlora, whose weights are norms over all layers together."""
    updates, start = rounds(name)
    together = create_aggregator(name).aggregate(updates, 1, start)
    for layer, (_, _, rank) in SHAPES.items():
        own, own_start = only(layer, updates, start)
        alone = create_aggregator(name).aggregate(own, 1, own_start)
        torch.testing.assert_close(together.layers[layer].dense(), alone.layers[layer].dense())
        assert together.layers[layer].rank == alone.layers[layer].rank
        assert together.layers[layer].rank == rank or name == "flora"


def test_lora_fair_corrects_each_layer_at_its_own_rank():
    """ΔB = argmin ‖ΔW − (B̄ + ΔB)Ā‖ at λ = 0, by np.linalg.lstsq on dense matrices; plain averaging is the control."""
    updates, start = rounds("lora_fair")
    made = create_aggregator("lora_fair", lam=0.0).aggregate(updates, 1, start)
    plain = create_aggregator("fedit").aggregate(updates, 1, start)
    p = np.array([3, 10, 1]) / 14
    for layer in SHAPES:
        A, B = ([getattr(u.layers[layer], part).numpy() for u in updates] for part in "AB")
        ideal = sum(w * b @ a for w, a, b in zip(p, A, B, strict=True))
        mean = sum(w * a for w, a in zip(p, A, strict=True))
        best = np.linalg.lstsq(mean.T, ideal.T, rcond=None)[0].T @ mean
        np.testing.assert_allclose(made.layers[layer].dense().numpy(), best, atol=1e-9)
        assert np.linalg.norm(plain.layers[layer].dense().numpy() - best) > 0.1 * np.linalg.norm(best)


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


def outcome(site: Site, *words: str):
    evaluation = "evaluation=clients" if "strategy=fedsa_lora" in words else "evaluation=none"
    return federate(small_config(*EVA, evaluation, *words), LocalGrid(Cohort(site), 3), site.backbone)


RUNS = [(f"strategy={name}",) for name in TAKING if name != "flora"]
RUNS += [("strategy=fedit", f"reinit={reinit}") for reinit in REINITS if reinit in AGGREGATORS["fedit"].reinits]
RUNS += [("strategy=lora_fair", "adapter=dora")]
# Those that average, cut, choose, solve, merge and keep; a re-initialisation that turns, and two that draw anew.
KINDS = {"fedit", "spectral", "lora_a2", "lora_fair", "fedex_lora", "fedsa_lora", "dora", "gauge", "fresh", "pissa"}


@pytest.mark.parametrize(
    "words",
    slow_unless(lambda words: words[-1].partition("=")[2] in KINDS, ((words,) for words in RUNS)),
    ids=" ".join,
)
def test_a_run_keeps_the_ranks_that_were_dealt(words, site):
    done = outcome(site, *words)
    dealt = done.start["ranks"]
    assert len(set(dealt.values())) > 1 and sum(dealt.values()) == 4 * len(dealt)
    assert {name: f.rank for name, f in done.aggregate.layers.items()} == dealt


def test_clients_of_lower_ranks_choose_among_the_slots_that_were_dealt(site):
    done = outcome(site, "strategy=lora_a2", "adapter.ranks=[4,1,2]")
    assert len(set(done.start["ranks"].values())) > 1 and min(done.accepted.values()) > 0


def test_flora_stacks_the_ranks_that_were_dealt(site):
    done = outcome(site, "strategy=flora")
    assert {n: f.rank for n, f in done.aggregate.layers.items()} == {n: 3 * r for n, r in done.start["ranks"].items()}


def test_with_rho_1_all_are_equal(site):
    """The control: nothing is dealt anew."""
    assert create_initializer("eva", {"rho": 1.0}).rho == 1
    done = outcome(site, "init.rho=1")
    assert "ranks" not in done.start and {f.rank for f in done.aggregate.layers.values()} == {4}
