"""A secret sum through clients and server: the mean of those that are left, and nothing else for a server to read."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message

from clients import secagg
from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.config.secure_aggregation import SecAggConfig
from fedinit.errors import InputError, RunFailed
from fedinit.runs.observer import Observer
from fedinit.secagg import masks
from fedinit.secagg.fixed_point import FixedPoint
from fedinit.secagg.messages import MASKED, QUERY, RECORD
from fedinit.transport.local import LocalGrid
from strategies.server import secure_sum
from strategies.server.collecting import Pending, collect
from strategies.server.compatibility import check_method
from strategies.server.federation import federate
from strategies.server.round import run_round
from strategies.server.secure_sum import collect_sum
from tests.support.serving import exchange_over, method_of, registered
from tests.support.small import small_config

FIVE = ("partition=iid", "partition.clients=5", "engine.clients_per_bank=1", "client.max_steps=1")
SECURE = SecAggConfig()
POINT = FixedPoint(SECURE.clip, SECURE.bits)


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config(*FIVE, "secure_aggregation=secagg"))


@pytest.fixture(scope="module")
def plain():
    """{client: its update} with nothing masked."""
    exchange, state = registered(Site(small_config(*FIVE)))
    return {update.client: update for update in collect(state, method_of(), exchange, {}, Pending())[1].updates}


def stage_of(message: Message) -> str:
    config = wire.config(message)
    return str(config["stage"]) if message.metadata.message_type == QUERY else message.metadata.message_type


def federation(site, change=lambda stage, client, reply: reply, **options):
    """A secret sum in which `change` makes something else of replies: (state, admitted), all replies, the ledger."""
    cohort, seen, ledger = Cohort(site), [], []

    def handler(deliveries):
        replies = []
        for (message, context), reply in zip(deliveries, cohort(deliveries), strict=True):
            stage = "describe" if message.metadata.message_type == "query.describe" else stage_of(message)
            replies.append(change(stage, context.node_config["partition-id"], reply))
            seen.append((stage, context.node_config["partition-id"], replies[-1]))
        return replies

    _, state = registered(site)
    exchange = exchange_over(LocalGrid(handler, len(site.partitions), strict=True))
    exchange.register_clients(site.backbone.digest, -1)
    exchange.emit = lambda kind, facts: ledger.append((kind, facts))
    return collect_sum(state, method_of(secure=SECURE, **options), exchange), seen, ledger


def without(stage: str, *clients: int):
    """These clients fail at the stage and say no more."""

    def change(at, client, reply):
        order = ["describe", "keys", "shares", "train", "unmask"]
        gone = client in clients and order.index(at) >= order.index(stage)
        return Message(Error(1001, "gone"), reply_to=_asked(reply)) if gone else reply

    return change


def _asked(reply: Message) -> Message:
    """A message that a reply to it has the addresses of this one."""
    asked = Message(reply.content, reply.metadata.src_node_id, reply.metadata.message_type)
    asked.metadata.__dict__["_src_node_id"] = reply.metadata.dst_node_id
    asked.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
    asked.metadata.__dict__["_run_id"] = reply.metadata.run_id
    return asked


def oracle(plain, clients) -> dict[str, torch.Tensor]:
    """The weighted mean in float64."""
    updates = [plain[client] for client in clients]
    total = sum(update.examples for update in updates)
    named = [(wire.to_tensors(update.layers, update.head), update.examples) for update in updates]
    return {name: sum(t[name].double() * (n / total) for t, n in named) for name in named[0][0]}


def close(admitted, plain, clients) -> None:
    (update,) = admitted.updates
    mean, exact = wire.to_tensors(update.layers, update.head), oracle(plain, clients)
    assert mean.keys() == exact.keys()
    for name, value in mean.items():  # the bound of the fixed point, and the float32 that it is given back in
        assert float((value - exact[name]).abs().max()) <= POINT.step + 2**-24 * float(exact[name].abs().max())
    assert sorted(admitted.shares) == sorted(clients) and sum(admitted.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(("stage", "gone", "left"), [
    ("unmask", (), (0, 1, 2, 3, 4)),
    ("keys", (1,), (0, 2, 3, 4)),
    ("shares", (1, 4), (0, 2, 3)),
    ("train", (0, 3), (1, 2, 4)),
    ("unmask", (0, 3), (0, 1, 2, 3, 4)),
])  # fmt: skip
def test_the_mean_of_those_that_are_left(site, plain, stage, gone, left):
    (_, admitted), _, ledger = federation(site, without(stage, *gone))
    close(admitted, plain, left)
    kind = "not_unmasked" if stage == "unmask" else "refused"  # whose update is in the sum is not refused
    assert {(of, facts["client"]) for of, facts in ledger} == {(kind, client) for client in gone}


@pytest.mark.parametrize("stage", ["keys", "shares", "train", "unmask"])
def test_fewer_than_the_threshold_end_the_round_in_one_line(site, stage):
    name = "training" if stage == "train" else f"stage {stage}"
    said = rf"round 1: too few clients, 2 clients at {name} of the secret sum, 3 are needed \(client_error: gone\)"
    with pytest.raises(RunFailed, match=said):
        federation(site, without(stage, 0, 2, 4))


THREE = ("partition=iid", "partition.clients=3", "engine.clients_per_bank=1", "client.max_steps=1")


@pytest.fixture(scope="module")
def three() -> Site:
    return Site(small_config(*THREE, "secure_aggregation=secagg"))


def test_values_that_may_have_been_cut_off_are_told(three, monkeypatch):
    assert not federation(three, without("keys"))[2]  # the control
    monkeypatch.setattr(secure_sum, "NEAR", 0.02)  # of 64; a loss of ten classes is above 2
    _, _, ((kind, facts),) = federation(three, without("keys"))
    assert kind == "warning" and facts["round"] == 1
    said = r"a mean is 2\.\d+, near secure_aggregation\.clip=64, beyond which values are cut off; give a larger one"
    assert re.fullmatch(said, facts["detail"])


@pytest.mark.parametrize("stage", ["keys", "shares", "train"])
def test_of_three_clients_none_is_unmasked_without_the_third(three, stage):
    """Two would be as many as the threshold, 2 of 3, and each would know the other's update. The round is skipped."""
    (state, admitted), seen, ledger = federation(three, without(stage, 2))
    name = "training" if stage == "train" else f"stage {stage}"
    said = f"2 clients are left at {name} of the secret sum of round 1, 3 are the least of one"
    assert ledger == [
        ("refused", {"round": 1, "client": 2, "code": "client_error", "detail": "gone"}),
        ("sum_refused", {"round": 1, "clients": [0, 1], "detail": said}),
    ]
    assert not admitted.updates and "unmask" not in {at for at, _, _ in seen} and state.round == 0


