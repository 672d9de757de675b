"""The second phase as a secret sum: the mean of Σ p_i B_i(A_iĀᵀ), of those that are left, and nothing else to read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message

from clients import secagg
from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.config.secure_aggregation import SecAggConfig
from fedinit.errors import RunFailed
from fedinit.secagg.fixed_point import FixedPoint
from fedinit.secagg.messages import MASKED, QUERY
from fedinit.transport.local import LocalGrid
from strategies import create_aggregator
from strategies.aggregator import Aggregate
from strategies.server.collecting import Pending, collect
from strategies.server.method import Method
from strategies.server.round import run_round
from tests.support.serving import exchange_over, method_of, registered
from tests.support.small import small_config

FIVE = ("partition=iid", "partition.clients=5", "engine.clients_per_bank=1", "client.max_steps=3")
TWO = ("strategy=lora_fair", "strategy.phases=2", "strategy.diagnostics=false")
SECURE = SecAggConfig()
POINT = FixedPoint(SECURE.clip, SECURE.bits)
ORDER = ["query.describe", "keys", "shares", "train", "unmask", "keys 2", "shares 2", "query.project", "unmask 2"]


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config(*FIVE, *TWO, "secure_aggregation=secagg"))


def of_two_phases(**options) -> Method:
    aggregator = create_aggregator("lora_fair", phases=2, diagnostics=False)
    return dataclasses.replace(method_of("lora_fair", **options), aggregator=aggregator)


@pytest.fixture(scope="module")
def method() -> Method:
    return of_two_phases()


@pytest.fixture(scope="module")
def plain(method):
    """{client: its update} with nothing masked."""
    exchange, state = registered(Site(small_config(*FIVE, *TWO)))
    return {update.client: update for update in collect(state, method, exchange, {}, Pending())[1].updates}


def one_round(site, method, change=lambda stage, client, reply: reply):
    """(state, report, {stage: {client: reply}}, ledger, the means that clients were sent) of a round."""
    cohort, seen, ledger, means = Cohort(site), {}, [], {}

    def handler(deliveries):
        replies = []
        for (message, context), reply in zip(deliveries, cohort(deliveries), strict=True):
            client, kind = context.node_config["partition-id"], message.metadata.message_type
            stage = str(wire.config(message)["stage"]) if kind == QUERY else kind
            stage = f"{stage} 2" if kind == QUERY and "unmask" in seen and client in seen["unmask"] else stage
            if kind == "query.project":
                means.update(wire.decode(message.content[wire.STATE]))
            reply = change(stage, client, reply)
            seen.setdefault(stage, {})[client] = reply
            replies.append(reply)
        return replies

    _, state = registered(site)
    exchange = exchange_over(LocalGrid(handler, len(site.partitions), strict=True))
    exchange.register_clients(site.backbone.digest, -1)
    exchange.emit = lambda kind, facts: ledger.append((kind, facts))
    state, report = run_round(state, of_two_phases(secure=SECURE), exchange)
    return state, report, seen, ledger, means


def without(stage: str, *clients: int):
    """These clients fail at the stage and say no more."""

    def change(at, client, reply):
        gone = client in clients and ORDER.index(at) >= ORDER.index(stage)
        if not gone:
            return reply
        asked = Message(reply.content, reply.metadata.src_node_id, reply.metadata.message_type)
        asked.metadata.__dict__.update(_src_node_id=reply.metadata.dst_node_id, _run_id=reply.metadata.run_id)
        asked.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
        return Message(Error(1001, "gone"), reply_to=asked)

    return change


def corrected(method, plain, means, left):
    """{layer: B'} by the formula in float64: the correction from Ā, B̄ and the mean image of those that are left."""
    layers, _ = wire.from_tensors(means)
    total = sum(plain[client].examples for client in left)
    images = {
        name: sum(
            plain[c].layers[name].B.double() @ (plain[c].layers[name].A.double() @ mean.A.double().T)
            * (plain[c].examples / total)
            for c in left
        )
        for name, mean in layers.items()
    }  # fmt: skip
    aggregate = method.aggregator.aggregate(list(plain.values()), 1, registered_start(plain), None)
    aggregate = type(aggregate)(layers=layers, head=aggregate.head)
    return method.aggregator.complete(aggregate, images, 1).layers


def registered_start(plain):
    first = next(iter(plain.values()))
    return Aggregate(layers=first.layers, head=first.head)


@pytest.mark.parametrize(("stage", "gone", "left"), [
    ("unmask 2", (), (0, 1, 2, 3, 4)),
    ("query.project", (1, 3), (0, 2, 4)),
    ("unmask 2", (4,), (0, 1, 2, 3, 4)),
])  # fmt: skip
def test_the_correction_is_that_of_the_sum_of_who_is_left(site, method, plain, stage, gone, left):
    state, _, seen, ledger, means = one_round(site, method, without(stage, *gone))
    assert sorted(seen) == sorted(ORDER) and not [kind for kind, _ in ledger if kind == "sum_refused"]
    off = distance(state, corrected(method, plain, means, left))
    assert off < 1e-5
    if set(left) < set(range(5)):  # the control: the others' would have moved it
        assert distance(state, corrected(method, plain, means, range(5))) > 10 * off


def distance(state, exact) -> float:
    """How far the round's B are from these, relatively, at the most."""
    made = state.model.layers
    assert all(torch.equal(made[name].A, factors.A) for name, factors in exact.items())
    return max(float((made[n].B.double() - f.B.double()).norm() / f.B.double().norm()) for n, f in exact.items())


def test_fewer_than_the_threshold_end_the_round_before_anything_is_unmasked(site, method):
    with pytest.raises(RunFailed, match="round 1: too few clients, 2 clients at .* of the secret sum, 3 are needed"):
        one_round(site, method, without("query.project", 0, 1, 2))


def test_of_three_clients_all_are_in_the_second_sum_or_the_round_is_skipped():
    """The threshold of three is two; of a sum of two each would know what the other's answer was."""
    site = Site(small_config(*FIVE, *TWO, "partition.clients=3", "secure_aggregation=secagg"))
    before = registered(site)[1]
    state, report, seen, ledger, _ = one_round(site, None, without("query.project", 2))
    assert [facts["detail"] for kind, facts in ledger if kind == "sum_refused"] == [
        "2 clients are left at training of the secret sum of round 1, 3 are the least of one"
    ]
    assert "unmask 2" not in seen and (state.round, report.round) == (1, 1)
    now, then = (wire.to_tensors(s.model.layers, s.model.head) for s in (state, before))
    assert all(torch.equal(now[name], then[name]) for name in then)


def test_a_second_sum_needs_as_many_as_the_first(site, method):
    """Otherwise clients who did not unmask the first could unmask the second, of others: of three that are left of five
    all are needed, as 3 of 5 were."""
    gone = lambda at, client, reply: without("query.project", 4)(  # noqa: E731
        at, client, without("shares", 0, 1)(at, client, reply)
    )
    with pytest.raises(RunFailed, match="2 clients at training of the secret sum, 3 are needed"):
        one_round(site, method, gone)


def test_a_refused_second_sum_skips_the_round(site, method):
    def lie(stage, client, reply):
        if (stage, client) == ("query.project", 2):
            words = wire.decode(reply.content[wire.STATE])[MASKED].clone()
            words[:40] += 2**60
            reply.content[wire.STATE] = wire.encode({MASKED: words})
        return reply

    before = registered(site)[1]
    state, report, _, ledger, _ = one_round(site, method, lie)
    ((_, facts),) = [entry for entry in ledger if entry[0] == "sum_refused"]
    assert "the masked sum of round 1 is no sum of plausible updates" in facts["detail"]
    assert (state.round, report.round) == (1, 1)
    now, then = (wire.to_tensors(s.model.layers, s.model.head) for s in (state, before))
    assert all(torch.equal(now[name], then[name]) for name in then)


def test_what_arrives_in_either_phase_is_uniform_and_of_masks_of_its_own(site, method):
    """In each phase every byte is as often set as another, and so is the difference of the two, of one mask it would
    not be."""
    _, _, seen, _, _ = one_round(site, method)

    def words(stage, client):
        return wire.decode(seen[stage][client].content[wire.STATE])[MASKED].numpy().view(np.uint64)

    first, second = words("train", 0), words("query.project", 0)
    size = min(first.size, second.size)
    for vector in (first, second, first[:size] - second[:size]):
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        expected = counts.sum() / 256
        assert ((counts - expected) ** 2 / expected).sum() < 400  # χ² with 255 degrees of freedom: 1e-8
    plain_words = POINT.encode(torch.randn(size).double() / 10, 20, np.random.default_rng(0))
    counts = np.bincount(plain_words.view(np.uint8), minlength=256)  # the control
    assert ((counts - counts.sum() / 256) ** 2 / (counts.sum() / 256)).sum() > 4000


def test_of_a_round_one_set_of_clients_is_unmasked(site, method):
    """A second sum with one client less would show that one's update by the difference; the same set again, as after a
    restart of the server, shows nothing new."""
    cohort, drop = Cohort(site), set()

    def handler(deliveries):
        there = [(m, c) for m, c in deliveries if c.node_config["partition-id"] not in drop
                 or m.metadata.message_type in ("query.describe",)]  # fmt: skip
        return cohort(there) if len(there) == len(deliveries) else [
            next(iter(cohort([(m, c)]))) if (m, c) in there else Message(Error(1001, "gone"), reply_to=m)
            for m, c in deliveries
        ]  # fmt: skip

    _, state = registered(site)
    exchange = exchange_over(LocalGrid(handler, 5))
    exchange.register_clients(site.backbone.digest, -1)
    secure = of_two_phases(secure=SECURE)
    first = run_round(state, secure, exchange)[0]
    again = run_round(state, secure, exchange)[0]
    for name, factors in first.model.layers.items():
        assert torch.allclose(factors.B, again.model.layers[name].B, atol=1e-6)
    drop.add(4)
    with pytest.raises(
        RunFailed, match="asked to unmask clients .0, 1, 2, 3., after clients .0, 1, 2, 3, 4. in round 1"
    ):
        run_round(state, secure, exchange)


@pytest.mark.slow
def test_a_whole_run_is_that_without_masks_to_the_stated_step():
    words = (*FIVE, *TWO, "rounds=2")
    scores = []
    for site in (Site(small_config(*words, "secure_aggregation=secagg")), Site(small_config(*words))):
        exchange, state = registered(site)
        secure = SECURE if site.config.secure_aggregation.name == "secagg" else None
        for _ in range(2):
            state, _ = run_round(state, of_two_phases(secure=secure), exchange)
        scores.append(wire.to_tensors(state.model.layers, state.model.head))
    masked, bare = scores
    for name, value in bare.items():
        assert float((masked[name] - value).norm()) <= 1e-4 * float(value.norm()), name


def test_a_sum_keeps_nothing_but_whose_it_was(site, method):
    context_states = []
    cohort = Cohort(site)

    def handler(deliveries):
        replies = cohort(deliveries)
        context_states[:] = [context.state for _, context in deliveries]
        return replies

    _, state = registered(site)
    exchange = exchange_over(LocalGrid(handler, 5))
    exchange.register_clients(site.backbone.digest, -1)
    run_round(state, of_two_phases(secure=SECURE), exchange)
    for kept in context_states:
        own = kept[secagg.OWN]
        assert isinstance(own, ConfigRecord)
        assert set(own) == {"round", "stage", "revealed-secagg", "revealed-secagg-images"}
