"""What a client refuses to take from a server."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.state import base_offset as base
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import small_config


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
    """The control of the test above. (A merged base passes too: test_base_offset.py runs through it.)"""
    assert tampered(site, lambda content: None) == []


def twice_as_long(basis):
    return basis * 2


def one_direction_many_times(basis):
    return basis[:, :1].repeat(1, basis.shape[1])


def not_numbers(basis):
    return basis * float("nan")


def as_wide_as_may_be(basis):
    return torch.cat([basis] * 10, 1)


def slightly_off(basis):
    return basis * 1.002


def rounded(basis):
    return basis * 1.0002


@pytest.mark.parametrize(
    ("spoil", "refused"),
    [
        (twice_as_long, True),
        (one_direction_many_times, True),
        (not_numbers, True),
        (as_wide_as_may_be, True),
        (slightly_off, True),
        (rounded, False),
        (lambda basis: basis, False),
    ],
)
@pytest.mark.parametrize("start", [("init=eva", "init.sketch=nystrom"), ("init=lora_ga", "init.sketch=sketch")])
def test_a_client_refuses_a_basis_that_is_not_orthonormal(site, start, spoil, refused):
    """The noise is made for one that is. The last is the control: an honest run of two passes is refused by nobody."""
    words = (*start, "init.examples=32", "init.clip=1.0", "rounds=1", "evaluation=none", "client.max_steps=1")
    seen = []

    def handler(deliveries):
        for message, context in deliveries:
            bases = wire.decode(message.content[wire.ASKED]) if wire.ASKED in message.content else {}
            if bases and context.node_config["partition-id"] == 0:
                seen.extend(bases)
                message.content[wire.ASKED] = wire.encode({name: spoil(basis) for name, basis in bases.items()})
        replies = cohort(deliveries)
        reasons.extend(reply.error.reason for reply in replies if reply.has_error())
        return replies

    cohort, reasons = Cohort(site), []
    federate(small_config(*words), LocalGrid(handler, 3), site.backbone)
    assert len(seen) == 4 and len(reasons) == refused  # a basis for each layer, in the second pass
    assert all("with columns that are not orthonormal to 0.001" in reason for reason in reasons)