def test_of_three_clients_two_unmask_the_sum_of_three(three):
    (_, admitted), _, ledger = federation(three, without("unmask", 2))
    assert sorted(admitted.shares) == [0, 1, 2] and [kind for kind, _ in ledger] == ["not_unmasked"]


@pytest.mark.parametrize("stage", ["keys", "shares", "train", "unmask"])
def test_one_client_of_three_ends_the_run_as_fewer_than_the_threshold(three, stage):
    with pytest.raises(RunFailed, match="round 1: too few clients, 1 clients at .*, 2 are needed"):
        federation(three, without(stage, 1, 2))


def test_a_round_of_two_clients_is_asked_nothing(site):
    said = "round 1: too few clients, 2 in a round, 3 are the least of a secret sum"
    with pytest.raises(RunFailed, match=said):
        federation(site, participation=0.4)


def words_of(seen) -> dict[int, np.ndarray]:
    return {c: wire.decode(wire.arrays(r))[MASKED].numpy() for stage, c, r in seen if stage == "train"}


def is_uniform(words: np.ndarray) -> bool:
    """Whether the bytes are, by chi-square with 255 degrees of freedom, within six standard deviations."""
    counts = np.bincount(np.frombuffer(words.tobytes(), np.uint8), minlength=256)
    return abs(float(((counts - counts.mean()) ** 2).sum() / counts.mean()) - 255) < 6 * 510**0.5


def test_a_server_cannot_tell_updates_apart_by_all_that_it_receives(site):
    """Nothing but keys, sealed shares, words that are uniform, the number of examples and the round comes back."""
    _, seen, _ = federation(site)
    once, again = words_of(seen), words_of(federation(site)[1])
    assert all(is_uniform(words) for words in once.values())
    assert is_uniform(once[0] - once[1]) and is_uniform(once[0] - again[0])  # the very same update, hidden anew
    for stage, _, reply in seen:
        if stage == "train":
            assert set(reply.content) == {wire.STATE, wire.METRICS}
            assert set(wire.metrics(reply)) == {"num-examples", "round"} and list(wire.arrays(reply)) == [MASKED]
        elif stage != "describe":
            assert list(reply.content) == [RECORD]


def test_without_masks_it_could(site, monkeypatch):
    """The negative control: the same test on the same words, unmasked."""
    monkeypatch.setattr(masks, "expand", lambda key, size: np.zeros(size, np.uint64))
    once = words_of(federation(site)[1])
    again = words_of(federation(site)[1])
    assert not any(is_uniform(words) for words in once.values())
    assert not is_uniform(once[0] - once[1]) and (once[0] == again[0]).all()


