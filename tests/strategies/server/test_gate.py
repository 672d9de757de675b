"""Quorum, resampling and replies that are not what they say: a round goes on without them, or the run ends clearly."""

from __future__ import annotations

import random

import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.errors import RunFailed
from fedinit.runs.observer import Observer
from fedinit.transport.local import LocalGrid
from strategies.server.faults import fault_of_work
from strategies.server.federation import client_ranks, federate
from strategies.server.gate import Gate
from tests.support.small import small_config


@pytest.fixture(scope="module")
def site() -> Site:
    # A client that is asked again is asked alone, and on CUDA other products round otherwise in a bank of another size.
    return Site(small_config("engine.clients_per_bank=1"))


class Ledger(Observer):
    def __init__(self):
        self.lines = []

    def event(self, kind, facts):
        self.lines.append((kind, facts))


class Lossy(LocalGrid):
    """Loses the replies that `lost(client, how often it was asked to train)` names."""

    lost = staticmethod(lambda client, time: False)

    def send_and_receive(self, messages, *, timeout=None):
        self.asked = getattr(self, "asked", {})
        kept = []
        for message, reply in zip(messages, super().send_and_receive(messages, timeout=timeout), strict=True):
            client = self.contexts[message.metadata.dst_node_id].node_config["partition-id"]
            if message.metadata.message_type == "train":
                self.asked[client] = self.asked.get(client, 0) + 1
                if self.lost(client, self.asked[client]):
                    continue
            kept.append(reply)
        return kept


def run(site: Site, lost, *words: str):
    grid, ledger = Lossy(Cohort(site), 3), Ledger()
    grid.lost = lost
    config = small_config(*words)
    return federate(config, grid, site.backbone, observers=[ledger]), ledger.lines, grid.asked


def test_other_clients_take_the_places_of_those_that_failed(site):
    """One of three is sampled; whoever it is, the first is lost, and one that was not asked yet takes its place."""
    words = ("participation=0.34", "rounds=4", "quorum=1")
    outcome, lines, asked = run(site, lambda client, time: client == 1, *words)
    resampled = [facts for kind, facts in lines if kind == "resampled"]
    assert resampled and all(1 not in facts["clients"] for facts in resampled)
    again, same, _ = run(site, lambda client, time: client == 1, *words)
    assert again.final_hash == outcome.final_hash and same == lines


def test_who_gave_no_answer_is_asked_again_with_the_same_result(site):
    """Where nobody else is left. The task given again gives the same bytes, so the run is the one without the loss."""
    whole, _, _ = run(site, lambda client, time: False, "quorum=3", "rounds=1")
    outcome, lines, asked = run(site, lambda client, time: client == 2 and time < 3, "quorum=3", "rounds=1")
    assert outcome.final_hash == whole.final_hash and asked == {0: 1, 1: 1, 2: 3}
    assert [kind for kind, _ in lines] == ["refused", "resampled", "refused", "resampled"]


def test_no_quorum_ends_the_run_with_the_numbers(site):
    with pytest.raises(RunFailed, match="round 1: 1 usable updates, the quorum is 2 .no_reply: nothing came in time"):
        run(site, lambda client, time: client != 1, "quorum=0.5")
    with pytest.raises(RunFailed, match="no usable update from any client .no_reply"):
        run(site, lambda client, time: True)
    outcome, _, _ = run(site, lambda client, time: client != 1, "quorum=1")
    assert outcome.rounds == 2


def test_of_two_replies_of_a_client_the_order_does_not_choose(site):
    """A replayed reply with other content: one of the two counts, the same one whichever came first."""

    class Doubling(LocalGrid):
        shuffle = random.Random(0)

        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            if messages and messages[0].metadata.message_type == "train":
                other = Message(replies[0].content.copy(), reply_to=messages[0])
                other.content["metrics"] = MetricRecord({**other.content["metrics"], "loss": 7.0})
                replies.append(other)
                self.shuffle.shuffle(replies)
            return replies

    hashes = set()
    for _ in range(4):
        ledger = Ledger()
        outcome = federate(small_config("rounds=1"), Doubling(Cohort(site), 3), site.backbone, observers=[ledger])
        hashes.add(outcome.final_hash)
        assert [(facts["client"], facts["code"]) for _, facts in ledger.lines] == [(0, "duplicate")]
    assert len(hashes) == 1


