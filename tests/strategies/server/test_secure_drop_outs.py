"""Clients that fail in a secret sum, of whole runs with checkpoints: each costs its own update, and leaves no key."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Error, Message

from clients import client_app, secagg
from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.config.flower import to_run_config
from fedinit.errors import RunFailed
from fedinit.runs.observer import Observer
from fedinit.secagg import secrets
from fedinit.secagg.messages import QUERY
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.serving import exchange_over
from tests.support.small import small_config

WORDS = ("partition=iid", "engine.clients_per_bank=1", "client.max_steps=1", "evaluation=none", "strategy=fedit")
TWO = ("strategy=lora_fair", "strategy.phases=2", "strategy.diagnostics=false")
GONE = 2  # the client that fails in round 1


class Watch(Observer):
    def __init__(self) -> None:
        self.clients, self.ledger = {}, []

    def round_done(self, numbers):
        self.clients[numbers.round] = sorted(report.client for report in numbers.clients)

    def event(self, kind, facts):
        self.ledger.append((kind, dict(facts)))


@pytest.fixture
def made(monkeypatch) -> list[bytes]:
    """Every private key and every seed that is made."""
    found: list[bytes] = []
    key, noted = secrets.private_bytes, secagg.masks.commitment
    monkeypatch.setattr(secrets, "private_bytes", lambda k: found.append(key(k)) or found[-1])
    monkeypatch.setattr(secagg.masks, "commitment", lambda seed: found.append(seed) or noted(seed))
    return found


def failing(monkeypatch, stage: str, clients=(GONE,)) -> None:
    """These clients raise an error of their own at a stage of their first sum, at the end of what they do in it."""
    name = {"keys": "answer", "shares": "answer", "unmask": "answer", "masked": "masked"}[stage]
    real, failed = getattr(secagg, name), set()

    def fails(message, context, client, *args):
        reply = real(message, context, client, *args)
        config = wire.config(message)
        if client in clients and client not in failed and config.get("stage", "masked") == stage:
            failed.add(client)
            raise OSError("the disk is full")
        return reply

    monkeypatch.setattr(secagg, name, fails)


def held(grid: LocalGrid) -> list[ConfigRecord]:
    """What clients keep of sums."""
    contexts = [grid.contexts[node] for node in grid.contexts]
    return [context.state[secagg.OWN] for context in contexts if secagg.OWN in context.state]


@pytest.mark.parametrize("words", [(), pytest.param(TWO, marks=pytest.mark.slow)], ids=["one phase", "two phases"])
@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "unmask"])
def test_a_client_that_fails_at_any_stage_costs_its_own_update_and_leaves_no_key(
    monkeypatch, tmp_path, made, stage, words
):
    failing(monkeypatch, stage)
    config = small_config(*WORDS, "partition.clients=5", "secure_aggregation=secagg", "rounds=2", *words)
    site, watch = Site(config), Watch()
    grid = LocalGrid(Cohort(site), 5)
    federate(config, grid, site.backbone, observers=[watch], checkpoints=tmp_path, parts={"clients": grid})
    lost = "not_unmasked" if stage == "unmask" else "refused"
    refused = [(kind, facts["client"]) for kind, facts in watch.ledger if kind in ("refused", "not_unmasked")]
    assert refused == [(lost, GONE)] and not [kind for kind, _ in watch.ledger if kind == "sum_refused"]
    others = [0, 1, 3, 4]
    assert watch.clients == {1: [*range(5)] if stage == "unmask" else others, 2: [*range(5)]}
    assert made and not [key for own in held(grid) for key in made if key in own.values()]
    on_disk = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert on_disk and not [key for key in made if key in on_disk] and secagg.OWN.encode() not in on_disk


def test_keys_of_a_sum_that_others_ended_are_in_no_checkpoint(monkeypatch, tmp_path, made):
    """Two are left of three: nobody tells them, and they hold keys when the round is saved."""
    failing(monkeypatch, "masked")
    config = small_config(*WORDS, "partition.clients=3", "secure_aggregation=secagg", "rounds=1")
    site, watch = Site(config), Watch()
    grid = LocalGrid(Cohort(site), 3)
    nothing = "nothing was learned: the secret sums of all rounds, 1, were refused"
    with pytest.raises(RunFailed, match=nothing):
        federate(config, grid, site.backbone, observers=[watch], checkpoints=tmp_path, parts={"clients": grid})
    assert [facts["clients"] for kind, facts in watch.ledger if kind == "sum_refused"] == [[0, 1]]
    with pytest.raises(RunFailed, match=nothing):  # over a restart too
        federate(config, LocalGrid(Cohort(site), 3), site.backbone, checkpoints=tmp_path)
    assert [own for own in held(grid) if own["stage"] == "masked"]
    on_disk = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert on_disk and not [key for key in made if key in on_disk] and secagg.OWN.encode() not in on_disk


def test_three_sites_go_on_after_a_round_that_one_was_lost_in(monkeypatch):
    failing(monkeypatch, "masked")
    config = small_config(*WORDS, "partition.clients=3", "secure_aggregation=secagg", "rounds=3")
    site, watch = Site(config), Watch()
    outcome = federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[watch])
    assert outcome.summary()["skipped_rounds"] == [1]
    assert watch.clients == {1: [], 2: [0, 1, 2], 3: [0, 1, 2]}


def test_a_question_of_another_kind_ends_a_sum(monkeypatch, made):
    """A client whose round was given up by the server forgets its keys with the next question that is of no sum."""
    failing(monkeypatch, "masked", (0, 1, 2))
    config = small_config(*WORDS, "partition.clients=5", "secure_aggregation=secagg", "rounds=1")
    site = Site(config)
    grid = LocalGrid(Cohort(site), 5)
    with pytest.raises(RunFailed, match="round 1: too few clients"):
        federate(config, grid, site.backbone)
    assert {own["stage"] for own in held(grid)} == {"over", "masked"}
    exchange_over(grid).register_clients(site.backbone.digest, -1)
    assert made and {own["stage"] for own in held(grid)} == {"over"}
    assert not [key for own in held(grid) for key in made if key in own.values()]


@pytest.mark.parametrize(
    ("lost_at", "lost"),
    [
        pytest.param("train", (3, 4), marks=pytest.mark.slow),
        ("shares", (4,)),
        pytest.param("keys", (4,), marks=pytest.mark.slow),
    ],
)
def test_sites_that_insist_on_masks_do_a_round_again_that_nobody_unmasked(tmp_path, lost_at, lost):
    """First with those that are left, of whom then too few are; the server comes back, and so does everybody."""
    config = small_config(*WORDS, "partition.clients=5", "secure_aggregation=secagg", "rounds=2")
    down = True

    def handler(deliveries):
        replies = []
        for message, context in deliveries:
            client = context.node_config["partition-id"]
            kind = message.metadata.message_type
            stage = str(wire.config(message)["stage"]) if kind == QUERY else kind
            # Of those that go on, more are lost before anything is unmasked.
            if down and ((client in lost and stage == lost_at) or (client in (1, 2) and stage == "train")):
                if stage == "train":
                    answered(message, context)
                replies.append(Message(Error(1001, "gone"), reply_to=message))
            else:
                replies.append(answered(message, context))
        return replies

    def answered(message, context):
        client = context.node_config["partition-id"]
        node = {"partition-id": client, "state-dir": str(tmp_path / str(client)), "require-secure-aggregation": True}
        context.node_config, context.run_config = node, to_run_config(config)
        return client_app.app(message, context)

    backbone, watch = Site(config).backbone, Watch()
    try:
        with pytest.raises(RunFailed, match="round 1: too few clients"):
            federate(config, LocalGrid(handler, 5, strict=True), backbone, checkpoints=tmp_path / "server")
        down = False
        grid = LocalGrid(handler, 5, strict=True)
        federate(config, grid, backbone, observers=[watch], checkpoints=tmp_path / "server")
    finally:
        client_app._cohort.cache_clear()
    assert watch.clients == {1: [*range(5)], 2: [*range(5)]}
    assert not [facts for kind, facts in watch.ledger if kind in ("refused", "sum_refused")]
