"""The Flower side: one strategy, the in-process grid, and a ClientApp that is a cohort of one."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from clients.client_app import app as client_app
from clients.cohort import Cohort
from clients.engine.plan import split_evenly
from clients.site import Site
from fedinit import wire
from fedinit.config.flower import to_run_config
from fedinit.errors import RunFailed
from fedinit.state import digest
from fedinit.transport.local import LocalGrid
from strategies import server_app
from strategies.server import collecting, requests
from strategies.server.delivery import WatchedGrid
from strategies.server.exchange import Exchange
from strategies.server.federation import federate
from tests.support.ledger import Ledger
from tests.support.serving import exchange_over, method_of, registered
from tests.support.small import WORDS, slow, small_config


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


def run(site: Site, *overrides: str, grid_class=LocalGrid, handler=None, **options):
    config = small_config(*overrides)
    site = site if config == site.config else Site(config)
    grid = grid_class(handler or Cohort(site), len(site.partitions), **options)
    evaluate = site.evaluate_round if config.evaluation.where == "server" else None
    return federate(config, grid, site.backbone, evaluate_fn=evaluate)


def test_same_seed_gives_the_same_final_hash_and_another_seed_does_not(site):
    assert run(site).final_hash == run(site).final_hash
    assert run(site).final_hash != run(site, "seed=1").final_hash


class ShuffledGrid(LocalGrid):
    """Replies in a random order, as a network gives them."""

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        random.Random(len(self._replies)).shuffle(replies)
        return replies[::-1]


def test_order_of_replies_and_serialisation_change_no_bit(site):
    plain = run(site).final_hash
    assert run(site, grid_class=ShuffledGrid).final_hash == plain
    assert run(site, strict=True).final_hash == plain


@pytest.mark.parametrize(
    "method",
    [
        *["lora_fair", "fedsa_lora", "ffa_lora strategy.frozen=B init=mica"],
        "ravan init=random_core adapter.ranks=[2,4]",
        *slow(
            "fedit", "flora", "ffa_lora", "head_alone", "rolora", "fed_sb init=lora_xs", "fedit init=pissa", "lora_a2"
        ),
    ],
)
def test_cohort_and_client_app_one_by_one_agree(method):
    """The same two rounds through the cohort (all clients in one bank) and through `client_app(message, context)`
    one by one. A bank changes rounding only: 1e-5 relative."""
    words = [*WORDS, *f"strategy={method}".split(), "evaluation=clients", "adapter.dropout=0.1"]
    site = Site(small_config(*words[len(WORDS) :]))
    together = federate(site.config, LocalGrid(Cohort(site), 3), site.backbone)

    def one_by_one(deliveries):
        return [client_app(message, context) for message, context in deliveries]

    run_config = to_run_config(site.config)
    apart = federate(site.config, LocalGrid(one_by_one, 3, run_config=run_config), site.backbone)
    ours, theirs = (
        wire.to_tensors(o.aggregate.layers, o.aggregate.head) | {f"offset {n}": t for n, t in o.offset.items()}
        for o in (together, apart)
    )
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6, msg=name)
    assert together.score == apart.score


def test_server_and_client_evaluation_count_the_same(site):
    by_server = run(site).score
    by_clients = run(site, "evaluation=clients", "evaluation.head_alone=false").score
    assert by_server == by_clients


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_clients_evaluate_what_has_the_rank_of_all_of_them_together(kind):
    """FLoRA's global factors after a last round, of more than a map's own rank: 7 x 4 for widths of 24."""
    words = ("strategy=flora", f"adapter={kind}", "adapter.rank=4", "partition=iid", "partition.clients=7", "rounds=1")
    by_server, by_clients = (
        run(Site(small_config(*words, e)), *words, e) for e in ("evaluation=server", "evaluation=clients")
    )
    assert by_server.score is not None and by_server.score == by_clients.score
    assert max(factors.rank for factors in by_clients.aggregate.layers.values()) == 28


def test_start_refuses_a_generator_of_messages(site):
    """Flower's HttpGrid reads the messages twice; a generator would fail in deployment only."""
    grid = LocalGrid(Cohort(site), 3)
    with pytest.raises(TypeError, match="must be a list"):
        grid.push_messages(Message(RecordDict(), n, "query.describe") for n in grid.get_node_ids())
    assert isinstance(grid, Grid)


