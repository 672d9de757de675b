"""Nodes that answer late, go, or come back: the watched grid, the strategy that greets them, and what a site keeps."""

from __future__ import annotations

import dataclasses
import itertools
import time
import types

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from PIL import Image

from clients.cohort import Cohort
from clients.site import Site
from clients.state.disk import Kept
from fedinit.errors import InputError, RunFailed
from fedinit.state.checkpoint import Checkpoints
from fedinit.transport.local import LocalGrid
from strategies.server import delivery
from strategies.server.delivery import WatchedGrid
from strategies.server.federation import federate
from tests.support.small import slow_unless, small_config
from tests.support.state_on_disk import keeping

# -- the watched grid ----------------------------------------------------------------------------------------------


class SlowGrid(LocalGrid):
    """Answers node n after `delays[n]` looks; `online` is what the nodes' times of coming online are."""

    def __init__(self, delays: dict[int, int], nodes: int = 2) -> None:
        super().__init__(lambda pairs: [Message(RecordDict(), reply_to=m) for m, _ in pairs], nodes)
        self.delays, self.looks, self.online = delays, 0, dict.fromkeys(self.contexts, "1")
        self.of: dict[str, int] = {}

    def get_nodes(self):
        return [NodeInfo(node_id=n, last_activated_at=since) for n, since in self.online.items()]

    def push_messages(self, messages):
        ids = super().push_messages(messages)
        self.of |= {i: m.metadata.dst_node_id for i, m in zip(ids, messages, strict=True)}
        return ids

    def pull_messages(self, message_ids):
        self.looks += 1
        return super().pull_messages([i for i in message_ids if self.looks > self.delays.get(self.of[i], 0)])


def ask(grid: SlowGrid, timeout: float = 20.0) -> list[Message]:
    messages = [Message(RecordDict(), n, "train") for n in grid.contexts]
    return WatchedGrid(grid).send_and_receive(messages, timeout=timeout)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    LocalGrid(lambda pairs: [], 1)  # tells Flower who sends, without which there are no messages
    monkeypatch.setattr(delivery, "POLL_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(delivery, "LOOK_SECONDS", 0.05)


def test_replies_are_taken_as_they_come():
    assert [r.metadata.src_node_id for r in ask(SlowGrid({1000: 5}))] == [1001, 1000]


def test_the_deadline_holds():
    began = time.monotonic()
    assert [r.metadata.src_node_id for r in ask(SlowGrid({1000: 10**9}), timeout=0.3)] == [1001]
    assert time.monotonic() - began < 5


def test_a_node_that_came_online_again_is_not_waited_for():
    grid = SlowGrid({1000: 10**9})
    asked = grid.push_messages

    def push(messages):
        ids = asked(messages)
        grid.online[1000] = "2"
        return ids

    grid.push_messages = push
    lost = {r.metadata.src_node_id: r for r in ask(grid, timeout=60)}[1000]
    assert lost.error.code == ErrorCode.NODE_UNAVAILABLE and "started again" in lost.error.reason


def test_a_node_that_was_offline_when_asked_is_waited_for():
    """The SuperLink keeps its message until it comes."""
    grid = SlowGrid({1000: 15})
    del grid.online[1000]
    asked = grid.push_messages

    def push(messages):
        ids = asked(messages)
        grid.online[1000] = "2"
        return ids

    grid.push_messages = push
    assert not any(r.has_error() for r in ask(grid)) and len(ask(grid)) == 2


def test_an_answer_of_the_superlinks_is_its_nodes_and_an_untaken_message_is_nobodys():
    grid = SlowGrid({})

    def gone(pairs):
        replies = [Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=m) for m, _ in pairs]
        for reply in replies:
            reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        return replies

    grid._handler = gone
    assert [r.metadata.src_node_id for r in ask(grid)] == [1000, 1001]
    asked = grid.push_messages
    grid.push_messages = lambda messages: [None, *asked(messages)[1:]]
    assert [r.metadata.src_node_id for r in ask(grid)] == [1001]


# -- a node that goes in mid-run -----------------------------------------------------------------------------------


