"""A round's updates summed while they come: the bits of keeping them all, whatever is refused, and nothing kept."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
import torch

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.factors import Factors
from fedinit.runs.observer import Roster
from fedinit.state.start import StartState
from fedinit.transport.local import LocalGrid
from strategies import AGGREGATORS, create_aggregator
from strategies.reinit import REINITS, ReinitContext
from strategies.server import collecting
from strategies.server.exchange import Exchange
from strategies.server.federation import federate
from strategies.server.gate import Accepted, Gate
from strategies.server.method import Method
from strategies.server.running_mean import RunningMean
from strategies.server.state import ServerState
from tests.support.small import slow, small_config

STARTS = {"fed_sb": "lora_xs", "ravan": "random_core"}
PLAIN = ("evaluation=none", "strategy.diagnostics=false")
SUMMED = {"fed_sb", "fedit", "fedsa_lora", "fedsvd", "ffa_lora", "frlora", "head_alone", "rbla", "rolora"}


@pytest.fixture
def begun(monkeypatch):
    """What RunningMean.begun gave in each round; with `begun.off` nothing."""
    found, original = [], RunningMean.begun

    class Watched(RunningMean):
        @staticmethod
        def begun(*about):
            found.append(None if off else original(*about))
            return found[-1]

    off: list[bool] = []
    monkeypatch.setattr(collecting, "RunningMean", Watched)
    return found, off


def run(*words, handler=None):
    config = small_config(*PLAIN, *words)
    site = Site(config)
    cohort = Cohort(site)
    return federate(config, LocalGrid(handler(cohort) if handler else cohort, len(site.partitions)), site.backbone)


@pytest.mark.parametrize(
    "name", [*sorted(SUMMED), "lora_fair", *slow(*sorted(AGGREGATORS.keys() - SUMMED - {"lora_fair"}))]
)
def test_a_run_ends_with_the_bits_of_one_that_keeps_all_updates(name, begun):
    """Of every method that is one of sums; the others keep them, and say so by their contract."""
    words = [f"strategy={name}", "rounds=3", *([f"init={STARTS[name]}"] if name in STARTS else [])]
    found, off = begun
    summed = run(*words)
    assert [made is not None for made in found] == [name in SUMMED] * 3
    off.append(True)
    assert run(*words).final_hash == summed.final_hash


@pytest.mark.parametrize(
    "words",
    [
        ["adapter=dora"],
        ["adapter=vera", "init=vera"],
        ["weighting=uniform"],
        ["partition=dirichlet", "partition.clients=6", "partition.alpha=0.3", "gate.max_weight=1e12"],
        ["server_opt=adam"],
        ["reinit=local"],
        ["client=sgd_sai", "participation=0.67"],
    ],
    ids=lambda words: words[0],
)
def test_kinds_weights_and_what_comes_after_are_the_same(words, begun):
    found, off = begun
    summed = run("strategy=fedit", *words)
    assert all(found)
    off.append(True)
    assert run("strategy=fedit", *words).final_hash == summed.final_hash


def test_shares_that_sum_to_a_little_less_than_one_are_the_same(begun):
    """As six sixths in floats, by which a method that divides by the sum of owners' weights divided once more."""
    assert sum([1 / 6] * 6) < 1
    words = ("strategy=rbla", "weighting=uniform", "partition=iid", "partition.clients=6", "rounds=1")
    found, off = begun
    summed = run(*words)
    assert all(found)
    off.append(True)
    assert run(*words).final_hash == summed.final_hash


@pytest.mark.parametrize(
    "words",
    [
        ["strategy.diagnostics=true"],
        ["robust=bounded"],
        ["partition=dirichlet", "partition.clients=6", "partition.alpha=0.3", "gate.max_weight=1.1"],
        ["adapter.ranks=[4,2,1]"],
        ["weighting=norm"],
        ["privacy=clients", "privacy.epsilon=null", "privacy.noise=1"],
    ],
    ids=lambda words: words[0],
)
def test_where_somebody_looks_at_single_updates_they_are_kept(words, begun):
    run("strategy=fedit", *words)
    assert begun[0] and not any(begun[0])


class Broken:
    """Gives NaN for one client's update, in every round."""

    def __init__(self, cohort) -> None:
        self.cohort = cohort

    def __call__(self, deliveries):
        return list(self.one_by_one(deliveries))

    def one_by_one(self, deliveries):
        for reply in self.cohort.one_by_one(deliveries):
            if reply.metadata.message_type == "train" and reply.metadata.src_node_id == 1001:
                tensors = {n: v * torch.nan for n, v in wire.decode(wire.arrays(reply)).items()}
                reply.content[wire.STATE] = wire.encode(tensors)
            yield reply


