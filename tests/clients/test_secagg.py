"""A secret sum through the ClientApp, each message in a process of its own, with states on the site's disk."""

from __future__ import annotations

import torch
from flwr.app import Context

from clients import client_app, secagg
from fedinit.config.flower import to_run_config
from fedinit.models import build_backbone
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
