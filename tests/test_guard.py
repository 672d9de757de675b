"""What a client refuses to take from a server."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord

from clients.cohort import Cohort
from clients.site import Site
from fedinit import base, wire
from fedinit.engines.local import LocalGrid
from strategies.federation import federate
from tests.small import small_config


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


def tampered(site: Site, change) -> list[str]:
    """Run one round in which `change(content)` spoils the first client's train message; the refusals' reasons."""
    answers = []

    def handler(deliveries):
        for message, context in deliveries:
            if message.metadata.message_type == "train" and context.node_config["partition-id"] == 0:
                change(message.content)
        replies = Cohort(site)(deliveries)
        answers.extend(r.error.reason for r in replies if r.has_error())
        return replies

    federate(small_config("rounds=1"), LocalGrid(handler, 3), site.backbone)
    return answers


def add(record, name, tensor):
    def change(content):
        tensors = wire.decode(content[record]) if record in content else {}
        content[record] = wire.encode(tensors | {name: tensor})

    return change


LAYER = "blocks.0.attn.proj"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (add(wire.STATE, "blocks.0.attn.proj.weight", torch.zeros(24, 24)), "takes no weights of its backbone"),
        (add(wire.STATE, "patch_embed.proj/weight", torch.zeros(24, 24)), "takes no weights of its backbone"),
        (add(wire.STATE, "blocks.0.attn.qkv/A", torch.zeros(4, 24)), "no factor of an adapted layer"),
        (add(wire.STATE, f"{LAYER}/A", torch.zeros(4, 25)), "expected float32 (4, 24)"),
        (add(wire.STATE, f"{LAYER}/B", torch.zeros(24, 4, dtype=torch.float64)), "as float64 (24, 4)"),
        (add(wire.STATE, "head/weight", torch.zeros(11, 24)), "expected float32 (10, 24)"),
        (add(wire.STATE, "head/extra", torch.zeros(1)), "no part of a head"),
        (add(base.RECORD, "blocks.0.mlp.fc1", torch.zeros(96, 24)), "is no factor of an adapted layer"),
        (add(base.RECORD, LAYER, torch.zeros(24)), "expected float32 (24, 24)"),
        (lambda c: c.__setitem__("weights", wire.encode({"a": torch.zeros(1)})), "a record 'weights'"),
        (lambda c: c.__setitem__(wire.STATE, MetricRecord({"a": 1})), "as MetricRecord"),
        (lambda c: c[wire.CONFIG].__setitem__("backbone", "f" * 64), "the run is for the backbone ffffffffffff"),
        (lambda c: c.__setitem__(wire.CONFIG, ConfigRecord({})), "KeyError: 'backbone'"),
    ],
)
def test_a_client_refuses(site, change, expected):
    (reason,) = tampered(site, change)
    assert expected in reason


def test_an_untouched_round_is_refused_by_nobody(site):
    """The control of the test above. (A merged base passes too: tests/test_base.py runs through the same guard.)"""
    assert tampered(site, lambda content: None) == []