class MortalGrid(LocalGrid):
    """Client 1's node dies in round 2, before or after it trained, and comes back under an id of its own with an empty
    Context, or under its old one. `ghost`: the dead node stays in the list of those online."""

    def __init__(self, handler, new_id: int, trained: bool, ghost: bool = False) -> None:
        super().__init__(handler, 3)
        self.new_id, self.trained, self.ghost = new_id, trained, ghost
        self.online, self.died = dict.fromkeys(self.contexts, "1"), False

    def get_node_ids(self):
        return list(self.online)

    def get_nodes(self):
        return [NodeInfo(node_id=n, last_activated_at=since) for n, since in self.online.items()]

    def send_and_receive(self, messages, *, timeout=None):
        if self.died and self.new_id != 1001:  # nobody answers under the old id
            messages = [m for m in messages if m.metadata.dst_node_id != 1001]
        fatal = [m for m in messages if m.metadata.message_type == "train" and m.metadata.dst_node_id == 1001]
        if self.died or not fatal or fatal[0].content["config"]["round"] != 2:
            return super().send_and_receive(messages, timeout=timeout)
        rest = [m for m in messages if m.metadata.dst_node_id != 1001]
        replies = super().send_and_receive(messages if self.trained else rest, timeout=timeout)
        self.died, old = True, self.contexts[1001]
        if not self.ghost:
            del self.online[1001], self.contexts[1001]
        self.online[self.new_id] = "2"
        self.contexts[self.new_id] = Context(1, self.new_id, old.node_config, RecordDict(), {})
        return [r for r in replies if r.metadata.src_node_id != 1001]


TWICE = "partition-id 1 is given to two nodes; each needs one of its own"


class Watcher:
    def __init__(self):
        self.events = []

    def __getattr__(self, name):
        return lambda *_: None

    def event(self, kind, facts):
        self.events.append((kind, dict(facts)))

    @property
    def kinds(self):
        return [kind for kind, _ in self.events]


METHODS = [["strategy=lora_fair"], ["strategy=fedsa_lora"], ["reinit=local"], ["strategy=flora"]]


def settings(*words: str):
    common = ("rounds=3", "evaluation=clients", "engine.clients_per_bank=1", "client.max_steps=1", "quorum=1.0")
    return small_config(*common, *words)


@pytest.fixture(scope="module")
def undisturbed():
    found = {}

    def run(words):
        if tuple(words) not in found:
            config = settings(*words)
            site = Site(config)
            found[tuple(words)] = config, site, federate(config, LocalGrid(Cohort(site), 3), site.backbone).final_hash
        return found[tuple(words)]

    return run


# A personal factor comes back in every way, what else there is in one each.
BACK = [("fedsa_lora", 1001, True), ("lora_fair", 5, True), ("local", 1001, True), ("flora", 5, False)]