def test_a_reply_of_another_run_or_to_another_message_is_refused(site):
    class Misled(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            if messages[0].metadata.message_type == "train":
                replies[0].metadata.__dict__["_run_id"] = 99
                replies[1].metadata.__dict__["_reply_to_message_id"] = "of another time"
                replies.append(Message(Error(0, "who?"), reply_to=messages[2]))
                replies[-1].metadata.__dict__["_src_node_id"] = 5
            return replies

    ledger = Ledger()
    config = small_config("rounds=1", "quorum=1")
    federate(config, Misled(Cohort(site), 3), site.backbone, observers=[ledger])
    found = [(facts["client"], facts["code"]) for _, facts in ledger.lines]
    assert found == [(-1, "not_asked"), (0, "run"), (1, "misdirected")]


def test_evaluations_are_judged_too(site):
    def spoiling(deliveries):
        replies = cohort(deliveries)
        for reply in replies:
            if reply.metadata.message_type == "evaluate" and reply.metadata.src_node_id == 1000:
                reply.content["metrics"]["correct"] = [10**6]
            if reply.metadata.message_type == "evaluate" and reply.metadata.src_node_id == 1001:
                del reply.content["metrics"]["domains"]
        return replies

    config, ledger = small_config("rounds=1", "evaluation=clients"), Ledger()
    cohort = Cohort(site)
    outcome = federate(config, LocalGrid(spoiling, 3), site.backbone, observers=[ledger])
    assert [(kind, f["client"], f["code"]) for kind, f in ledger.lines] == [
        ("evaluation_failed", 0, "metrics"),
        ("evaluation_failed", 1, "missing_record"),
    ]
    assert list(outcome.score.whole) == ["thick"]
    told = outcome.summary()
    assert told["not_scored"] == ["plain", "inverted"] and told["left_out"] == {"evaluation_failed": {"0": 1, "1": 1}}
    whole = federate(config, LocalGrid(cohort, 3), site.backbone).summary()
    assert "not_scored" not in whole and "left_out" not in whole  # the control


class Adding(LocalGrid):
    """Adds what `more(messages, replies)` makes to the replies of messages of one kind."""

    kind, more = "evaluate", staticmethod(lambda messages, replies: [])

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        if messages and messages[0].metadata.message_type == self.kind:
            replies = [*replies, *self.more(messages, replies)]
        return replies


def counting(site: Site, more) -> tuple:
    grid, ledger = Adding(Cohort(site), 3), Ledger()
    grid.more = more
    outcome = federate(small_config("rounds=1", "evaluation=clients"), grid, site.backbone, observers=[ledger])
    return outcome.score, [(kind, facts["client"], facts["code"]) for kind, facts in ledger.lines]


def test_an_evaluation_is_counted_once_and_of_those_that_were_asked(site):
    """A second answer, a stranger's, and one to another question: the score is that of the honest ones."""

    def claim(message: Message, node: int | None = None, **about) -> Message:
        """That a million of a million are right."""
        made = Message(RecordDict(), reply_to=message)
        rows = {"domains": [0], "correct": [10**6], "num-examples": [10**6], "round": 1}
        made.content["metrics"] = MetricRecord(rows)
        made.metadata.__dict__.update({"_src_node_id": node or message.metadata.dst_node_id, **about})
        return made

    honest, lines = counting(site, lambda messages, replies: [])
    assert honest is not None and not lines
    score, lines = counting(
        site,
        lambda messages, replies: [
            claim(messages[0], node=77),
            claim(messages[1], _run_id=9),
            claim(messages[1], _reply_to_message_id="of another time"),
            replies[2],
        ],
    )
    assert score == honest
    assert sorted(lines) == [
        ("evaluation_failed", -1, "not_asked"),
        ("evaluation_failed", 1, "misdirected"),
        ("evaluation_failed", 1, "run"),
        ("evaluation_failed", 2, "duplicate"),
    ]


@pytest.mark.parametrize("more", [-1, 1, 10**6])
def test_an_evaluation_is_over_the_test_images_that_its_client_has(site, more):
    """A client's own reply, with the sums of fewer or more images than it said it has: refused, not averaged."""

    def inflate(messages, replies):
        rows = replies[0].content["metrics"]
        rows["num-examples"] = [rows["num-examples"][0] + more]
        rows["correct"] = rows["num-examples"]
        return []

    score, lines = counting(site, inflate)
    assert score is not None and lines == [("evaluation_failed", 0, "metrics")]


def test_an_evaluation_is_of_the_domains_that_its_client_has(site):
    """One client a domain: the sums of the first one's images, said to be of the second's domain, are refused."""

    def elsewhere(messages, replies):
        replies[0].content["metrics"]["domains"] = [1]
        return []

    score, lines = counting(site, elsewhere)
    assert score is not None and lines == [("evaluation_failed", 0, "metrics")]


def test_an_update_is_of_as_many_examples_as_its_client_registered_with(site):
    """One of three claims 2^40 in its second update: refused, and the run goes on with its mates."""

    def handler(deliveries):
        replies = cohort(deliveries)
        if deliveries[0][0].metadata.message_type == "train" and deliveries[0][0].content["config"]["round"] == 2:
            replies[1].content["metrics"]["num-examples"] = 2**40
        return replies

    cohort, ledger = Cohort(site), Ledger()
    federate(small_config("rounds=2"), LocalGrid(handler, 3), site.backbone, observers=[ledger])
    ((kind, facts),) = ledger.lines
    assert (kind, facts["client"], facts["code"]) == ("refused", 1, "weight")
    assert "num-examples is 1099511627776, of a client that registered with" in facts["detail"]


def test_no_weight_is_more_than_a_multiple_of_the_median():
    gate = Gate(max_weight=3)
    honest = [0.1, 0.2, 0.3, 0.4]
    assert gate.capped(honest) == honest  # to the bit
    # The median of 1, 1, 1 and 2^40 is 1, so the fourth counts as 3 of 6.
    capped = gate.capped([n / (3 + 2**40) for n in (1, 1, 1, 2**40)])
    assert capped == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2], rel=1e-12)
    # Of two, the median is the smaller: the larger claim does not raise its own limit.
    at_the_limit = [n / 5543 for n in (1028, 903, 903, 2709)]  # where a division's rounding is no claim
    assert gate.capped(at_the_limit) == at_the_limit and 2709 / 5543 > 3 * (903 / 5543)
    assert gate.capped([0.001, 0.999]) == pytest.approx([1 / 4, 3 / 4], rel=1e-12)
    assert Gate(enabled=False).capped([0.001, 0.999]) == [0.001, 0.999]
    assert gate.capped([0.0, 0.0, 1.0]) == [0.0, 0.0, 1.0]  # weighting=norm, and only one client moved


