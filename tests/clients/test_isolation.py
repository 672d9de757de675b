"""One client's failure costs its own update: its mates in the bank end with the same bytes as if nothing had failed."""

from __future__ import annotations

import json

import pytest
from flwr.app import Message

from clients import batches, replies
from clients.cohort import Cohort
from clients.engine import worker
from clients.messages import Decoder
from clients.site import Site
from clients.training import train_bank
from fedinit import wire
from fedinit.adapters.bank import Bank
from fedinit.runs.observer import Observer
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import small_config

WORDS = ("client.augment=crop_flip", "engine.clients_per_bank=3", "adapter.dropout=0.1", "rounds=1")
WORDS += ("engine.device=cpu",)  # where batches are made one by one, and can fail; CUDA: test_replay.py


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config(*WORDS))


class Watch(Observer):
    def __init__(self):
        self.refused = []

    def event(self, kind, facts):
        assert kind == "refused"
        self.refused.append((facts["client"], facts["code"], facts["detail"]))


def train(
    site: Site, *words: str, spoil=lambda client, message: None, deployed: bool = False
) -> tuple[dict[int, bytes], list]:
    """One round: {client: the bytes of its reply}, and the refusals. `spoil` may change a message on its way."""
    clients, watch, replies = Cohort(site, deployed=deployed), Watch(), {}

    def handler(deliveries):
        for message, context in deliveries:
            if message.metadata.message_type == "train":
                spoil(context.node_config["partition-id"], message)
        answers = clients(deliveries)
        for (message, context), answer in zip(deliveries, answers, strict=True):
            if message.metadata.message_type == "train" and answer.has_content():
                replies[context.node_config["partition-id"]] = wire.to_bytes(answer.content)
        return answers

    federate(small_config(*WORDS, *words), LocalGrid(handler, 3), site.backbone, observers=[watch])
    return replies, watch.refused


@pytest.fixture(scope="module")
def healthy(site) -> dict[int, bytes]:
    replies, refused = train(site)
    assert sorted(replies) == [0, 1, 2] and not refused
    return replies


def check(replies, refused, healthy, said: str) -> None:
    assert replies == {0: healthy[0], 2: healthy[2]}
    ((client, code, detail),) = refused
    assert (client, code) == (1, "client_error") and detail.startswith(f"client 1, {said}"), detail


def test_a_task_gives_the_same_bytes_again(site, healthy):
    """What another worker can be given when the first one died."""
    assert train(site)[0] == healthy


def test_a_message_that_lacks_a_tensor(site, healthy):
    def spoil(client: int, message: Message) -> None:
        if client == 1:
            del message.content["state"]["blocks.0.mlp.fc2/A"]

    check(*train(site, spoil=spoil), healthy, "start: LookupError: factor blocks.0.mlp.fc2/A was neither sent")


def test_a_batch_that_cannot_be_made(site, healthy, monkeypatch):
    """In the second step of client 1 only; what it did to its mates' random numbers would show."""
    make, calls = batches.augment, []

    def failing(images, kind, generator):
        calls.append(1)
        if len(calls) == 5:
            raise OSError("this image cannot be read")
        return make(images, kind, generator)

    monkeypatch.setattr(batches, "augment", failing)
    check(*train(site), healthy, "batch, step 2: OSError: this image cannot be read")


def test_a_plan_that_cannot_be_made(site, healthy, monkeypatch):
    make = batches.plan

    def failing(examples, settings, seed, round, client):
        if client == 1:
            raise ValueError("no examples")
        return make(examples, settings, seed, round, client)

    monkeypatch.setattr(batches, "plan", failing)
    check(*train(site), healthy, "plan: ValueError: no examples")


def test_a_failure_of_the_whole_bank_is_traced_to_its_client(site, healthy, monkeypatch):
    """An error in the joint computation names nobody; each client is tried at its place with the others mute."""
    load = Bank.load

    def failing(self, adapters, *args, **kwargs):
        if len(adapters) == 3 and adapters[1]["blocks.0.mlp.fc2"].A.any():  # the middle place is client 1's, not mute
            raise RuntimeError("overflow in the kernel")
        return load(self, adapters, *args, **kwargs)

    monkeypatch.setattr(Bank, "load", failing)
    check(*train(site), healthy, "train: RuntimeError: overflow in the kernel")