def test_a_reply_that_is_none_costs_its_own_client_and_is_named(site, plain):
    def lie(stage, client, reply):
        if (stage, client) == ("train", 1):
            reply.content[wire.STATE] = wire.encode({MASKED: torch.zeros(3, dtype=torch.int64)})
        if (stage, client) == ("keys", 4):
            reply.content[RECORD] = ConfigRecord({"public": bytes(98), "commitment": bytes(32)})
        return reply

    (_, admitted), _, ledger = federation(site, lie)
    close(admitted, plain, (0, 2, 3))
    refused = {facts["client"]: (facts["code"], facts["detail"]) for kind, facts in ledger if kind == "refused"}
    assert refused[4] == ("secagg", "its public keys are no points of the curve")
    assert refused[1][1].startswith("masked is int64 (3,), expected int64 (") or refused[1][0] == "size"


def test_who_gives_wrong_shares_is_named_and_the_sum_is_right(site, plain):
    def lie(stage, client, reply):
        if (stage, client) == ("unmask", 0):
            given = reply.content[RECORD]
            reply.content[RECORD] = ConfigRecord({c: share[:4] + bytes(len(share) - 4) for c, share in given.items()})
        return reply

    (_, admitted), _, ledger = federation(site, lie)
    close(admitted, plain, range(5))
    assert (
        "not_unmasked",
        {"round": 1, "client": 0, "code": "secagg", "detail": "its share of client 0 is wrong"},
    ) in ledger


def added(at: slice | int, what: int):
    """Client 2 adds so much to these of its masked words."""

    def lie(stage, client, reply):
        if (stage, client) == ("train", 2):
            words = wire.decode(wire.arrays(reply))[MASKED].clone()
            words[at] += what
            reply.content[wire.STATE] = wire.encode({MASKED: words})
        return reply

    return lie


@pytest.mark.parametrize(("lie", "why"), [
    (added(-2, 1), r"its weights are \d+ in all, those of its clients \d+"),
    (added(0, 2**62), r"a mean of .*, where no value is beyond 64"),
    (added(-1, 2**62), r"a mean of .*, where no value is beyond 64"),
    (added(-1, -(2**40)), r"a mean loss of -"),
    (added(slice(0, 60), 2**40), r"the mean of .* has norm .*, of single updates it is .* or less"),
])  # fmt: skip
def test_a_sum_that_no_plausible_updates_have_is_refused_and_the_model_stays(site, lie, why):
    (_, admitted), _, ledger = federation(site, lie)
    assert not admitted.updates and not admitted.shares
    ((_, facts),) = [entry for entry in ledger if entry[0] == "sum_refused"]
    begins = r"the masked sum of round 1 is no sum of plausible updates of clients \[0, 1, 2, 3, 4\]: "
    assert re.match(begins + why, facts["detail"]), facts
    assert (facts["round"], facts["clients"]) == (1, [0, 1, 2, 3, 4])


def test_a_lie_within_the_bounds_is_averaged_in(site, plain):
    """The control: what a sum says nothing of is not found."""
    (_, admitted), _, ledger = federation(site, added(0, 2**30))
    assert admitted.updates and not ledger
    with pytest.raises(AssertionError):
        close(admitted, plain, range(5))


def test_a_client_whose_seed_is_not_what_it_committed_to_costs_the_round_and_is_named(site):
    def lie(stage, client, reply):
        if (stage, client) == ("keys", 3):
            reply.content[RECORD] = ConfigRecord({**reply.content[RECORD], "commitment": bytes(32)})
        return reply

    (_, admitted), _, ledger = federation(site, lie)
    ((_, facts),) = [entry for entry in ledger if entry[0] == "sum_refused"]
    assert not admitted.updates and facts["detail"].startswith("the masks of client 3 cannot be taken off: ")


@pytest.mark.parametrize("content", [
    b"", b"x" * 7, secagg.pack(2, 0, b"s", b"k"), secagg.pack(2, 0, bytes(52), bytes(69)), secagg.pack(7, 9, b"", b""),
])  # fmt: skip
def test_sealed_nonsense_costs_no_client_but_its_own(site, plain, content, monkeypatch):
    """What client 2 seals for the others is its own choice; they must not pass for those who lied."""
    encrypt = secagg.encrypt
    sealing = lambda key, text: encrypt(key, content if text[:8] == (2).to_bytes(8, "little") else text)  # noqa: E731
    monkeypatch.setattr(secagg, "encrypt", sealing)
    (_, admitted), _, ledger = federation(site)
    assert [facts["detail"][:40] for _, facts in ledger] == ["the masks of client 2 cannot be taken of"]
    assert not admitted.updates


def test_two_clients_of_one_key_are_left_out(site, plain):
    given = {}

    def lie(stage, client, reply):
        if stage == "keys":
            given[client] = reply.content[RECORD]
            reply.content[RECORD] = given[0] if client == 1 else given[client]
        return reply

    (_, admitted), _, ledger = federation(site, lie)
    close(admitted, plain, (2, 3, 4))
    assert {facts["client"]: facts["detail"] for _, facts in ledger} == dict.fromkeys(
        (0, 1), "clients [0, 1] gave the same public keys"
    )