def test_a_client_cannot_change_what_the_next_one_is_sent(site):
    """Delivered records are the receiver's own, also when the sender used one object for all."""
    seen = []

    def meddling(deliveries):
        replies = []
        for message, _ in deliveries:
            seen.append(message.content["config"].get("mark"))
            message.content["config"]["mark"] = 1
            replies.append(Message(RecordDict(), reply_to=message))
        return replies

    shared = RecordDict({"config": ConfigRecord({"x": 1})})
    grid = LocalGrid(meddling, 3)
    grid.send_and_receive([Message(shared, n, "train") for n in grid.get_node_ids()])
    assert seen == [None, None, None] and "mark" not in shared["config"]


def one_round(site: Site) -> tuple[Callable[[Sequence[Message]], collecting.Admitted], list[Message]]:
    """What makes updates of replies to round 1, and the clients' replies."""
    method, (exchange, state) = method_of(), registered(site)
    clients = method.sample(1, exchange.clients)
    _, messages, expected = requests.for_training(state, method, exchange, clients)
    replies = exchange.send(messages, 60.0)
    return lambda replies: collecting.admit(method, exchange, replies, expected), replies


def test_sampling_is_a_function_of_seed_and_round():
    """Partial participation draws partition ids, so random node ids do not matter."""
    first, second = (method_of(participation=0.67) for _ in range(2))
    drawn = [first.sample(r, range(3)) for r in range(1, 30)]
    assert drawn == [second.sample(r, range(3)) for r in range(1, 30)]
    assert all(len(d) == 2 and d == sorted(d) for d in drawn)
    assert {c for d in drawn for c in d} == {0, 1, 2}
    other = method_of(participation=0.67, seed=1)
    assert drawn != [other.sample(r, range(3)) for r in range(1, 30)]


