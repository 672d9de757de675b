"""Re-initialisation never changes the effective model, and what clients start from is what `reinit=` says."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from clients.cohort import Cohort
from clients.site import Site
from clients.state import rounds
from fedinit import wire
from fedinit.adapters.bank import Bank
from fedinit.config.schema import ClientConfig
from fedinit.factors import Factors, difference, distance, norm
from fedinit.runs.observer import Observer
from fedinit.transport.local import LocalGrid
from strategies import AGGREGATORS
from strategies.server.federation import federate
from tests.support.small import slow_unless, small_config
from tests.support.watching import Rounds, Tasks, Weights

LOCAL = sorted(name for name, method in AGGREGATORS.items() if "local" in method.reinits)


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


def test_average_starts_without_drift_and_local_with_one(site):
    """Own factors drift from the second round on; `average`, the paper's choice, never does (the negative control)."""
    drifts = {}
    for name in ("average", "local", "local_on_global"):
        watch = Rounds()
        config = small_config(f"reinit={name}", "rounds=3")
        federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[watch])
        drifts[name] = [[c.drift_product for c in r.clients] for r in watch.seen]
        assert all(c.drift_factors > 0 for c in watch.seen[1].clients) == (name != "average")
    assert all(d == 0 for r in drifts["average"] for d in r)
    for name in ("local", "local_on_global"):
        assert all(d == 0 for d in drifts[name][0])
        assert all(d > 0 for r in drifts[name][1:] for d in r)


def test_local_on_global_leaves_the_effective_model_as_it_is(site):
    """W0 + s(BA_global − BA_own) + s·BA_own = W0 + s·BA_global, seen in the logits of every client's own bank row."""
    draw = torch.Generator().manual_seed(0)

    def factors() -> dict[str, Factors]:
        return {
            n: Factors(torch.randn(4, k, generator=draw) / k**0.5, torch.randn(d, 4, generator=draw) / 2)
            for n, (d, k) in site.targets.items()
        }

    shared, own = factors(), [factors(), factors()]
    head = {"weight": torch.randn(10, 24, generator=draw), "bias": torch.zeros(10)}
    images = torch.randn(3, 1, 32, 32, generator=draw)
    bank = Bank(site.backbone, site.targets, scale=4.0)
    bank.load([shared], [head])
    expected = bank.forward(images, 1)[0]
    offsets = [{n: difference(shared[n], o[n]) for n in o} for o in own]
    bank.load(own, [head, head], offsets=offsets)
    for row in bank.forward(images.repeat(2, 1, 1, 1), 2):
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)
    bank.load(own, [head, head])  # without the offset the model is another one
    assert (bank.forward(images.repeat(2, 1, 1, 1), 2)[0] - expected).abs().max() > 0.1


@pytest.mark.parametrize("reinit", ["local", "local_on_global"])
def test_a_client_starts_from_its_own_last_factors(site, reinit):
    """What the state holds after a round is what the client returned, and the next round's reported drift is its
    distance from the global factors."""
    config = small_config(f"reinit={reinit}", "rounds=1")
    grid = LocalGrid(Cohort(site), 3)
    outcome = federate(config, grid, site.backbone)
    states = {c.node_config["partition-id"]: rounds.remembered(c, rounds.FACTORS)[1] for c in grid.contexts.values()}
    held = {client: wire.from_tensors(wire.decode(record))[0] for client, record in states.items()}
    mean = {
        n: sum(site.partitions[i].train.numel() * held[i][n].A for i in held)
        / sum(p.train.numel() for p in site.partitions)
        for n in site.targets
    }
    for name in site.targets:
        torch.testing.assert_close(outcome.aggregate.layers[name].A, mean[name])
    assert distance(held[0], outcome.aggregate.layers) > 0
    assert norm(difference(held[0]["blocks.0.attn.proj"], held[1]["blocks.0.attn.proj"])) > 0


def test_local_and_average_agree_when_one_client_is_alone():
    """With one client its own factors are the global ones (λ = 0: K = 1 gives the client back), so nothing differs."""
    words = ("partition=pooled", "strategy.lam=0", "rounds=3", "evaluation=none")
    site = Site(small_config(*words))
    states = []
    for name in ("average", "local", "local_on_global"):
        config = dataclasses.replace(small_config(*words, f"reinit={name}"))
        outcome = federate(config, LocalGrid(Cohort(site), 1), site.backbone)
        states.append(wire.to_tensors(outcome.aggregate.layers, outcome.aggregate.head))
    for name, value in states[0].items():
        for other in states[1:]:
            torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-5)


