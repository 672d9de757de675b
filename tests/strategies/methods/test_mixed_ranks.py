"""Clients of different ranks: a layer keeps its rank when those of the highest rank miss a round, and can still learn
in every component.

Values come from tests/support/oracles.py; 1e-9 relative, both sides in float64.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clients.cohort import Cohort
from clients.site import Site
from fedinit.factors import Factors
from fedinit.runs.observer import Observer
from fedinit.transport.local import LocalGrid
from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Aggregate
from strategies.server.federation import federate
from tests.support import oracles
from tests.support.oracles import Clients, as_trained, draw_clients, layer_product
from tests.support.small import slow_unless, small_config
from tests.support.watching import Absent

RANK = 4
TAKING = sorted(name for name, method in AGGREGATORS.items() if method.mixed_ranks)
START = draw_clients(9, 7, 12, [RANK]).factors()[0]


def low_round(name: str, ranks=(1, 2), start: Factors = START, **options) -> tuple[Clients, Aggregate]:
    """A round in which nobody has the rank of the start."""
    c = draw_clients(3, 7, 12, list(ranks), [3, 5])
    return c, create_aggregator(name, **options).aggregate(c.updates(), 2, Aggregate(layers={"layer": start}))


def is_alive(f: Factors) -> bool:
    """Whether every component has a row of A or a column of B, and so gets a gradient."""
    return bool((f.A.any(dim=1) | f.B.any(dim=0)).all())


@pytest.mark.parametrize("name", ["fedit", "hetlora", "lora_fair"])
def test_padded_methods_keep_the_directions_that_nobody_trained(name):
    """The product is that of the round's clients; the rest has no weight and the start's rows of A."""
    c, made = low_round(name)
    sizes = np.array([np.linalg.norm(b @ a) for a, b in zip(c.A, c.B, strict=True)])
    p = sizes / sizes.sum() if name == "hetlora" else c.p
    layer, A, B = made.layers["layer"], oracles.mean(c.padded.A, p), oracles.mean(c.padded.B, p)
    if name == "lora_fair":
        corrected = layer.B[:, :2].numpy()
        assert not np.allclose(corrected, B)
        reached, lowest = oracles.cosine_loss(c, corrected - B, 0.01), oracles.least_cosine_loss(c, 0.01)
        assert reached < lowest * (1 + 1e-6)
        B = corrected
    np.testing.assert_allclose(layer.A.numpy(), np.vstack([A, START.A[2:].numpy()]), rtol=1e-9)
    np.testing.assert_allclose(layer.B.numpy(), np.hstack([B, np.zeros((7, 2))]), rtol=1e-9, atol=1e-12)


def test_a_row_of_zeros_leaves_the_column_of_B():
    """Where a start has A = 0, the components that nobody trained keep B: of two zeros neither would learn."""
    layer = low_round("fedit", start=Factors(torch.zeros_like(START.A), START.B))[1].layers["layer"]
    assert torch.equal(layer.B[:, 2:], START.B[:, 2:]) and not layer.A[2:].any()


def test_rbla_keeps_the_slices_that_nobody_owns():
    c, made = low_round("rbla")
    layer = made.layers["layer"]
    np.testing.assert_allclose(layer.A[:2].numpy(), [c.p @ [a[0] for a in c.A], c.A[1][1]], rtol=1e-9)
    assert torch.equal(layer.A[2:], START.A[2:]) and torch.equal(layer.B[:, 2:], START.B[:, 2:])


@pytest.mark.parametrize("ranks", [(1, 1), (1, 2), (2, 2), (3, 3)])
def test_flexlora_and_florist_take_the_best_part_of_the_global_rank(ranks):
    """Eckart–Young at rank four, also where no client has it; components that the round lacks have a direction in A."""
    for name, options in (("flexlora", {}), ("florist", {"energy": 1.0})):
        c, made = low_round(name, ranks, **options)
        ideal, layer = oracles.ideal_update(c), made.layers["layer"]
        miss = np.linalg.norm(ideal - layer_product(made))
        rest = np.linalg.svd(ideal, compute_uv=False)[RANK:]
        np.testing.assert_allclose(miss, np.linalg.norm(rest), rtol=1e-7, atol=1e-9)
        assert layer.rank == RANK and is_alive(layer)
        assert int((layer.B.norm(dim=0) > 1e-9).sum()) == min(sum(ranks), RANK)


def test_flora_stacks_what_came():
    c, made = low_round("flora")
    np.testing.assert_allclose(layer_product(made), oracles.ideal_update(c), rtol=1e-9, atol=1e-12)


def test_without_a_start_the_rank_is_that_of_the_clients():
    """The negative control: what holds the rank is the start."""
    c = draw_clients(3, 7, 12, [1, 2], [3, 5])
    for name in ("fedit", "hetlora", "lora_fair", "rbla", "flexlora", "florist", "spectral"):
        assert create_aggregator(name).aggregate(c.updates(), 1).layers["layer"].rank == 2


@pytest.mark.parametrize("name", TAKING)
def test_every_method_keeps_the_rank_of_the_start(name):
    c, method = draw_clients(3, 7, 12, [1, 2], [3, 5]), create_aggregator(name)
    start = as_trained(name, START, START)
    updates = [
        oracles.Update(u.client, u.examples, {"layer": as_trained(name, u.layers["layer"], start)}, u.head)
        for u in c.updates()
    ]
    layer = method.aggregate(updates, 1, Aggregate(layers={"layer": start})).layers["layer"]
    assert layer.rank == RANK and is_alive(layer)


def test_a_layers_own_rank_is_shared_out_in_proportion(site):
    """init=eva deals ranks to layers: of a layer of rank r′ a client of rank r_i of r is sent, and sends back,
    ⌈r′·r_i/r⌉ components, and a client of the global rank all of them."""
    config = small_config("init=eva", "adapter.ranks=[4,3,1]", "rounds=3", "evaluation=none")
    seen = {}

    class Watching(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            for m, r in zip(messages, replies, strict=True):
                if m.metadata.message_type == "train":
                    client = self.contexts[m.metadata.dst_node_id].node_config["partition-id"]
                    for state in (m.content["state"], r.content["state"]):
                        shapes = {n[:-2]: state[n].shape[0] for n in state if n.endswith("/A")}
                        seen.setdefault(client, []).append(shapes)
                        assert all(state[f"{n}/B"].shape[1] == rank for n, rank in shapes.items())
            return replies

    outcome = federate(config, Watching(Cohort(site), 3), site.backbone)
    dealt = outcome.start["ranks"]
    assert max(dealt.values()) > RANK > min(dealt.values())
    for client, rank in enumerate([4, 3, 1]):
        expected = {name: math.ceil(own * rank / RANK) for name, own in dealt.items()}
        assert seen[client] == [expected] * 6
    assert {name: f.rank for name, f in outcome.aggregate.layers.items()} == dealt


class Models(Observer):
    """The global factors after each round, and what the ledger has to say."""

    def __init__(self):
        self.ranks, self.alive, self.refused = [], [], []

    def model(self, round, tensors):
        names = sorted(name[:-2] for name in tensors if name.endswith("/A"))
        layers = [Factors(tensors[f"{n}/A"], tensors[f"{n}/B"]) for n in names]
        self.ranks.append({f.rank for f in layers})
        self.alive.append(all(map(is_alive, layers)))

    def event(self, kind, facts):
        self.refused.append((facts["client"], facts["code"]))


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


RUNS = [(name,) for name in TAKING] + [
    ("fedit", "server_opt=momentum"),
    ("fedit", "reinit=local"),
    ("fedit", "reinit=svd"),
    ("lora_fair", "reinit=gauge"),
    ("flora", "reinit=svd"),
    ("flora", "reinit=gauge"),
]


# Those whose state, or what is made of it between rounds, is of a kind of its own.
OWN = ["fedit", "florist", "flora", "hetlora", "lora_a2", "lora_fair", "ravan", "rbla"]


@pytest.mark.parametrize(
    "words",
    slow_unless(
        lambda words: words[1:] in ((), ("reinit=local",), ("reinit=gauge",)) and words[0] in OWN,
        ((words,) for words in RUNS),
    ),
    ids="-".join,
)
def test_a_round_without_the_client_of_the_highest_rank(site, words):
    """In a run: client 0, the only one of rank four, misses round 2; the state keeps its rank, and all of it can learn,
    so that in round 4 its update is of rank four again."""
    name, *rest = words
    init = ["init=random_core"] if AGGREGATORS[name].cores else []
    config = small_config(
        f"strategy={name}", *rest, *init, "adapter.ranks=[4,2,1]", "rounds=4", "evaluation=none", "client.lr=0.05"
    )
    watch = Models()
    outcome = federate(config, Absent(Cohort(site), 3, missing=(2,)), site.backbone, observers=[watch])
    assert watch.refused == [(0, "no_reply")]
    assert all(ranks == {RANK} for ranks in watch.ranks[:-1]) and all(watch.alive)
    last = [f.rank for f in outcome.aggregate.layers.values()]
    assert all(rank == (7 if name == "flora" else RANK) for rank in last)
    if name not in ("florist", "spectral", "head_alone", "lora_a2"):  # which cut, learn nothing, or choose
        for f in outcome.aggregate.layers.values():
            assert torch.linalg.matrix_rank(f.to(torch.float64).dense(), rtol=1e-6) >= RANK