HEAD = {"t", "s"}  # the last letters of head/weight and head/bias


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        # A goes down in the first round only; what comes back is B.
        ("ffa_lora", [("AB", "B"), ("B", "B"), ("B", "B")]),
        # Each round sends the factor that the last one trained; the one that is trained next is held since then.
        ("rolora", [("AB", "B"), ("B", "A"), ("A", "B")]),
        ("fedit", [("AB", "AB"), ("AB", "AB"), ("AB", "AB")]),
        ("fed_sb init=random_core", [("ABR", "R"), ("R", "R"), ("R", "R")]),
        ("ffa_lora strategy.frozen=B init=mica", [("AB", "A"), ("A", "A"), ("A", "A")]),
    ],
)
def test_a_factor_that_a_client_holds_is_not_sent_again(site, strategy, expected):
    config = small_config(*f"strategy={strategy}".split(), "rounds=3")
    sizes = []

    class Watching(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            if messages and messages[0].metadata.message_type == "train":
                down, up = messages[0].content["state"], replies[0].content["state"]
                sizes.append(({n[-1] for n in down}, {n[-1] for n in up}))
            return replies

    federate(config, Watching(Cohort(site), 3), site.backbone)
    assert sizes == [(set(down) | HEAD, set(up) | HEAD) for down, up in expected]


def gauge(tensors: dict, c: float, back: float | None = None) -> None:
    """(cB, A/c): the same product, of factors that ruin an average. `back` in place of 1/c changes the product."""
    for name, value in tensors.items():
        if name[-2:] == "/B":
            tensors[name] = (value / value.norm() if back else value) * c
        elif name[-2:] == "/A":
            tensors[name] = value * (back or 1 / c)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda s, m: s.__setitem__("head/bias", s["head/bias"] * float("nan")), "not_finite"),
        (lambda s, m: s.__setitem__("head/bias", s["head/bias"][:1]), "shape"),
        (lambda s, m: s.__setitem__("head/bias", s["head/bias"].double()), "dtype"),
        (lambda s, m: s.pop("head/bias"), "names"),
        (lambda s, m: s.__setitem__("extra/A", s["head/bias"]), "names"),
        (lambda s, m: m.__setitem__("num-examples", -3), "weight"),
        (lambda s, m: m.__setitem__("num-examples", 1.5), "weight"),
        (lambda s, m: m.__setitem__("round", 7), "round"),
        (lambda s, m: m.pop("num-examples"), "missing_record"),
        (lambda s, m: m.__setitem__("loss", [1.0]), "metrics"),
        (lambda s, m: m.__setitem__("loss", float("nan")), "metrics"),
        (lambda s, m: s.__setitem__("head/bias", s["head/bias"] + 1e9), "head_norm"),
        (lambda s, m: gauge(s, 100.0), "factor_norm"),
        (lambda s, m: gauge(s, 0.01), "factor_norm"),
        (lambda s, m: gauge(s, 9.0, 9.0), "product_norm"),
    ],
)
def test_the_gate_names_why_it_refuses(site, spoil, code):
    """Each of these is averaged, or ends the run, in stock Flower. The same reply unspoiled is let in."""
    judge, replies = one_round(site)
    admitted = judge(replies)
    assert len(admitted.updates) == 3 and not admitted.refusals

    tensors, metrics = wire.decode(replies[0].content["state"]), dict(replies[0].content["metrics"])
    spoil(tensors, metrics)
    replies[0].content = RecordDict({"state": wire.encode(tensors), "metrics": MetricRecord(metrics)})
    admitted = judge(replies)
    assert [u.client for u in admitted.updates] == [1, 2]
    assert [(r.client, r.code) for r in admitted.refusals] == [(0, code)]


def test_a_reply_is_counted_once(site):
    judge, replies = one_round(site)
    admitted = judge([*replies, replies[1]])
    assert len(admitted.updates) == 3 and [(r.client, r.code) for r in admitted.refusals] == [(1, "duplicate")]
    admitted = judge(replies[:2])
    assert len(admitted.updates) == 2 and [(r.client, r.code) for r in admitted.refusals] == [(2, "no_reply")]


def test_divergence_ends_with_a_reason(site):
    with pytest.raises(RunFailed, match="round 1: no usable update .*not_finite.*lower client.lr"):
        run(site, "client.lr=1e30", "client.clip_norm=null")


def test_another_backbone_is_refused_on_both_sides(site):
    """By the client, and by the server where a client says nothing of it."""
    other = digest.of_tensors({})
    with pytest.raises(RunFailed, match="could not start: .*the run is for the backbone .* this client holds"):
        exchange_over(LocalGrid(Cohort(site), 3)).register_clients(other, -1)

    def careless(deliveries):
        for message, _ in deliveries:
            message.content[wire.CONFIG]["backbone"] = site.backbone.digest
        return Cohort(site)(deliveries)

    with pytest.raises(RunFailed, match="another backbone"):
        exchange_over(LocalGrid(careless, 3)).register_clients(other, -1)


def test_many_clients_are_introduced_by_one_and_counted_as_if_each_had_said_who_it_is():
    """150 of 1 to 3 images: the numbers of ids 63 and 64, and of ids 127 and 128, differ in bytes."""
    site, asked = Site(small_config("partition=iid", "partition.clients=150")), []
    cohort = Cohort(site)

    def each(deliveries):  # a handler of which nothing is known but its replies
        asked.extend(deliveries)
        return Cohort(site)(deliveries)

    met = [exchange_over(LocalGrid(handler, 150)) for handler in (cohort, each)]
    said = [exchange.register_clients(site.backbone.digest, -1) for exchange in met]
    assert said[0] == said[1] and len(asked) == 150
    few, all_ = met
    assert (few.bytes_up, few.bytes_down) == (all_.bytes_up, all_.bytes_down)
    assert few.by_client == all_.by_client and not few.discover(0.0, 0)