def test_a_claim_at_registration_outweighs_nobody(site):
    """One of three says from the beginning that it has 2^40 images: its weight is 3 of 5, not all of it."""
    cohort = Cohort(site)

    def handler(deliveries):
        replies = cohort(deliveries)
        for reply, record in ((replies[0], "config"), (replies[0], "metrics")):
            if reply.metadata.message_type in ("query.describe", "train") and record in reply.content:
                reply.content[record]["num-examples"] = 2**40
        return replies

    def ended(handler, *words):
        outcome = federate(small_config("rounds=1", *words), LocalGrid(handler, 3), site.backbone)
        return outcome.aggregate.head["weight"]

    honest, capped, uncapped = ended(cohort), ended(handler), ended(handler, "gate.max_weight=1e12")
    assert (capped - honest).norm() < 0.7 * (uncapped - honest).norm()


@pytest.mark.parametrize(("claim", "weights"), [(1, [0.25, 0.75]), (2**40, [0.75, 0.25])])
def test_of_two_clients_a_claim_makes_a_quarter_and_three_quarters(claim, weights):
    """The lower median of two is the smaller claim, and so a liar's: a limit (docs/reliability.md). One of two is
    half of them; of three the median is within what honest ones claim."""
    assert Gate().capped([1 / 1001, 1000 / 1001]) == pytest.approx([0.25, 0.75], rel=1e-12)
    assert Gate().capped([1 / 2001, 1000 / 2001, 1000 / 2001]) == [1 / 2001, 1000 / 2001, 1000 / 2001]
    site = Site(small_config("data.domains=[plain,inverted]"))
    cohort, told = Cohort(site), []

    def handler(deliveries):
        replies = cohort(deliveries)
        for record in ("config", "metrics"):
            if deliveries[0][0].metadata.message_type in ("query.describe", "train") and record in replies[0].content:
                replies[0].content[record]["num-examples"] = claim
        if "steps" in (said := replies[0].content.get("metrics") or {}):
            said["steps"] = 1  # of so many examples it would take no more
        return replies

    class Weights(Observer):
        def round_done(self, report):
            told.append([client.weight for client in report.clients])

    config = small_config("rounds=1", "strategy=fedit", "data.domains=[plain,inverted]")
    federate(config, LocalGrid(handler, 2), site.backbone, observers=[Weights()])
    assert told[0] == pytest.approx(weights, rel=1e-9)
    federate(config, LocalGrid(cohort, 2), site.backbone, observers=[Weights()])  # the control
    assert told[1] == pytest.approx([0.5, 0.5], abs=0.1)


