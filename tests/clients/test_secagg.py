"""A secret sum through the ClientApp, each message in a process of its own, with states on the site's disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, generate_shared_key

from clients import client_app, secagg
from clients.site import DeferredSite, Site
from fedinit import wire
from fedinit.config.flower import to_run_config
from fedinit.errors import InputError, Refused
from fedinit.models import build_backbone
from fedinit.secagg import masks, secrets
from fedinit.secagg.fixed_point import FixedPoint
from fedinit.secagg.messages import MASKED, QUERY, RECORD, unpack
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import small_config

WORDS = ("rounds=1", "strategy=ffa_lora", "evaluation=none", "engine.clients_per_bank=1", "client.max_steps=1")


def run(disk, *words):
    config, stages = small_config(*WORDS, *words), []

    def handler(deliveries):
        replies = []
        for message, context in deliveries:
            client_app._cohort.cache_clear()
            client = context.node_config["partition-id"]
            node = {"partition-id": client, "state-dir": str(disk / str(client))}
            given = Context(context.run_id, context.node_id, node, context.state, to_run_config(config))
            replies.append(client_app.app(message, given))
            stages.append((message.metadata.message_type, replies[-1].has_error(), secagg.OWN in given.state))
            context.state = given.state
        return replies

    try:
        return federate(config, LocalGrid(handler, 3, strict=True), build_backbone(config.model)), stages
    finally:
        client_app._cohort.cache_clear()


def test_keys_outlive_a_process_and_are_never_on_disk(tmp_path):
    masked, stages = run(tmp_path / "masked", "secure_aggregation=secagg")
    plain, _ = run(tmp_path / "plain")
    assert not any(failed for _, failed, _ in stages)
    assert all(kept for kind, _, kept in stages if kind in ("train", "query.secagg"))
    for name, factors in plain.aggregate.layers.items():  # the same arithmetic but for the fixed point
        for part in ("A", "B"):
            assert torch.allclose(getattr(masked.aggregate.layers[name], part), getattr(factors, part), atol=1e-5)
    files = [path for path in (tmp_path / "masked").rglob("*") if path.is_file()]
    assert files and all(secagg.OWN.encode() not in path.read_bytes() for path in files)


def test_exchanges_beside_training_read_neither_images_nor_backbone(tmp_path, monkeypatch):
    """In a deployment each has a process of its own, and an eighth of reply_timeout."""
    read, made = Site.__init__, []
    monkeypatch.setattr(Site, "__init__", lambda self, *given: made.append(self) or read(self, *given))
    _, stages = run(tmp_path, "secure_aggregation=secagg")
    kinds = [kind for kind, *_ in stages]
    assert kinds.count(QUERY) == 9, "keys, shares and masks of three clients"
    assert len(made) == len(kinds) - 9 > 0
    assert all(type(site) is DeferredSite for site in made)


@pytest.mark.parametrize("kind", ["train", "query.describe"])
def test_a_site_whose_own_files_fail_in_a_sum_keeps_no_keys(kind, monkeypatch):
    def gone(self):
        raise InputError("model.checkpoint: no such file")

    monkeypatch.setattr(DeferredSite, "read", gone)
    state = RecordDict({secagg.OWN: ConfigRecord({"round": 3, "stage": "shared", "mask-key": b"secret"})})
    config = to_run_config(small_config(*WORDS, "secure_aggregation=secagg"))
    context = Context(1, 1, {"partition-id": 0}, state, config)
    LocalGrid(lambda pairs: [], 1)
    client_app._cohort.cache_clear()
    assert client_app.app(Message(RecordDict(), 1, kind), context).has_error()
    client_app._cohort.cache_clear()
    assert dict(context.state[secagg.OWN]) == {"round": 3, "stage": "over"}


@pytest.mark.parametrize("wrong", [{"round": 0}, {"round": True}, {"round": "1"}, {"stage": "all"}, {"stage": 2}, {}])
def test_a_stage_that_is_none_is_the_servers_fault(wrong):
    LocalGrid(lambda pairs: [], 1)
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
    about = {"round": 1, "stage": "keys", **wrong} if wrong else {"stage": "keys"}
    with pytest.raises(Refused, match="^the server (asked for|sent) a? ?"):
        secagg.answer(Message(RecordDict({wire.CONFIG: ConfigRecord(about)}), 1, QUERY), context, 0)
    assert secagg.OWN not in context.state


def test_a_server_that_makes_up_clients_reads_an_update():
    """A limit (docs/trust.md): no authority signs clients' keys, so that the others of a sum may be the server."""
    LocalGrid(lambda pairs: [], 1)
    context, point = Context(1, 1, {"partition-id": 0}, RecordDict(), {}), FixedPoint(64.0, 32)

    def message(entries, kind=QUERY, **settings):
        about = ConfigRecord({"round": 1, **settings})
        return Message(RecordDict({wire.CONFIG: about, RECORD: ConfigRecord(entries)}), 1, kind)

    theirs = secagg.answer(message({}, stage="keys"), context, 0)[RECORD]["public"]
    made_up = {client: (secrets.new_key(), secrets.new_key()) for client in (1, 2)}
    public = {"0": theirs} | {str(c): b"".join(map(secrets.public_bytes, pair)) for c, pair in made_up.items()}
    sealed = secagg.answer(message(public, stage="shares", threshold=2), context, 0)[RECORD]
    update = {"w": torch.randn(50, generator=torch.manual_seed(0))}
    training = message({"0": sealed["0"], "1": b"", "2": b""}, "train", weight=5)
    reply = secagg.masked(training, context, 0, point, 5, 0, update, 1.0)
    words = wire.decode(reply[wire.STATE])[MASKED].numpy().view(np.uint64)

    of_seed = {}
    for client, (_, seal) in made_up.items():
        key = generate_shared_key(seal, secrets.public_key(theirs[secrets.PUBLIC :]))
        of_seed[client] = unpack(decrypt(key, sealed[str(client)]))[2]
    seed, _ = secrets.joined(of_seed, 2, lambda secret: len(secret) == masks.SEED)
    words = words - masks.expand(seed, words.size)
    for mask_key, _ in made_up.values():
        words -= masks.expand(masks.shared(mask_key, secrets.public_key(theirs[: secrets.PUBLIC])), words.size)
    read = point.decode(words, 5)[:-2]
    assert torch.allclose(read, update["w"].double(), rtol=0, atol=2 * point.step)