def test_attackers_and_clients_with_a_past_speak_for_themselves(site):
    grid = LocalGrid(Cohort(site), 3)
    assert len(grid.holdings([1000, 1001, 1002])) == 3
    assert all(grid.contexts.there(node) is None for node in (1000, 1001, 1002))  # nobody's was made to look for it
    grid.contexts[1001].state["kept"] = ConfigRecord({})
    assert not grid.holdings([1000, 1001, 1002])
    claims = small_config("attack=claims", "attack.clients=[1]", "attack.register=true")
    assert not LocalGrid(Cohort(Site(claims)), 3).holdings([1000, 1001, 1002])
    for words in (("attack=sign_flip",), ("attack=claims", "attack.register=false")):  # who say what is so
        honest = small_config(*words, "attack.clients=[1]")
        assert len(LocalGrid(Cohort(Site(honest)), 3).holdings([1000, 1001, 1002])) == 3
    exchange = exchange_over(LocalGrid(Cohort(Site(claims)), 3))
    said = exchange.register_clients(site.backbone.digest, -1)
    assert said[1].examples > 1000 * said[0].examples


def test_a_node_more_than_there_are_partitions_is_refused_by_name(site):
    exchange, events = exchange_over(LocalGrid(Cohort(site), 4)), []
    exchange.emit = lambda kind, facts: events.append((kind, facts["detail"]))
    assert list(exchange.register_clients(site.backbone.digest, -1)) == [0, 1, 2] == exchange.clients
    ((kind, detail),) = events
    assert kind == "node_refused" and detail.startswith("node 1003: ") and "this run has 3 partitions, 0 to 2" in detail


def test_clients_that_disagree_end_the_meeting_at_once(site):
    """One says that a thousand more are to come: nobody waits for them."""
    honest = Cohort(site)

    def handler(deliveries):
        replies = honest(deliveries)
        for reply, (_, context) in zip(replies, deliveries, strict=True):
            if context.node_id == 1001:
                reply.content["config"]["num-partitions"] = 1000
        return replies

    exchange = exchange_over(LocalGrid(handler, 3), timeout=60.0)
    began = time.monotonic()
    with pytest.raises(RunFailed, match="client 1 has other partitions than client 0: 1000"):
        exchange.register_clients(site.backbone.digest, -1)
    assert time.monotonic() - began < 30


def test_split_evenly_covers_in_order():
    for n in range(1, 40):
        for size in range(1, 8):
            parts = split_evenly(list(range(n)), size)
            assert [x for p in parts for x in p] == list(range(n))
            assert max(map(len, parts)) <= size and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert split_evenly([], 3) == []


def test_context_is_the_nodes_own(site):
    grid = LocalGrid(Cohort(site), 3)
    assert {c.node_config["partition-id"] for c in grid.contexts.values()} == {0, 1, 2}
    assert all(isinstance(c, Context) for c in grid.contexts.values())


def test_what_a_run_waits_for_is_said_at_once_and_again(site, monkeypatch):
    monkeypatch.setattr("strategies.server.exchange.SAY_SECONDS", 0.4)
    said = []
    for nodes in (2, 0):
        exchange = Exchange(LocalGrid(Cohort(site), nodes), timeout=0.9, emit=lambda *_: None, waiting=said.append)
        with pytest.raises(RunFailed, match=f"{nodes} of {3 if nodes else 1} clients were there after 0.9 s"):
            exchange.register_clients(site.backbone.digest, -1)
    assert len(said) == 4 and all("the run fails in" in text for text in said)
    assert all("2 of 3 clients are there; waits for nodes with partition-id 2," in text for text in said[:2])
    assert all("no node has said who it is yet" in text for text in said[2:])
    exchange = Exchange(LocalGrid(Cohort(site), 3), timeout=0.9, emit=lambda *_: None, waiting=said.append)
    exchange.register_clients(site.backbone.digest, -1)
    assert len(said) == 4  # nobody was waited for