def test_a_failure_of_the_whole_bank_says_in_which_step(site, healthy, monkeypatch):
    load, forward, step = Bank.load, Bank.forward, []

    def loading(self, *args, **kwargs):
        step.clear()
        return load(self, *args, **kwargs)

    def failing(self, images, active, first=0):
        step.append(1)
        middle = images.unflatten(0, (active, -1))[1]  # client 1's, all one colour where it is mute
        if len(step) == 2 and middle.std() > 0:
            raise RuntimeError("overflow in the kernel")
        return forward(self, images, active, first)

    monkeypatch.setattr(Bank, "load", loading)
    monkeypatch.setattr(Bank, "forward", failing)
    check(*train(site), healthy, "train, step 2: RuntimeError: overflow in the kernel")


def test_a_reply_that_cannot_be_made(site, healthy, monkeypatch):
    leave = replies.transforms.leave

    def failing(chain, task, payload):
        if task.client == 1 and task.work == "train":
            raise OverflowError("no room for the reply")
        return leave(chain, task, payload)

    monkeypatch.setattr(replies.transforms, "leave", failing)
    check(*train(site), healthy, "reply: OverflowError: no room for the reply")


def test_other_questions_say_who_and_at_what_too(site, monkeypatch):
    """An evaluation and statistics that fail cost their client's part, and are told as training is."""
    sums_of, measure, told = worker.score_sums, worker.measure, []

    class Telling(Observer):
        def event(self, kind, facts):
            told.append((kind, facts["client"], facts["detail"].partition(" (")[0]))

    def failing(bank, task, *args):
        if task.client == 1:
            raise OSError("gone")
        return sums_of(bank, task, *args)

    def unmeasured(bank, request, examples, client, *args):
        if client == 2:
            raise OSError("gone too")
        return measure(bank, request, examples, client, *args)

    monkeypatch.setattr(worker, "score_sums", failing)
    monkeypatch.setattr(worker, "measure", unmeasured)
    config = small_config("rounds=1", "evaluation=clients", "init=eva", "init.examples=32")
    federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[Telling()])
    assert told[-1] == ("evaluation_failed", 1, "client 1, evaluate: OSError: gone")
    assert set(told[:-1]) == {("refused", 2, "client 2, statistics: OSError: gone too")}


def test_the_bank_keeps_its_shape(site, monkeypatch):
    """Which is why the bytes above are equal on every machine; on this model two and three round alike on some."""
    seen = []

    def spying(bank, tasks, *args):
        seen.append([(t.client, t.mute) for t in tasks])
        return train_bank(bank, tasks, *args)

    def spoil(client: int, message: Message) -> None:
        if client == 1:
            del message.content["state"]["blocks.0.mlp.fc2/A"]

    monkeypatch.setattr(worker, "train_bank", spying)
    train(site, spoil=spoil)
    assert seen == [[(0, False), (1, True), (2, False)]]


def test_the_ledger_says_who_where_and_when(site, tmp_path, monkeypatch):
    from fedinit.runs.folder import RunFolder

    config = small_config(*WORDS, f"output_dir={tmp_path}")
    folder = RunFolder(config)
    monkeypatch.setattr(batches, "augment", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(Exception, match="no usable update from any client .client_error: client 0, batch, step 1"):
        federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[folder])
    folder.close()
    lines = [json.loads(line) for line in (folder.path / "ledger.jsonl").read_text().splitlines()]
    assert {x["client"] for x in lines if x["kind"] == "refused" and x["code"] == "client_error"} == {0, 1, 2}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: an illegal memory access")])
@pytest.mark.parametrize(("holder", "name"), [(Decoder, "_training"), (replies, "update")])
def test_what_the_machine_fails_at_is_no_clients(site, holder, name, error, monkeypatch):
    """As a message is read, and as a reply is written: the round was made without it, and the run ended as any other. A
    deployed client's machine is its own."""
    whole, calls = getattr(holder, name), []

    def failing(*given):
        calls.append(name)
        if len(calls) == 2:
            raise error
        return whole(*given)

    monkeypatch.setattr(holder, name, failing)
    with pytest.raises(type(error)):
        train(site)
    calls.clear()
    answered, refused = train(site, deployed=True)
    assert sorted(answered) == [0, 2] and [(client, code) for client, code, _ in refused] == [(1, "client_error")]