@pytest.mark.parametrize("words", [["quorum=2"], ["quorum=1", "participation=0.34", "resamples=2"]])
def test_a_refused_update_is_in_no_sum(words, begun):
    """The weights of the others add up to one again, up to the last bit of a float64; who was asked in its place has
    its own."""
    found, off = begun
    summed = run("strategy=fedit", *words, handler=Broken)
    assert all(found)
    off.append(True)
    kept = run("strategy=fedit", *words, handler=Broken)
    assert summed.accepted == kept.accepted and summed.accepted[1] == 0
    for name, factors in kept.aggregate.layers.items():
        torch.testing.assert_close(summed.aggregate.layers[name].dense(), factors.dense(), rtol=1e-6, atol=1e-9)
    assert all(f.A.dtype == torch.float32 for f in summed.aggregate.layers.values())


def test_who_is_asked_in_anothers_place_weighs_as_it_would_have_among_the_first():
    """And where anybody's images are more than `gate.max_weight` times anothers', nobody knows before who is capped."""
    roster = Roster({0: 10, 1: 10, 2: 20, 3: 10, 4: 15}, ["a"], ["x"])
    method = Method(
        aggregator=create_aggregator("fedit", diagnostics=False),
        reinit=REINITS["average"](),
        context=ReinitContext({"l": 2}, 1.0, lambda round: {}, lambda layer: torch.zeros(4, 3)),
        seed=0,
        gate=Gate(max_weight=2.0),
    )
    start = StartState(layers={"l": Factors(torch.zeros(2, 3), torch.zeros(4, 2))})
    exchange = Exchange(LocalGrid(Broken(lambda _: []), 5), timeout=1.0, emit=lambda *_: None)
    made = RunningMean.begun(ServerState.begun(start, roster, {}), method, exchange, [0, 1, 2])
    assert made is not None
    for client, examples in roster.examples.items():
        layers = {"l": Factors(torch.full((2, 3), float(client)), torch.zeros(4, 2))}
        made.add(Accepted(client, examples, wire.to_tensors(layers, {}), {}))
    closed = made.closed()
    expected = {0: 0.25, 1: 0.25, 2: 0.5, 3: 0.25, 4: 0.375}
    total = sum(expected.values())
    assert closed["shares"] == pytest.approx({client: weight / total for client, weight in expected.items()})
    mean = sum(client * weight for client, weight in expected.items()) / total
    assert closed["updates"][0].layers["l"].A.unique().tolist() == pytest.approx([mean])
    far = dataclasses.replace(roster, examples={**roster.examples, 9: 21})
    assert RunningMean.begun(ServerState.begun(start, far, {}), method, exchange, [0, 1, 2]) is None
    uniform = dataclasses.replace(method, aggregator=create_aggregator("fedit", diagnostics=False, weighting="uniform"))
    assert RunningMean.begun(ServerState.begun(start, far, {}), uniform, exchange, [0, 1, 2]) is not None


def test_nothing_is_kept_of_an_update_that_was_added(monkeypatch):
    """When a client is asked for its reply, the factors of at most one bank's replies before it are still there."""
    there: list[int] = []
    made: list[weakref.ref[Factors]] = []

    class Counting(Broken):
        def one_by_one(self, deliveries):
            for reply in self.cohort.one_by_one(deliveries):
                if reply.metadata.message_type == "train":
                    gc.collect()
                    there.append(sum(ref() is not None for ref in made))
                    made.extend(map(weakref.ref, wire.decode(wire.arrays(reply)).values()))
                yield reply

    words = "partition=iid", "partition.clients=12", "engine.clients_per_bank=2", "rounds=1", "strategy=fedit"
    for diagnostics in ("false", "true"):
        there.clear(), made.clear()
        run(*words, f"strategy.diagnostics={diagnostics}", handler=Counting)
        tensors = len(made) // 12
        if diagnostics == "false":
            assert max(there) <= 2 * tensors
        else:  # the control
            assert max(there) == 11 * tensors


def test_with_the_gate_off_a_client_weighs_by_its_word_however_updates_are_summed(begun):
    """Nobody holds an update to what its client registered with then, and it decides the mean, as it is to be seen."""
    words = "gate.enabled=false", "attack=claims", "attack.register=false", "attack.count=1"
    found, off = begun
    claimed = run(*words)
    off.append(True)
    assert run(*words).final_hash == claimed.final_hash and found == [None] * 4
    off.clear()
    assert run("gate.enabled=false").final_hash != claimed.final_hash
