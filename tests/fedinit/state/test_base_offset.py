"""The base offset: re-initialisation never changes the effective model, and all clients hold the same base."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from flwr.app import Message

from clients.cohort import Cohort
from clients.site import Site
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.state import base_offset as base
from fedinit.transport.local import LocalGrid
from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Aggregate, Update
from strategies.reinit import Gauge, ReinitContext, create_reinit
from strategies.server.base_ledger import UNKNOWN, BaseLedger
from strategies.server.compatibility import check_method
from strategies.server.federation import client_ranks, federate
from tests.support.oracles import as_trained
from tests.support.small import slow_unless, small_config
from tests.support.watching import Absent, Rounds, Tasks, Weights

SHAPES = {"one": (7, 12), "two": (12, 9)}
RANK, SCALE = 4, 2.0
RANKS = dict.fromkeys(SHAPES, RANK)


def factors(draw: torch.Generator, rank: int = RANK) -> dict[str, Factors]:
    return {
        n: Factors(torch.randn(rank, k, generator=draw) / k**0.5, torch.randn(d, rank, generator=draw))
        for n, (d, k) in SHAPES.items()
    }


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


PAIRS = [(name, reinit) for name, method in AGGREGATORS.items() for reinit in method.reinits]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "reinit"), PAIRS)
def test_the_effective_model_survives_every_allowed_pair(name, reinit, dtype):
    """W0 + s(O′ + B_start A_start) = W0 + s(O + B_global A_global + residual), in float32: 1e-5 of the weight; and with
    factors in float64, where a merge is not rounded to the float32 of the base, 1e-10."""
    draw = torch.Generator().manual_seed(0)
    frozen = {n: torch.randn(shape, generator=draw) for n, shape in SHAPES.items()}
    offset = {n: torch.randn(shape, generator=draw) for n, shape in SHAPES.items()}
    common = {n: f.to(dtype) for n, f in factors(draw).items()}
    updates = []
    for i in range(3):
        own = {n: as_trained(name, f.to(dtype), common[n]) for n, f in factors(draw).items()}
        updates.append(Update(i, i + 1, own, {}))
    previous = Aggregate(layers={n: as_trained(name, f, f) for n, f in common.items()})
    made = create_aggregator(name).aggregate(updates, 1, previous)
    ground = ReinitContext(RANKS, SCALE, lambda round: factors_zero(draw), frozen.__getitem__).over(offset)
    start = create_reinit(reinit).start(made, 1, ground)
    after = base.advance(offset, start.merge)
    for n in SHAPES:
        residual = made.residual[n].dense() if n in made.residual else 0
        before = frozen[n] + SCALE * (offset[n] + made.layers[n].dense() + residual)
        if dtype == torch.float64:
            moved = start.merge[n].dense() if n in start.merge else 0
            now = frozen[n] + SCALE * (offset[n] + moved + start.layers[n].dense())
            torch.testing.assert_close(now, before, rtol=1e-10, atol=1e-10)
        else:
            now = frozen[n] + SCALE * (after[n] + start.layers[n].dense())
            torch.testing.assert_close(now, before, rtol=1e-5, atol=2e-5)
        assert start.layers[n].rank == RANKS[n] or reinit in ("average", "local", "local_on_global")


def factors_zero(draw: torch.Generator) -> dict[str, Factors]:
    return {n: Factors(f.A, torch.zeros_like(f.B)) for n, f in factors(draw).items()}


def test_dropping_the_merge_breaks_the_law():
    """The negative control: what `fresh` moves into the base is the whole update."""
    draw = torch.Generator().manual_seed(0)
    made = Aggregate(layers=factors(draw))
    start = create_reinit("fresh").start(made, 1, ReinitContext(RANKS, SCALE, lambda r: factors_zero(draw), None))
    gone = made.layers["one"].dense() - start.layers["one"].dense()
    assert gone.norm() > 1
    torch.testing.assert_close(start.merge["one"].dense(), made.layers["one"].dense())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_gauge_keeps_the_product_and_sets_the_size(side, beta):
    product = factors(torch.Generator().manual_seed(1))["one"].to(torch.float64)
    turned = Gauge(side=side, beta=beta).turn(product)
    torch.testing.assert_close(turned.dense(), product.dense(), rtol=1e-12, atol=1e-12)
    gram = turned.B.T @ turned.B if side == "left" else turned.A @ turned.A.T
    torch.testing.assert_close(gram, beta**2 * torch.eye(RANK, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    zero = Factors(product.A, torch.zeros_like(product.B))
    assert Gauge(side="left").turn(zero) is zero


def test_pissa_starts_from_the_principal_components_of_the_weight():
    draw = torch.Generator().manual_seed(2)
    frozen = {n: torch.randn(shape, generator=draw) for n, shape in SHAPES.items()}
    made = Aggregate(layers=factors(draw))
    offset = {n: torch.randn(shape, generator=draw) for n, shape in SHAPES.items()}
    ground = ReinitContext(RANKS, SCALE, None, frozen.__getitem__).over(offset)
    start = create_reinit("pissa").start(made, 1, ground)
    for n in SHAPES:
        U, S, Vh = torch.linalg.svd(frozen[n] + SCALE * (offset[n] + made.layers[n].dense()))
        best = U[:, :RANK] * S[:RANK] @ Vh[:RANK]
        torch.testing.assert_close(SCALE * start.layers[n].dense(), best, rtol=1e-4, atol=1e-4)


def test_repeated_merges_do_not_drift():
    """A thousand small merges in float32 end where their float64 sum ends: one rounding each, W0 untouched."""
    draw = torch.Generator().manual_seed(3)
    offset, exact = {}, 0
    for _ in range(1000):
        step = {"one": Factors(torch.randn(2, 12, generator=draw) / 100, torch.randn(7, 2, generator=draw) / 100)}
        offset = base.advance(offset, step)
        exact = exact + step["one"].to(torch.float64).dense()
    assert (offset["one"].double() - exact).norm() / exact.norm() < 1e-5


# -- what clients are sent -----------------------------------------------------------------------------------------


def test_the_ledger_sends_what_is_missing_as_factors_or_whole():
    draw = torch.Generator().manual_seed(4)
    ledger = BaseLedger()
    assert ledger.catch_up(0) == ({}, "none")
    for merge in [factors(draw, rank=1) for _ in range(2)]:
        ledger = ledger.merged(merge)
    tensors, how = ledger.catch_up(0)
    assert how == "merges" and len(tensors) == 8  # two merges, two layers, A and B
    assert ledger.catch_up(ledger.version) == ({}, "none")
    wide = ledger.merged(factors(draw, rank=7))  # 7·(7 + 12) numbers: more than the 7·12 of the offset itself
    tensors, how = wide.catch_up(ledger.version)
    assert how == "dense" and torch.equal(tensors["one"], wide.offset["one"])
    assert wide.catch_up(UNKNOWN)[1] == "dense"
    assert ledger.version == 2 and ledger.key != wide.key  # a ledger is a value


def test_a_refused_client_comes_back_where_nothing_was_merged(site):
    """One bad reply in round 1 costs that reply only: the client takes part in the rounds after it."""

    class Once(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            if messages[0].metadata.message_type == "train" and messages[0].content["config"]["round"] == 1:
                replies[0].content["metrics"]["num-examples"] = -1
            return replies

    watch = Rounds()
    federate(small_config("rounds=3"), Once(Cohort(site), 3), site.backbone, observers=[watch])
    assert [len(r.clients) for r in watch.seen] == [2, 3, 3]


class Apart:
    """Every node as a process of its own: a cohort each, so that no base is shared. Keeps what each client trained
    from, {(round, client): (O, O + B A in float64)}."""

    def __init__(self, site: Site):
        self.site, self.cohorts, self.seen = site, {}, {}

    def __call__(self, deliveries):
        replies = []
        for message, context in deliveries:
            cohort = self.cohorts.setdefault(context.node_id, Tasks(self.site))
            replies += cohort([(message, context)])
            for key, (held, _, own) in cohort.seen.items():
                zero = {n: torch.zeros(f.shape) for n, f in own.items()}
                whole = {n: (zero | held)[n].double() + f.to(torch.float64).dense() for n, f in own.items()}
                self.seen[key] = held, whole
        return replies


def held_as_by_the_server(config, site, missing=()) -> Absent:
    """Runs it, and holds every client of every round to the server: the very bytes of its O, and its O + B A."""
    clients, watch = Apart(site), Weights(site)
    grid = Absent(clients, 3, missing=missing)
    outcome = federate(config, grid, site.backbone, observers=[watch])
    assert outcome.rounds == config.rounds and clients.seen.keys() == grid.updates.keys()
    for (round, client), (held, whole) in clients.seen.items():
        others = [base for (r, _), (base, _) in clients.seen.items() if r == round]
        for name, weight in watch.after[round - 1].items():
            assert all(torch.equal(held[name], other[name]) for other in others if held)
            torch.testing.assert_close(whole[name], weight, rtol=1e-12, atol=1e-12, msg=f"{round} {client} {name}")
    assert all(held[name].any() for held, _ in clients.seen.values() for name in held)
    return grid


def offset_bytes(site: Site) -> int:
    """Of the whole offset, in float32."""
    return sum(4 * d * k for d, k in site.targets.values())


BACK, LATE = (2, 3, 4), (1, 2, 3)  # the rounds without it


@pytest.mark.parametrize(
    ("words", "missing"),
    slow_unless(
        lambda words, missing: (
            (*words, missing) in (("strategy=flora", LATE), ("strategy=fedex_lora", BACK), ("reinit=pissa", LATE))
        ),
        itertools.product(
            [
                ("strategy=flora",),
                ("strategy=flora", "reinit=svd"),
                ("strategy=fedex_lora",),
                ("reinit=fresh",),
                ("reinit=pissa",),
            ],
            [BACK, LATE],
        ),
    ),
    ids=lambda value: "-".join(map(str, value)),
)
def test_a_client_absent_for_three_rounds_has_the_others_base(site, words, missing):
    """It comes in the round after, is sent the whole offset, since it was refused in rounds it missed and nothing is
    taken for granted, and holds what those hold that never left; these are sent no more than that."""
    grid = held_as_by_the_server(small_config(*words, "rounds=6", "evaluation.every=1"), site, missing)
    late = missing[-1] + 1
    assert [round for round, client in grid.updates if client == 0] == sorted({*range(1, 7)} - {*missing})
    assert grid.updates[late, 0][0] == "dense" and grid.updates[late, 0][2] == offset_bytes(site)
    assert all(size <= offset_bytes(site) for _, _, size in grid.updates.values())
    if words == ("reinit=fresh",):  # a merge of rank four a layer
        merge = sum(4 * RANK * (d + k) for d, k in site.targets.values())
        assert grid.updates[late, 1] == ("merges", 1, merge) and grid.updates[late + 1, 0] == ("merges", 1, merge)


@pytest.mark.parametrize("words", [("reinit=fresh",), ("strategy=flora", "reinit=svd"), ("reinit=pissa",)])
def test_a_client_that_was_not_sampled_catches_up_by_merges(site, words):
    """Two of three clients a round: who was left out for a round or more is sent all merges since, and adds them up to
    the bytes that the others hold."""
    config = small_config(*words, "rounds=7", "participation=0.67", "evaluation.every=1", "adapter.rank=2")
    grid = held_as_by_the_server(config, site)
    several = [entry for entry in grid.updates.values() if entry[0] == "merges" and entry[1] > 1]
    assert several and all(size <= offset_bytes(site) for _, _, size in several)


def test_clients_of_one_process_share_one_copy_of_the_base(site):
    cohort = Cohort(site)
    federate(small_config("reinit=fresh", "rounds=3"), LocalGrid(cohort, 3), site.backbone)
    assert len(cohort.bases.known) == 2  # the empty one and the present one


def test_a_client_out_of_step_is_refused_and_then_brought_back(site):
    """A client that lost its state says so; the round goes on without it, and the next message carries everything."""
    lost = []

    class Forgetful(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            trains = [m for m in messages if m.metadata.message_type == "train"]
            if trains and trains[0].content["config"]["round"] == 3:
                context = self.contexts[min(self.contexts)]
                context.state.clear()
            replies = super().send_and_receive(messages, timeout=timeout)
            lost.extend(r.error.reason for r in replies if isinstance(r, Message) and r.has_error())
            return replies

    cohort = Cohort(site, persistent=True)
    outcome = federate(small_config("reinit=fresh", "rounds=5"), Forgetful(cohort, 3), site.backbone)
    assert len(lost) == 1 and "base is out of step" in lost[0]
    assert outcome.rounds == 5


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["strategy=flora", "reinit=average"], "does not go with strategy=flora, whose global factors"),
        (["strategy=fedex_lora", "reinit=local"], "so each round adds it anew; choose one of: average, fresh, svd"),
        (["strategy=ffa_lora", "reinit=fresh"], "keeps a factor frozen.*choose one of: average, local"),
        (["reinit=svd", "reinit.at=[3,5]", "rounds=3"], r"reinit.at=\[3, 5\]: does not go with rounds=3: no round"),
        (["reinit=local", "+reinit.at=[3]"], r"reinit.at=\[3\]: with reinit=local .* in every round; expected null"),
        (["reinit=local_on_global", "+reinit.at=[3]"], r"reinit.at=\[3\]: with reinit=local_on_global .* every round"),
        (["strategy=frlora", "init=pissa", "reinit=average"], "choose one of: fresh, pissa"),
        (["strategy=ffa_lora", "adapter.ranks=[2,4]"], "has one rank for all clients; these take any: fed_sb, fedit"),
        (["adapter.ranks=[2,4]", "reinit=pissa"], "W0's own components"),
        (["adapter.ranks=[2,4]", "init=orthogonal"], "whose product is zero only as a whole"),
    ],
)
def test_pairs_that_make_no_sense(words, message):
    with pytest.raises(InputError, match=message):
        check_method(small_config(*words))


def test_more_ranks_than_clients(site):
    with pytest.raises(InputError, match="4 ranks for 3 clients"):
        federate(small_config("adapter.ranks=[1,2,3,4]"), LocalGrid(Cohort(site), 3), site.backbone)


@pytest.mark.parametrize(
    ("rule", "examples", "expected"),
    [
        ("by_examples", [100, 50, 26, 1], [4, 3, 2, 1]),  # 4·n/78, rounded up: the first counts three medians of 26
        ("by_examples", [7, 7], [4, 4]),
        ("halving", [1, 1, 1, 1, 1], [4, 2, 1, 4, 2]),
        ("halving", [1], [4]),
    ],
)
def test_a_rule_gives_every_client_a_rank(rule, examples, expected):
    ranks = client_ranks(small_config(f"adapter.ranks={rule}"), dict(enumerate(examples)))
    assert list(ranks.values()) == expected


def test_a_rank_that_is_no_power_of_two_halves_down_to_one():
    config = small_config("adapter.rank=6", "adapter.ranks=halving")
    assert list(client_ranks(config, dict.fromkeys(range(4), 1)).values()) == [6, 3, 1, 6]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("by_exmples", "did you mean 'by_examples'... Choices: by_examples, halving"),
        ("[4,a]", r"adapter.ranks\[1\]=a: expected a whole number"),
        ("[4,0]", "adapter.ranks=0: expected 1 or more"),
    ],
)
def test_ranks_that_cannot_be(given, message):
    with pytest.raises(InputError, match=message):
        small_config(f"adapter.ranks={given}")


def test_a_rule_is_for_every_method_that_takes_lists():
    """And refused by the others for the same reason as a list."""
    for name, method in AGGREGATORS.items():
        words = [f"strategy={name}", "adapter.ranks=halving", "init=random_core", "evaluation=clients"]
        if method.mixed_ranks:
            check_method(small_config(*words))
        else:
            with pytest.raises(InputError, match="has one rank for all clients"):
                check_method(small_config(*words))


def test_the_largest_rank_is_the_global_one():
    with pytest.raises(InputError, match="the largest must be adapter.rank=4"):
        small_config("adapter.ranks=[2,8]")


def test_mixed_ranks_train_and_come_back_at_their_ranks(site):
    config = dataclasses.replace(small_config("strategy=flexlora", "adapter.ranks=[1,4]"))
    seen = set()

    class Watching(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            for m, r in zip(messages, replies, strict=True):
                if m.metadata.message_type == "train":
                    name = "blocks.0.attn.proj/A"
                    seen.add((m.content["state"][name].shape[0], r.content["state"][name].shape[0]))
            return replies

    federate(config, Watching(Cohort(site), 3), site.backbone)
    assert seen == {(1, 1), (4, 4)}