@pytest.mark.parametrize(
    ("words", "node", "trained"),
    slow_unless(
        lambda words, *how: (words[0].partition("=")[2], *how) in BACK,
        itertools.product(METHODS, [1001, 5], [False, True]),
    ),
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_client_whose_node_was_started_again_changes_no_bit(undisturbed, tmp_path, words, node, trained):
    config, site, expected = undisturbed(words)
    grid, watcher = MortalGrid(keeping(config, Cohort(site, persistent=True), tmp_path), node, trained), Watcher()
    assert federate(config, grid, site.backbone, observers=[watcher]).final_hash == expected
    assert grid.died and "client_back" in watcher.kinds and "client_state_lost" not in watcher.kinds


def test_without_a_folder_a_personal_factor_is_lost_and_the_ledger_says_so(undisturbed):
    """The negative control of the test above: the state of a client is what the disk is for."""
    config, site, expected = undisturbed(["strategy=fedsa_lora"])
    grid, watcher = MortalGrid(Cohort(site, persistent=True), 5, True), Watcher()
    assert federate(config, grid, site.backbone, observers=[watcher]).final_hash != expected
    assert "client_state_lost" in watcher.kinds


def test_a_dead_node_that_is_still_listed_loses_its_place_once_it_gave_no_answer(undisturbed, tmp_path):
    config, site, expected = undisturbed(["strategy=lora_fair"])
    grid = MortalGrid(keeping(config, Cohort(site, persistent=True), tmp_path), 5, trained=False, ghost=True)
    assert federate(config, grid, site.backbone).final_hash == expected


def test_nobody_takes_the_place_of_a_client_that_is_there(undisturbed):
    """A second node that says it is client 1, in mid-run: refused, and the run is what it was."""
    config, site, expected = undisturbed(["strategy=lora_fair"])

    class Joined(LocalGrid):
        def get_nodes(self):
            return [NodeInfo(node_id=node) for node in self.contexts]

        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            self.contexts.setdefault(7, Context(1, 7, dict(self.contexts[1001].node_config), RecordDict(), {}))
            return replies

    watcher = Watcher()
    grid = Joined(Cohort(site), 3)
    assert federate(config, grid, site.backbone, observers=[watcher]).final_hash == expected
    assert ("node_refused", {"round": 1, "detail": "partition-id 1 is another node's"}) in watcher.events


class Arriving(LocalGrid):
    """Nodes of keys without names, of which some come online later.

    arrivals: {message type: {node: the partition id that it says}} of those that do once such a message was sent, again
    where they are there. gone: {message type: nodes} that are online no more by then.
    """

    def __init__(self, site, arrivals: dict[str, dict[int, int]], gone: dict[str, list[int]] | None = None) -> None:
        super().__init__(Cohort(site), 3, strict=True)
        self.arrivals, self.gone, self.since = arrivals, gone or {}, dict.fromkeys(self.contexts, "1")

    def add(self, node: int, client: int, since: str) -> None:
        facts = {**self.contexts[1001].node_config, "partition-id": client}
        self.contexts[node] = Context(1, node, facts, RecordDict(), {})
        self.since[node] = since

    def get_node_ids(self):
        return list(self.since)

    def get_nodes(self):
        return [NodeInfo(node_id=node, last_activated_at=since) for node, since in self.since.items()]

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        kind = messages[0].metadata.message_type
        for node in self.gone.pop(kind, []):
            del self.since[node]
        for node, client in self.arrivals.pop(kind, {}).items():
            self.add(node, client, "2")
        return replies


def refused(watcher: Watcher) -> set[str]:
    return {facts["detail"] for kind, facts in watcher.events if kind == "node_refused"}


def test_of_two_nodes_that_are_one_client_at_once_neither_is_used(undisturbed):
    """Nobody can say which is right, and the order of their ids says nothing."""
    _, site, _ = undisturbed(["strategy=lora_fair"])
    for strange in (7, 1007):
        grid, watcher = Arriving(site, {}), Watcher()
        grid.add(strange, 1, "1")
        federate(small_config("rounds=1", "client.max_steps=1"), grid, site.backbone, observers=[watcher])
        assert refused(watcher) == {f"node {strange}: {TWICE}", f"node 1001: {TWICE}"}


def test_a_place_that_two_nodes_want_in_mid_run_is_neithers(undisturbed):
    """Client 1's node goes after round 1, and two come that say they are client 1. Alone, one of them takes its place:
    the control."""
    _, site, _ = undisturbed(["strategy=lora_fair"])
    config = small_config("rounds=3", "client.max_steps=1", "reply_timeout=1", "node_timeout=1")
    for fresh in ({7: 1, 8: 1}, {7: 1}):
        grid, watcher = Arriving(site, {"train": dict(fresh)}, {"train": [1001]}), Watcher()
        federate(config, grid, site.backbone, observers=[watcher])
        twice = {f"node {node}: partition-id 1 is given to two nodes; neither is used" for node in fresh}
        assert refused(watcher) == (twice if len(fresh) == 2 else set())
        assert ("client_back" in watcher.kinds) == (len(fresh) == 1)


def test_a_node_that_is_one_client_becomes_no_other(undisturbed):
    """Client 2's node comes again as client 1, whose node is gone."""
    _, site, _ = undisturbed(["strategy=lora_fair"])
    config = small_config("rounds=2", "client.max_steps=1", "reply_timeout=1", "node_timeout=1")
    grid, watcher = Arriving(site, {"train": {1002: 1}}, {"train": [1001]}), Watcher()
    federate(config, grid, site.backbone, observers=[watcher])
    assert refused(watcher) == {"node 1002: it is client 2, and says that it is client 1"}


def test_a_node_of_this_process_is_the_client_that_it_was_made_as(undisturbed):
    """As one whose key is registered: what a client says costs its own alone, of a few clients too."""
    _, site, _ = undisturbed(["strategy=lora_fair"])
    honest, watcher = Cohort(site), Watcher()

    def handler(pairs):
        replies = honest(pairs)
        for (message, context), reply in zip(pairs, replies, strict=True):
            if context.node_id == 1001 and message.metadata.message_type == "query.describe":
                reply.content["config"]["partition-id"] = 2
        return replies

    federate(small_config("rounds=1", "client.max_steps=1"), LocalGrid(handler, 3), site.backbone, observers=[watcher])
    assert refused(watcher) == {"node 1001: it is registered as site-1, and says that it is client 2"}


def test_a_node_is_the_client_that_its_key_was_registered_as(undisturbed):
    """Two nodes say at once that they are client 1, the stranger first: the name of its key is the server's."""
    config, site, expected = undisturbed(["strategy=lora_fair"])

    def started(names):
        class Named(LocalGrid):
            def get_nodes(self):
                return [NodeInfo(node_id=node, name=names.get(node, "")) for node in sorted(self.contexts)]

        grid, watcher = Named(Cohort(site), 3, strict=True), Watcher()
        grid.contexts[7] = Context(1, 7, dict(grid.contexts[1001].node_config), RecordDict(), {})
        hash_ = federate(config, grid, site.backbone, observers=[watcher]).final_hash
        return hash_, [facts["detail"] for kind, facts in watcher.events if kind == "node_refused"]

    own = {1000: "site-0", 1001: "site-1", 1002: "site-2"}
    said = "node 7: it is registered as site-9, and says that it is client 1"
    assert started(own | {7: "site-9"}) == (expected, [said])
    # The control: of keys without names, as flwr's own command may register them, nobody knows.
    with pytest.raises(RunFailed, match=TWICE):
        started({})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda facts: facts.pop("held"), "KeyError"),
        (lambda facts: facts.update({"backbone": "another"}), "other classes, domains, score or another backbone"),
        (lambda facts: facts.update({"score": "recovery_error"}), "other classes, domains, score or another backbone"),
        (lambda facts: facts.update({"partition-id": 9}), "partition-id is 9, expected a whole number from 0 to 2"),
        (
            lambda facts: facts.update({"partition-id": 9, "num-partitions": 10}),
            "partition-id 9 is no client of this run",
        ),
    ],
    ids=["short", "backbone", "score", "beyond", "unknown"],
)
def test_a_node_that_does_not_fit_ends_no_run(undisturbed, spoil, said):
    """One that comes in mid-run and says of itself what cannot be: refused, and the run is what it was."""
    config, site, expected = undisturbed(["strategy=lora_fair"])
    honest = Cohort(site)

    def handler(pairs):
        replies = honest(pairs)
        for reply, (_, context) in zip(replies, pairs, strict=True):
            if context.node_id == 7:
                spoil(reply.content["config"])
        return replies

    class Joined(LocalGrid):
        def get_nodes(self):
            return [NodeInfo(node_id=node) for node in self.contexts]

        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            if messages[0].metadata.message_type == "train":
                self.contexts.setdefault(7, Context(1, 7, dict(self.contexts[1001].node_config), RecordDict(), {}))
            return replies

    watcher = Watcher()
    assert federate(config, Joined(handler, 3), site.backbone, observers=[watcher]).final_hash == expected
    (told,) = [facts["detail"] for kind, facts in watcher.events if kind == "node_refused"]
    assert said in told