def test_a_claim_of_test_images_is_not_the_whole_score(site):
    """One of three says from the beginning that it has 2^40 test images, and then that all of them are right."""
    cohort = Cohort(Site(small_config("partition=iid", "partition.clients=3")))

    def handler(deliveries):
        replies = cohort(deliveries)
        if deliveries[0][0].metadata.message_type == "query.describe":
            replies[0].content["config"]["num-test-examples"] = 2**40
        if deliveries[0][0].metadata.message_type == "evaluate":
            rows = replies[0].content["metrics"]
            rows["num-examples"] = rows["correct"] = [2**40 - 20, 10, 10]
        return replies

    def accuracy(handler, *words):
        config = small_config("rounds=1", "evaluation=clients", "partition=iid", "partition.clients=3", *words)
        outcome = federate(config, LocalGrid(handler, 3), site.backbone)
        assert outcome.score is not None
        return outcome.score.by_domain["plain"]

    honest = accuracy(cohort)
    assert accuracy(handler, "gate.enabled=false") > 99.9
    assert accuracy(handler) < 100 - 0.1 * (100 - honest)


def test_ranks_by_examples_are_not_one_clients_claim_to_make():
    config = small_config("adapter.ranks=by_examples", "adapter.rank=4", "strategy=fedit")
    assert client_ranks(config, {0: 100, 1: 100, 2: 2**40}) == {0: 2, 1: 2, 2: 4}
    assert client_ranks(config, {0: 100, 1: 50, 2: 75}) == {0: 4, 1: 2, 2: 3}


def test_evaluations_of_nothing_leave_a_run_without_a_score(site):
    def empty(deliveries):
        replies = cohort(deliveries)
        for reply in replies:
            if reply.metadata.message_type == "evaluate":
                reply.content["metrics"] = MetricRecord({"domains": [], "correct": [], "num-examples": [], "round": 1})
        return replies

    config, ledger = small_config("rounds=1", "evaluation=clients"), Ledger()
    cohort = Cohort(site)
    outcome = federate(config, LocalGrid(empty, 3), site.backbone, observers=[ledger])
    assert outcome.score is None and outcome.rounds == 1
    assert [facts["code"] for _, facts in ledger.lines] == ["metrics"] * 3


def test_a_lost_evaluation_costs_no_update(site):
    """It carried the base: the client is taken to hold nothing of it, and the next round sends it whole."""

    class Losing(LocalGrid):
        def push_messages(self, messages):
            if messages[0].metadata.message_type == "evaluate" and messages[0].content["config"]["round"] == 1:
                self.kept = super().push_messages(messages[1:])
                return ["lost", *self.kept]
            return super().push_messages(messages)

    config, ledger = small_config("strategy=flora", "rounds=2", "evaluation=clients"), Ledger()
    outcome = federate(config, Losing(Cohort(site), 3), site.backbone, observers=[ledger])
    assert [(kind, facts["client"], facts["code"]) for kind, facts in ledger.lines] == [
        ("evaluation_failed", 0, "no_reply")
    ]
    assert outcome.final_hash == federate(config, LocalGrid(Cohort(site), 3), site.backbone).final_hash


@pytest.mark.parametrize(
    "spoil",
    [
        lambda reply: reply.content.clear(),
        lambda reply: reply.content["config"].pop("num-examples"),
        lambda reply: reply.content["config"].__setitem__("partition-id", -1),
        lambda reply: reply.content["config"].__setitem__("partition-id", 3),  # of three, 0 to 2
        lambda reply: reply.content["config"].__setitem__("classes", 7),
        lambda reply: reply.content["config"].__setitem__("score", "beauty"),
    ],
    ids=["nothing", "short", "negative", "beyond", "number", "score"],
)
def test_who_cannot_say_who_it_is_is_left_out_by_name(site, spoil):
    """Or, where the run wants all of its clients, ends it in one line."""

    def handler(deliveries):
        replies = cohort(deliveries)
        if deliveries[0][0].metadata.message_type == "query.describe":
            spoil(replies[1])
        return replies

    cohort, ledger = Cohort(site), Ledger()
    outcome = federate(small_config("rounds=1"), LocalGrid(handler, 3), site.backbone, observers=[ledger])
    assert sorted(outcome.roster.examples) == [0, 2]
    (kind, facts), without = ledger.lines
    assert kind == "node_refused" and facts["detail"].startswith("node 1001: what it says of itself cannot be used")
    assert without == ("began_without", {"round": 1, "clients": [1]})
    with pytest.raises(RunFailed, match="a client could not start: what it says of itself cannot be used") as caught:
        federate(small_config("rounds=1", "quorum=1.0"), LocalGrid(handler, 3), site.backbone)
    assert "\n" not in str(caught.value)

    def all_spoilt(deliveries):
        replies = cohort(deliveries)
        for reply in replies if deliveries[0][0].metadata.message_type == "query.describe" else ():
            spoil(reply)
        return replies

    with pytest.raises(RunFailed, match="3 clients could not start: what it says .*; what it says .*; what it says"):
        federate(small_config("rounds=1"), LocalGrid(all_spoilt, 3), site.backbone)


