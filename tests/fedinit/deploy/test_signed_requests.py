"""What Flower, whose rule it is, takes of requests that a node has signed: docs/trust.md says so of the network."""

from __future__ import annotations

import base64
import datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import HTTPException
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from starlette.requests import Request


def request(age: float, signed: float | None = None, signer: ec.EllipticCurvePrivateKey | None = None) -> Request:
    """One that says it was made `age` seconds ago. signed: what its signature is of, where that is another time.
    signer: whose it is, where it is another's than the key that it names."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = public_key_to_bytes(key.public_key())
    now = datetime.datetime.now(datetime.timezone.utc)
    said, of = ((now - datetime.timedelta(seconds=s)).isoformat() for s in (age, age if signed is None else signed))
    headers = {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode(),
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(sign_message(signer or key, of.encode("ascii"))).decode(),
        TIMESTAMP_HEADER: said,
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    state = {"protobuf_request": ActivateNodeRequest(public_key=public)}
    return Request({"type": "http", "headers": raw, "state": state})


def test_one_that_was_just_signed_is_taken():
    authenticate_node(request(0))
    authenticate_node(request(290))


@pytest.mark.parametrize(
    "sent",
    [
        lambda: request(306),  # the same bytes again, five minutes later
        lambda: request(-6),
        lambda: request(0, signed=306),  # with a new time, and the signature of before
        lambda: request(0, signer=ec.generate_private_key(ec.SECP384R1())),
    ],
    ids=["old", "of the future", "another time", "another's key"],
)
def test_one_of_long_ago_or_changed_is_not(sent):
    with pytest.raises(HTTPException) as refused:
        authenticate_node(sent())
    assert refused.value.status_code == 401