class Slow(LocalGrid):
    """Gives each reply at the look after so many, as `late` has it."""

    def __init__(self, site: Site, late: Callable[[Message], int]) -> None:
        super().__init__(Cohort(site), 3)
        self.late, self.looks = late, Counter[str]()

    def pull_messages(self, message_ids):
        there = [i for i in message_ids if i in self._replies]
        self.looks += Counter(there)
        return super().pull_messages([i for i in there if self.looks[i] > self.late(self._replies[i])])


def test_a_run_says_that_it_waits_for_nodes_that_are_slow_to_say_who_they_are(site, monkeypatch):
    """As they are that read a gigabyte of images first; while they do, nobody else is asked."""
    monkeypatch.setattr("strategies.server.exchange.SLOW_SECONDS", 0.0)
    monkeypatch.setattr("strategies.server.delivery.POLL_SECONDS", (0.01, 0.01))

    said = []
    grid = WatchedGrid(Slow(site, lambda reply: 3))
    exchange = Exchange(grid, timeout=60.0, emit=lambda *_: None, waiting=said.append)
    assert set(exchange.register_clients(site.backbone.digest, -1)) == {0, 1, 2}
    assert len(said) == 1 and said[0].startswith("waits for clients; no node has said who it is yet, the run fails in ")


def test_a_round_that_takes_long_says_whose_updates_it_waits_for(site, monkeypatch):
    """Once for those who are missing, and anew where these are others."""
    monkeypatch.setattr("strategies.server.collecting.SAY_SECONDS", 0.0)
    monkeypatch.setattr("strategies.server.delivery.POLL_SECONDS", (0.01, 0.01))

    def late(reply: Message) -> int:
        late_one = reply.metadata.src_node_id == 1001
        return (4 if late_one else 2) if reply.metadata.message_type == "train" else 0

    ledger, config = Ledger(), small_config("rounds=1", "evaluation=none", "strategy=fedit")
    federate(config, WatchedGrid(Slow(site, late)), site.backbone, observers=[ledger])
    assert ledger.heard == [
        "round 1: waits for the updates of clients 0, 1, 2",
        "round 1: waits for the update of client 1",
    ]


def test_a_run_of_another_federation_is_not_done(tmp_path, capsys):
    """Neither one of that name with other clients, nor one of the same clients by another name."""
    config = small_config("evaluation=clients", "rounds=1", "client.max_steps=1", f"output_dir={tmp_path}")
    context: Any = SimpleNamespace(run_config=to_run_config(config))

    def said(federation: str, clients_config=config) -> str:
        grid = LocalGrid(Cohort(Site(clients_config)), 3)
        grid.set_run(dataclasses.replace(Run.create_empty(1), federation_id=federation))
        server_app.main(grid, context)
        return capsys.readouterr().out

    assert "round 1/1" in said("one") and "this run is done" in said("one")
    assert "done by another federation; it is moved aside" in said("two")
    smaller = small_config("evaluation=clients", "rounds=1", "client.max_steps=1", "data.validation_fraction=0.5")
    assert "done by another federation; it is moved aside" in said("two", smaller)
    assert "this run is done" in said("two", smaller)
    assert len(list((tmp_path / "digits").iterdir())) == 3
    (file,) = (path for path in tmp_path.rglob("federation.json") if path.parent.name.endswith("-s0"))
    file.write_text("{")
    assert "its federation.json is not there or cannot be read, so that nobody can say which" in said("two", smaller)