class Asleep(Observer):
    """From round 3 on clients learn nothing: a rate of 1e-20 and no decay."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch):
        self.site, self.monkeypatch = site, monkeypatch

    def round_done(self, numbers):
        if numbers.round == 2:
            client = self.site.engine.workers[0].settings.client
            set_client(self.site, self.monkeypatch, dataclasses.replace(client, lr=1e-20, weight_decay=0.0))


def set_client(site: Site, monkeypatch: pytest.MonkeyPatch, client: ClientConfig) -> None:
    """Change how the site's clients train."""
    for worker in site.engine.workers:
        monkeypatch.setattr(worker, "settings", dataclasses.replace(worker.settings, client=client))


def moved_while_asleep(site: Site, monkeypatch: pytest.MonkeyPatch, name: str, reinit: str) -> float:
    """The largest relative change of a layer's effective weight over two rounds in which nobody learns."""
    init = ["init=random_core"] if AGGREGATORS[name].cores else []
    words = (f"strategy={name}", *init, f"reinit={reinit}", "rounds=4", "client.lr=0.05", "evaluation.every=1")
    config = small_config(*words)
    set_client(site, monkeypatch, config.client)
    watch = Weights(site)
    federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[Asleep(site, monkeypatch), watch])
    assert all(before.norm() > 0 for before in watch.after[2].values())
    return max(float((watch.after[4][n] - w).norm() / w.norm()) for n, w in watch.after[2].items())


@pytest.mark.parametrize(
    ("name", "reinit"),
    slow_unless(
        lambda name, reinit: name in ("fed_sb", "fedit", "flexlora", "lora_fair"),
        [*((name, "local_on_global") for name in LOCAL), ("fedit", "local"), ("lora_fair", "local")],
    ),
)
def test_own_factors_change_nothing_where_nobody_learns(site, monkeypatch, name, reinit):
    """Clients return the factors they kept, and the aggregate of the same factors is the same: 1e-5 for float32."""
    assert moved_while_asleep(site, monkeypatch, name, reinit) < 1e-5


@pytest.mark.parametrize("name", ["fedex_lora", "fedrot_lora"])
def test_methods_that_would_move_by_themselves_are_refused(site, monkeypatch, name):
    """fedex_lora merges ΔW − B̄Ā of the same factors again; what fedrot_lora rotates towards is last round's mean."""
    assert not {"local", "local_on_global"} & set(AGGREGATORS[name].reinits)
    monkeypatch.setattr(AGGREGATORS[name], "reinits", ("average", "local_on_global"))
    assert moved_while_asleep(site, monkeypatch, name, "local_on_global") > 1e-3


@pytest.mark.parametrize("words", [("strategy=fedit", "init=pissa"), ("strategy=lora_fair",), ("strategy=flexlora",)])
def test_a_client_of_a_run_trains_on_the_global_weight(site, words):
    """O + (B_global A_global − B_own A_own) + B_own A_own = O + B_global A_global for every task of rounds 2 and 3,
    where the middle term is not small; with its sign turned it is another weight (the negative control)."""
    config = small_config(*words, "reinit=local_on_global", "rounds=3", "client.lr=0.05", "evaluation.every=1")
    cohort, watch = Tasks(site), Weights(site)
    federate(config, LocalGrid(cohort, 3), site.backbone, observers=[watch])
    for round in (2, 3):
        for client in range(3):
            base, offset, own = cohort.seen[round, client]
            for name, whole in watch.after[round - 1].items():
                held = base.get(name, torch.zeros(whole.shape)).double() + own[name].to(torch.float64).dense()
                part = offset[name].to(torch.float64).dense()
                assert (held + part - whole).norm() < 1e-5 * whole.norm()
                assert (held - part - whole).norm() > 1e-3 * whole.norm()


@pytest.mark.parametrize("words", [("strategy=fedit", "init=pissa"), ("strategy=lora_fair",)])
def test_locally_a_client_trains_its_own_factors_over_the_base_that_all_share(site, words):
    """No part of the base is a client's own, so the weights that clients train on are apart."""
    config = small_config(*words, "reinit=local", "rounds=3", "client.lr=0.05", "evaluation.every=1")
    cohort, watch = Tasks(site), Weights(site)
    federate(config, LocalGrid(cohort, 3), site.backbone, observers=[watch])
    for round in (2, 3):
        for client in range(3):
            base, offset, own = cohort.seen[round, client]
            assert not offset and all(torch.equal(base[n], value) for n, value in cohort.seen[round, 0][0].items())
            for name, whole in watch.after[round - 1].items():
                held = base.get(name, torch.zeros(whole.shape)).double() + own[name].to(torch.float64).dense()
                assert (held - whole).norm() > 1e-3 * whole.norm()