# -- how long a round takes ----------------------------------------------------------------------------------------


class Clock:
    """In place of the clock of the whole process: it goes on when somebody waits, and at no other time.

    up: the seconds since the machine was started.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, up: float) -> None:
        self.now = up
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.01)


class Dead(LocalGrid):
    """Client 1's node is gone once it was asked to train; with `mute`, another that says nothing came in its place."""

    def __init__(self, handler, clock: Clock, mute: bool) -> None:
        super().__init__(handler, 3)
        self.clock, self.mute, self.gone, self.waits = clock, mute, False, []

    def get_node_ids(self):
        there = [n for n in self.contexts if not (self.gone and n == 1001)]
        return there + ([5] if self.gone and self.mute else [])

    def get_nodes(self):
        return [NodeInfo(node_id=n, last_activated_at="1") for n in self.get_node_ids()]

    def send_and_receive(self, messages, *, timeout=None):
        training = messages[0].metadata.message_type == "train"
        self.gone |= training
        there = [m for m in messages if m.metadata.dst_node_id in self.contexts]
        there = [m for m in there if not (self.gone and m.metadata.dst_node_id == 1001)]
        replies = super().send_and_receive(there, timeout=timeout)
        if len(replies) < len(messages):
            self.clock.now += timeout
        if training:
            self.waits.append(timeout)
        return replies


