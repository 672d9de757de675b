"""What a client refuses to take from a server."""

from __future__ import annotations

import contextlib
import io
import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from numpy.lib import format as npy

from clients import guard
from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.state import base_offset as base
from fedinit.state import digest
from fedinit.statistics import Request, Sampling
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import slow_unless, small_config


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


def lie(record, name, content, *, like):
    """The bytes of `content` (an array, or bytes) under what an array like `like` declares."""
    if isinstance(content, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, content)
        content = buffer.getvalue()
    array = Array(dtype=str(like.dtype), shape=like.shape, stype="numpy.ndarray", data=content)

    def change(sent):
        sent.setdefault(record, ArrayRecord())[name] = array

    return change


HEADER = io.BytesIO()
npy.write_array_header_1_0(HEADER, {"shape": (10, 24), "fortran_order": False, "descr": "<f4"})
WEIGHT, SQUARE = np.zeros((10, 24), np.float32), np.zeros((24, 24), np.float32)


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
        (
            lie(wire.STATE, "head/weight", np.zeros((10, 24)), like=WEIGHT),
            "its bytes are float64 (10, 24), declared as",
        ),
        (lie(wire.STATE, "head/weight", np.zeros((5000, 24), np.float32), like=WEIGHT), "its bytes are float32 (5000"),
        (lie(wire.STATE, "head/weight", HEADER.getvalue(), like=WEIGHT), "0 bytes of values, declared as float32"),
        (lie(wire.STATE, "head/weight", HEADER.getvalue() + bytes(961), like=WEIGHT), "961 bytes of values"),
        (lie(wire.STATE, "head/weight", b"PK\x03\x04 a zip", like=WEIGHT), "its bytes are no numpy array"),
        (
            lie(wire.STATE, "head/weight", np.asfortranarray(WEIGHT + np.arange(24, dtype="f")), like=WEIGHT),
            "row after row",
        ),
        (
            lie(base.RECORD, LAYER, np.zeros((4000, 4000), np.float32), like=SQUARE),
            "its bytes are float32 (4000, 4000)",
        ),
        (add(wire.STATE, f"{LAYER}/A", torch.full((4, 24), float("nan"))), "with NaN or infinity"),
        (add(base.RECORD, LAYER, torch.full((24, 24), float("inf"))), "with NaN or infinity"),
        (add(wire.STATE, f"{LAYER}/A", torch.zeros(3000, 24)), "no more than 24"),
        (lambda c: c[wire.CONFIG].__setitem__("round", -5), "in round -5"),
        (lambda c: c[wire.CONFIG].__setitem__("trainable", ["W"]), "to train ['W']"),
        (lambda c: c.__setitem__("weights", wire.encode({"a": torch.zeros(1)})), "a record 'weights'"),
        (lambda c: c.__setitem__(wire.STATE, MetricRecord({"a": 1})), "as MetricRecord"),
        (lambda c: c[wire.CONFIG].__setitem__("backbone", "f" * 64), "the run is for the backbone ffffffffffff"),
        (lambda c: c.__setitem__(wire.CONFIG, ConfigRecord({})), "KeyError: 'backbone'"),
    ],
)
def test_a_client_refuses(site, change, expected):
    (reason,) = tampered(site, change)
    assert expected in reason


def test_an_offset_of_any_values_is_taken(site):
    """What a client cannot refuse (docs/trust.md): it changes the model that it trains and evaluates, in memory."""
    LocalGrid(lambda pairs: [], 1)
    offset = 1e6 * torch.ones(24, 24)
    about = ConfigRecord({"backbone": site.backbone.digest})
    content = RecordDict({wire.CONFIG: about, base.RECORD: wire.encode({LAYER: offset})})
    assert torch.equal(guard.Guard(site).check(Message(content, 1, "train"))[base.RECORD][LAYER], offset)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def with_an_offset(content):
    content[base.RECORD] = wire.encode({LAYER: 5 * drawn(24, 2) @ drawn(2, 24)})
    content[wire.CONFIG]["base-key"], content[wire.CONFIG]["base-update"] = "a" * 64, "dense"


def with_a_merge(content):
    merge = {LAYER: Factors(drawn(2, 24), 5 * drawn(24, 2))}
    parts = digest.named_parts(merge)
    content[base.RECORD] = wire.encode({f"000001/{name}": value for name, value in parts.items()})
    content[wire.CONFIG]["base-key"] = base.next_key(base.EMPTY, merge)
    content[wire.CONFIG]["base-update"] = "merges"


