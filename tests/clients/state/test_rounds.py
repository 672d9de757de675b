"""What a client keeps of its own: a task and the state before make the reply and the state after, as often as asked."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from clients.cohort import Cohort
from clients.engine import worker
from clients.site import Site
from clients.state import rounds
from fedinit import wire
from fedinit.runs.observer import Observer
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import small_config
from tests.support.state_on_disk import keeping

STATEFUL = ["strategy=fedsa_lora", "reinit=local", "client=sgd_sai"]
METHODS = [*STATEFUL, "strategy=flora"]


def settings(words: str, *more: str):
    return small_config(*words.split(), "rounds=3", "evaluation=clients", "client.max_steps=1", *more)


@pytest.fixture(scope="module")
def sites():
    """The site of a client optimiser; nothing else of the words below changes it."""
    return {name: Site(settings(name)) for name in ("client=sgd_sai", "client=sgd")}


def site_of(sites, words: str) -> Site:
    return sites["client=sgd_sai" if "sgd_sai" in words else "client=sgd"]


class Ledger(Observer):
    def __init__(self):
        self.lines = []

    def event(self, kind, facts):
        self.lines.append((kind, facts["round"], facts["client"], facts["code"]))


def spoilt(answer, client: int, round: int, spoil):
    """A handler in which one client's update of one round is what `spoil(message, reply)` makes of it."""

    def handler(deliveries):
        replies = answer(deliveries)
        for i, (message, context) in enumerate(deliveries):
            mine = context.node_config["partition-id"] == client and message.metadata.message_type == "train"
            if mine and message.content["config"]["round"] == round:
                replies[i] = spoil(message, replies[i])
        return replies

    return handler


def diverge(monkeypatch, client: int, round: int) -> None:
    """This client's training of this round ends in NaN, also in what it keeps."""
    train = worker.train_bank

    def diverging(bank, tasks, *args):
        made = train(bank, tasks, *args)
        for i, task in enumerate(tasks):
            if (task.client, task.round) == (client, round):
                adapter = {n: dataclasses.replace(f, A=f.A * torch.nan, B=f.B * torch.nan)
                           for n, f in made[i].adapter.items()}  # fmt: skip
                scales = dict.fromkeys(made[i].step_scales, float("nan"))
                made[i] = dataclasses.replace(made[i], adapter=adapter, step_scales=scales)
        return made

    monkeypatch.setattr(worker, "train_bank", diverging)


@pytest.mark.parametrize(
    ("words", "round", "kept"),
    [pytest.param(words, 2, False, marks=pytest.mark.slow) for words in STATEFUL[:2]]
    + [(STATEFUL[2], 2, False), ("strategy=fedsa_lora", 1, False), ("reinit=local", 2, True)],
)
def test_an_update_that_was_refused_leaves_nothing_behind(words, round, kept, sites, monkeypatch, tmp_path):
    """A client that diverged once goes on from what it had before: the run is the one in which it never answered.
    kept: on the site's disk."""
    config, site = settings(words, "engine.clients_per_bank=1"), site_of(sites, words)

    def handler(name: str):
        clients = Cohort(site, persistent=kept)
        return keeping(config, clients, tmp_path / name) if kept else clients

    silent = spoilt(handler("silent"), 1, round, lambda message, reply: Message(RecordDict(), reply_to=message))
    expected = federate(config, LocalGrid(silent, 3), site.backbone)
    ledger = Ledger()
    with monkeypatch.context() as patch:
        diverge(patch, 1, round)
        # As `silent` it answers all together: a running mean without one is rounded otherwise than a mean without.
        found = federate(config, LocalGrid(handler("diverged").__call__, 3), site.backbone, observers=[ledger])
    assert ledger.lines == [("refused", round, 1, "not_finite")]
    assert found.final_hash == expected.final_hash and found.score == expected.score


def test_a_client_that_went_on_from_what_was_refused_would_be_refused_for_ever(sites, monkeypatch):
    """The control of the test above."""
    config, site = settings("strategy=fedsa_lora"), site_of(sites, "")
    monkeypatch.setattr(rounds, "accepted", lambda message: int(message.content["config"]["round"]) - 1)
    diverge(monkeypatch, 1, 2)
    ledger = Ledger()
    federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[ledger])
    assert [line[:3] for line in ledger.lines if line[0] == "refused"] == [("refused", r, 1) for r in (2, 3)]


@pytest.mark.parametrize("words", METHODS)
def test_a_task_given_again_gives_the_same_bytes(words, sites):
    """To the same process and Context, which have seen it, and to a new process with the state before."""
    config, site = settings(words, "engine.clients_per_bank=1"), site_of(sites, words)
    clients, seen = Cohort(site), []

    def twice(deliveries):
        before = [wire.clone(context.state) for _, context in deliveries]
        replies = clients(deliveries)
        if deliveries[0][0].metadata.message_type == "train":
            after = [wire.to_bytes(context.state) for _, context in deliveries]
            again = clients(deliveries)
            anew = [
                (m, Context(1, c.node_id, c.node_config, state, {}))
                for (m, c), state in zip(deliveries, before, strict=True)
            ]
            fresh = Cohort(site)
            fresh.bases.known = dict(clients.bases.known)
            for first, second, third in zip(replies, again, fresh(anew), strict=True):
                mark = wire.to_bytes(first.content)
                seen.append(mark == wire.to_bytes(second.content) == wire.to_bytes(third.content))
            assert [wire.to_bytes(context.state) for _, context in deliveries] == after
            assert [wire.to_bytes(context.state) for _, context in anew] == after
        return replies

    federate(config, LocalGrid(twice, 3), site.backbone)
    assert seen == [True] * 9


@pytest.mark.parametrize("words", ["strategy=fedsa_lora", "strategy=flora"])
def test_a_task_that_fails_leaves_the_state_as_it_was(words, sites, monkeypatch):
    config, site, clients, held = settings(words), site_of(sites, words), Cohort(site_of(sites, words)), []
    monkeypatch.setattr(worker, "train_bank", lambda *_: (_ for _ in ()).throw(OSError("gone")))

    def handler(deliveries):
        before = [wire.to_bytes(context.state) for _, context in deliveries]
        replies = clients(deliveries)
        if deliveries[0][0].metadata.message_type == "train":
            held.append(before == [wire.to_bytes(context.state) for _, context in deliveries])
        return replies

    with pytest.raises(Exception, match="no usable update"):
        federate(config, LocalGrid(handler, 3), site.backbone)
    assert held and all(held)