@pytest.mark.parametrize("up", [0.0, 1e6])
@pytest.mark.parametrize("mute", [False, True])
def test_a_round_ends_when_it_should(undisturbed, monkeypatch, mute, up):
    """(1 + resamples) times reply_timeout, however many nodes are away; who is there has half of each to answer in."""
    config, site, _ = undisturbed(["strategy=lora_fair"])
    config, clock = dataclasses.replace(config, reply_timeout=4.0, resamples=2), Clock(monkeypatch, up)
    grid = Dead(Cohort(site), clock, mute)
    with pytest.raises(RunFailed, match="2 usable updates, the quorum is 3 .no_reply"):
        federate(config, grid, site.backbone)
    assert 4 < clock.now - up <= 12 + 1e-6
    assert len(grid.waits) == 3 and all(2 <= wait <= 4 for wait in grid.waits), grid.waits


def test_round_0_waits_no_longer_than_a_round(undisturbed):
    config, site, _ = undisturbed(["strategy=lora_fair"])

    class Noting(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            if messages[0].metadata.message_type == "query.statistics":
                waits.append(timeout)
            return super().send_and_receive(messages, timeout=timeout)

    words = ("rounds=1", "head=ridge", "client=sgd_sai", "client.gsnr_scope=global_once", "evaluation=none")
    for given, expected in ((None, 3600), (7, 7)):
        waits: list[float] = []
        some = small_config(*words, *([f"reply_timeout={given}"] if given else []))
        federate(some, Noting(Cohort(Site(some)), 3), site.backbone)
        assert len(waits) >= 2 and set(waits) == {expected}


# -- a site's own data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [None, 4])
def test_sites_that_hold_their_own_domain_alone_end_where_the_whole_data_set_does(tmp_path, clients):
    """Two folders of one domain each, one site a client; with four clients, two share a folder."""
    draw = np.random.default_rng(0)
    for domain in ("north", "south"):
        for label in ("a", "b"):
            for root in (tmp_path / "whole", tmp_path / domain):
                (root / domain / label).mkdir(parents=True)
            for i in range(8):
                picture = Image.fromarray(draw.integers(0, 255, (32, 32), dtype=np.uint8))
                for root in (tmp_path / "whole", tmp_path / domain):
                    picture.save(root / domain / label / f"{i}.png")
    count = "null" if clients is None else clients
    words = ["data=image_folder", "data.domains=[north,south]", "data.classes=[a,b]", "data.test_fraction=0.4"]
    words += [f"partition.clients={count}", "evaluation=clients", "engine.clients_per_bank=1"]
    config = small_config(*words, f"data.root={tmp_path / 'whole'}")
    site = Site(config)
    number = len(site.partitions)
    expected = federate(config, LocalGrid(Cohort(site), number), site.backbone)

    def own(client: int) -> Cohort:
        root = tmp_path / ("north", "south")[client * 2 // number]
        return Cohort(Site(small_config(*words, f"data.root={root}"), client), persistent=True)

    cohorts = {client: own(client) for client in range(number)}

    def deliver(pairs):
        return [reply for m, c in pairs for reply in cohorts[c.node_config["partition-id"]]([(m, c)])]

    found = federate(config, LocalGrid(deliver, number), site.backbone)
    assert found.final_hash == expected.final_hash and found.score == expected.score


# -- what a site keeps ---------------------------------------------------------------------------------------------


def message(kind: str, round: int) -> Message:
    made = Message(RecordDict({"config": ConfigRecord({"round": round})}), 1, kind)
    return made


def test_a_round_is_trained_from_what_was_held_before_it(tmp_path):
    config = small_config()
    context = Context(1, 1, {"state-dir": str(tmp_path), "partition-id": 0}, RecordDict(), {})
    kept = Kept.of(context, config)
    for round in (1, 2, 3, 5, 6, 7):
        context.state = RecordDict({"mark": ConfigRecord({"round": round})})
        kept.remember(message("train", round), context)

    def held(kind, round):
        kept.recall(message(kind, round), context)
        return context.state["mark"]["round"] if context.state else None

    assert held("train", 7) == 6 and held("train", 8) == 7 and held("evaluate", 7) == 7
    assert held("train", 6) == 5 and held("train", 5) == 3  # round 4 was without this client
    assert held("train", 3) is None  # four are kept, one more than the server keeps
    assert held("query.describe", 5) == 5 and held("train", 9) == 5  # of a server that came back from round 5
    context.state = RecordDict({"mark": ConfigRecord({"round": 0})})
    kept.remember(message("query.statistics", 0), context)
    assert held("query.describe", 0) == 0 and held("train", 1) == 0
    assert held("query.describe", -1) is None and held("train", 9) is None  # of one that begins anew


def test_two_runs_and_two_clients_keep_apart(tmp_path):
    config, other = small_config(), small_config("seed=1")
    names = set()
    for settings_, client in ((config, 0), (config, 1), (other, 0)):
        context = Context(1, 1, {"state-dir": str(tmp_path), "partition-id": client}, RecordDict(), {})
        context.state["mark"] = ConfigRecord({"x": 1})
        Kept.of(context, settings_).remember(message("train", 1), context)
        names.add(len(list(tmp_path.iterdir())))
    assert names == {1, 2, 3}


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    context = Context(1, 1, {"state-dir": str(tmp_path / "link"), "partition-id": 0}, RecordDict(), {})
    with pytest.raises(InputError, match="state-dir=.*is a symbolic link"):
        Kept.of(context, small_config())
    context.node_config["state-dir"] = str(tmp_path / "real")
    context.state["mark"] = ConfigRecord({"x": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(InputError, match="cannot keep this client's state .No space left on device"):
        Kept.of(context, small_config()).remember(message("train", 1), context)


@pytest.mark.parametrize("given", [None, "one", True])
def test_a_site_without_a_usable_partition_id_is_told_so(given):
    node = {} if given is None else {"partition-id": given}
    with pytest.raises(InputError, match="no partition-id|expected a whole number"):
        Site.partition_of(types.SimpleNamespace(partitions=()), types.SimpleNamespace(node_config=node))


DIGITS = [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    "facts",
    [
        {"classes": ["x", "y"]},
        {"classes": DIGITS[::-1]},  # a class is its place in the list
        {"classes": [*DIGITS, "9"]},
        {"domains": ["inverted", "plain"]},
        {"score": "recovery_error"},
    ],
)
def test_of_two_clients_the_one_that_says_what_the_run_is_not_is_left_out(facts):
    """Client 0, on whose side a draw would be."""
    config = small_config("rounds=1", "data.domains=[plain,inverted]", "client.max_steps=1", "quorum=0.5")
    site, watcher = Site(config), Watcher()
    honest = Cohort(site)

    def handler(pairs):
        replies = honest(pairs)
        for message, reply in zip(pairs, replies, strict=True):
            if message[1].node_id == 1000 and message[0].metadata.message_type == "query.describe":
                for key, value in facts.items():
                    reply.content["config"][key] = value
        return replies

    outcome = federate(config, LocalGrid(handler, 2, strict=True), site.backbone, observers=[watcher])
    assert outcome.rounds == 1
    (told,) = [about["detail"] for kind, about in watcher.events if kind == "node_refused"]
    what = "another score" if "score" in facts else f"other {next(iter(facts))}"
    assert told.startswith(f"node 1000: client 0 has {what} than the run")


def test_of_two_clients_of_classes_that_only_they_know_the_first_is_right(monkeypatch):
    """As of a folder without data.classes, where nothing says who is."""
    from fedinit.data.digits import Digits

    monkeypatch.setattr(Digits, "known_classes", None)
    words = ("rounds=1", "data.domains=[plain,inverted,rotated]", "client.max_steps=1")
    for clients, right in ((2, [0]), (3, [1, 2])):
        config = small_config(*words) if clients == 3 else small_config(*words[::2], "data.domains=[plain,inverted]")
        site, watcher = Site(config), Watcher()
        honest = Cohort(site)

        def handler(pairs, honest=honest):
            replies = honest(pairs)
            for (message, context), reply in zip(pairs, replies, strict=True):
                if context.node_id == 1000 and message.metadata.message_type == "query.describe":
                    reply.content["config"]["classes"] = ["x", *DIGITS[1:]]
            return replies

        federate(config, LocalGrid(handler, clients, strict=True), site.backbone, observers=[watcher])
        left_out = {client for client in range(clients) if client not in right}
        assert {detail.split(":")[0] for detail in refused(watcher)} == {f"node {1000 + client}" for client in left_out}