@pytest.mark.parametrize(
    "change", [with_an_offset, with_a_merge, lambda content: None], ids=["offset", "merge", "none"]
)
def test_an_offset_or_a_merge_changes_what_a_client_trains_and_evaluates(change):
    """By a server that a deployed site, with its limits on, takes it from: a limit (docs/trust.md). The last is the
    control."""
    site, seen = Site(small_config("rounds=1", "evaluation=clients")), {}

    def handler(deliveries):
        for message, context in deliveries:
            kind, content = message.metadata.message_type, wire.clone(message.content)
            if kind in ("train", "evaluate") and context.node_config["partition-id"] == 0:
                other, node = Message(content, message.metadata.dst_node_id, kind), dict(context.node_config)
                change(other.content)
                contexts = [Context(1, context.node_id, dict(node), RecordDict(), {}) for _ in range(2)]
                seen[kind] = [
                    Cohort(site, persistent=True, deployed=True)([(given, own)])[0]
                    for given, own in zip((message, other), contexts, strict=True)
                ]
        return cohort(deliveries)

    cohort = Cohort(site)
    federate(site.config, LocalGrid(handler, 3), site.backbone)
    assert seen.keys() == {"train", "evaluate"}
    for honest, changed in seen.values():
        assert honest.has_content() and changed.has_content(), changed
        assert (wire.to_bytes(honest.content) == wire.to_bytes(changed.content)) == (change.__name__ == "<lambda>")


def test_an_untouched_round_is_refused_by_nobody(site):
    """The control of the test above. (A merged base passes too: test_base_offset.py runs through it.)"""
    assert tampered(site, lambda content: None) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"shapes": {LAYER: (24, 30000)}}, "as (24, 30000), which is (24, 24) here"),
        ({"shapes": {LAYER: (24, 0)}}, "as (24, 0)"),
        ({"layers": {"x": "gram"}, "shapes": {"x": (3, 3)}}, "'x' as (3, 3), which is no adapted layer"),
        (
            {"source": "adapters", "layers": {f"{LAYER}/A": "total"}, "shapes": {f"{LAYER}/A": (4, 10**6)}},
            "more than the square of a layer's width",
        ),
        ({}, ""),
    ],
)
def test_a_request_for_what_the_model_does_not_have_is_refused_before_anything_is_allocated(site, change, expected):
    asked = {
        "source": "inputs",
        "layers": {LAYER: "gram"},
        "shapes": {LAYER: (24, 24)},
        "seed": 0,
        "sampling": Sampling(),
    }
    request = Request(**(asked | change))
    with pytest.raises(InputError, match=re.escape(expected)) if expected else contextlib.nullcontext():
        guard.check_request(request, site, request.source == "adapters")


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


def untouched(basis):
    return basis


SPOILT = (twice_as_long, one_direction_many_times, not_numbers, as_wide_as_may_be, slightly_off)
TWO_PASSES = (("init=eva", "init.sketch=nystrom"), ("init=lora_ga", "init.sketch=sketch"))


@pytest.mark.parametrize(
    ("start", "spoil", "refused"),
    slow_unless(
        lambda start, spoil, refused: start == TWO_PASSES[0] or spoil in (twice_as_long, rounded),
        ((start, spoil, spoil in SPOILT) for start in TWO_PASSES for spoil in (*SPOILT, rounded, untouched)),
    ),
)
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
    what = "with NaN or infinity" if spoil is not_numbers else "with columns that are not orthonormal to 0.001"
    assert all(what in reason for reason in reasons)


def test_what_passed_is_known_again_and_what_is_beside_it_is_looked_at(site: Site, monkeypatch) -> None:
    """A round's clients in one process are sent the very same tensors: of a thousand messages one is looked through."""
    looked: list[str] = []
    plain = guard.first_not_finite
    monkeypatch.setattr(guard, "first_not_finite", lambda tensors: looked.extend(tensors) or plain(tensors))
    d, k = site.targets[LAYER]
    tensors = {f"{LAYER}/A": torch.ones(2, k), f"{LAYER}/B": torch.ones(d, 2)}
    encoded, ours = wire.encode(tensors), guard.Guard(site)

    def check(arrays: ArrayRecord) -> object:
        config = ConfigRecord({"backbone": site.backbone.digest})
        return ours.check(Message(RecordDict({wire.CONFIG: config, wire.STATE: arrays}), 1, "train"))[wire.STATE]

    assert check(encoded) == check(wire.clone(RecordDict({"s": encoded}))["s"]) and looked == list(tensors)
    check(wire.encode({name: value.clone() for name, value in tensors.items()}))  # equal, and not the same
    assert looked == 2 * list(tensors)
    for odd in (tensors | {f"{LAYER}/A": torch.full((2, k), torch.nan)}, tensors | {f"{LAYER}/B": torch.ones(d, 3, 1)}):
        for _ in range(2):  # what was refused is refused again
            with pytest.raises(InputError):
                check(wire.encode(odd))