@pytest.mark.parametrize("twice", [True, False], ids=["twice", "stranger"])
def test_a_second_introduction_and_a_strangers_change_nothing(site, twice):
    def more(messages, replies):
        other = Message(wire.clone(replies[1].content), reply_to=messages[1])
        other.content["config"]["num-examples"] = 10**6
        other.metadata.__dict__["_src_node_id"] = 1001 if twice else 77
        return [other] if twice else [other, other]

    plain = federate(small_config("rounds=1"), LocalGrid(Cohort(site), 3), site.backbone)
    cohort = Cohort(site)
    grid, ledger = Adding(lambda deliveries: cohort(deliveries), 3), Ledger()  # each is asked who it is, by a message
    grid.kind, grid.more = "query.describe", more
    outcome = federate(small_config("rounds=1"), grid, site.backbone, observers=[ledger])
    assert outcome.final_hash == plain.final_hash
    assert {kind for kind, _ in ledger.lines} == {"node_refused"}


def test_one_clients_drift_does_not_decide_the_rounds():
    gate = Gate()
    assert gate.drift([]) is None and gate.drift([0.0, 0.0]) == 0.0
    assert gate.drift([1.0, 2.0, 3.0]) == pytest.approx(2.0, rel=1e-12)
    assert gate.drift([1.0, 2.0, 3e38]) == pytest.approx((1 + 2 + 20) / 3, rel=1e-12)
    assert gate.drift([0.0, 0.0, 3e38]) == 0.0, "of clients that start from the global factors"
    assert gate.drift([0.0, 0.0, 1.0, 2.0], {2, 3}) == pytest.approx(0.75), "two are there for the first time"
    assert gate.drift([0.0, 0.0, 1.0, 3e38], {0, 2, 3}) == pytest.approx((1 + 10) / 4)
    assert gate.drift([0.0, 3e38], set()) == 0.0, "in the first round nobody can have drifted"
    assert Gate(enabled=False).drift([0.0, 0.0, 3e38]) == pytest.approx(1e38)  # the control


WORK = [(4, 0, True), (5, 0, False), (2**40, 0, False), (1, 4 * 50 + 4096, True), (1, 2**40, False)]


@pytest.mark.parametrize(("steps", "kept", "fits"), WORK)
def test_more_work_than_a_client_has_is_none(steps, kept, fits):
    fault = fault_of_work({"steps": steps, "optimizer-state": kept}, 4, 50)
    assert (fault is None) == fits and (fits or fault[0] == "metrics")
    assert fault_of_work({"steps": 2**40, "optimizer-state": 0}, None, 50) is None


def test_a_loss_of_one_client_does_not_decide_that_of_the_round():
    """3e38 of one of three was the round's loss, 1e38."""
    gate, honest = Gate(), [(0.4, 10), (1.2, 30), (3.0, 20)]
    assert gate.loss(honest) == pytest.approx((0.4 * 10 + 1.2 * 30 + 3.0 * 20) / 60, rel=1e-12)
    assert gate.loss([*honest, (None, 99)]) == gate.loss(honest) and gate.loss([]) is None
    assert gate.loss([(1.0, 10), (1.0, 10), (3e38, 10)]) == pytest.approx(1002 / 3)
    assert gate.loss([(0.0, 1), (0.0, 1), (3e38, 1)]) == pytest.approx(1000 / 3)
    assert gate.loss([(1.0, 10), (1.0, 10), (2.0, 2**40)]) == pytest.approx((10 + 10 + 2 * 30) / 50)
    off = Gate(enabled=False)  # the control
    assert off.loss([(1.0, 10), (1.0, 10), (3e38, 10)]) == pytest.approx(1e38)