def test_a_run_goes_on_after_a_sum_that_was_refused():
    """Round 1 is spoilt, and is as if it had not been; rounds 2 and 3 train."""
    config = small_config(*FIVE, "secure_aggregation=secagg", "rounds=3", "evaluation=none")
    site, lie = Site(config), added(-2, 1)
    cohort, models, ledger = Cohort(site), {}, []

    def handler(deliveries):
        replies = cohort(deliveries)
        for (message, context), reply in zip(deliveries, replies, strict=True):
            if message.metadata.message_type == "train" and wire.config(message)["round"] == 1:
                lie("train", context.node_config["partition-id"], reply)
        return replies

    class Watch(Observer):
        def round_done(self, numbers):
            models[numbers.round] = numbers

        def event(self, kind, facts):
            ledger.append(kind)

    outcome = federate(config, LocalGrid(handler, 5), site.backbone, observers=[Watch()])
    assert [len(models[round].clients) for round in (1, 2, 3)] == [0, 5, 5]
    assert models[1].train_loss is None and models[2].train_loss > 0
    figures = {(c.steps, c.loss, c.drift_factors, c.optimizer_state) for c in models[2].clients}
    assert figures == {(None, None, None, None)} and models[2].drift_product is None, "they do not come"
    assert outcome.summary()["secure_aggregation"] == vars(config.secure_aggregation)
    assert ledger.count("sum_refused") == 1 and outcome.aggregate.layers


def test_a_whole_round_goes_on_from_the_mean(site, plain):
    exchange, state = registered(site)
    state, report = run_round(state, method_of(secure=SECURE), exchange, last=True)
    exact = oracle(plain, range(5))
    for name, value in wire.to_tensors(state.model.layers, state.model.head).items():
        assert torch.allclose(value.double(), exact[name], atol=1e-6)
    assert report.train_loss > 0 and all(client.loss is None for client in report.clients)


def test_a_client_reveals_once_and_never_both_secrets_of_another(site):
    """Every stage is answered once, so that a second question with another list of who is left gets nothing."""
    cohort, kept = Cohort(site), {}

    def handler(deliveries):
        for message, context in deliveries:
            kept.setdefault((stage_of(message) if "stage" in wire.config(message) else ""), (message, context))
        return cohort(deliveries)

    exchange = exchange_over(LocalGrid(handler, 5))
    exchange.register_clients(site.backbone.digest, -1)
    collect_sum(registered(site)[1], method_of(secure=SECURE), exchange)
    for stage in ("shares", "unmask"):
        message, context = kept[stage]
        (reply,) = cohort([(message, context)])
        assert reply.has_error() and "at another stage of the secret sum of round 1" in reply.error.reason
    _, context = kept["unmask"]
    assert set(context.state[secagg.OWN]) == {"round", "stage", "revealed-secagg"}  # keys and shares are gone


@pytest.mark.parametrize(("words", "said"), [
    ("strategy=lora_fair", "needs more than sums of what clients send: BA; .* lora_fair with strategy.phases=2"),
    ("strategy=fedrot_lora", "needs each client's update"),
    ("strategy=fedsa_lora evaluation=clients", "leaves each client a factor of its own"),
    ("strategy=lora_a2", "slots of their own choice"),
    ("strategy=fedit robust=multi_krum", "compares clients' updates, of which the server sees the sum alone"),
    ("strategy=fedit weighting=norm", "norms of single updates"),
    ("strategy=fedit reinit=local", "has each client go on from factors of its own"),
    ("strategy=rbla adapter.ranks=halving", "updates of several shapes"),
    ("strategy=fedit attack=alie", "forges what leaves a client"),
])  # fmt: skip
def test_what_needs_single_updates_is_refused_by_its_reason(words, said):
    with pytest.raises(InputError, match=said):
        check_method(small_config("secure_aggregation=secagg", *words.split()))


@pytest.mark.parametrize("words", [
    *("strategy=fedit", "strategy=ffa_lora init=orthogonal", "strategy=rolora", "strategy=head_alone"),
    "strategy=lora_fair strategy.phases=2",
])  # fmt: skip
def test_methods_of_sums_go(words):
    check_method(small_config("secure_aggregation=secagg", *words.split()))


@pytest.mark.parametrize("word", ["threshold=0.5", "threshold=1.1", "clip=0", "bits=7", "bits=64"])
def test_options_out_of_range_are_refused(word):
    with pytest.raises(InputError, match=rf"secure_aggregation\.{word.partition('=')[0]}"):
        small_config("secure_aggregation=secagg", f"secure_aggregation.{word}")
