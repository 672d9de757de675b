"""Masks: uniform words out of a key, that a client adds and that cancel in the sum, or that are taken off again."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key

from fedinit.key_stream import KeyStream
from fedinit.secagg.fixed_point import Words

SEED = 32  # bytes of the seed of a client's own mask


def expand(key: bytes, size: int) -> Words:
    """`size` words, uniform to whoever has not the key of 32 bytes: the key stream of ChaCha20. A key is for one
    vector."""
    return KeyStream(key).words(size)


def shared(private: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey) -> bytes:
    """The 32 bytes that both owners of two key pairs agree on."""
    return base64.urlsafe_b64decode(generate_shared_key(private, public))


def pairwise(
    client: int, private: ec.EllipticCurvePrivateKey, others: Mapping[int, ec.EllipticCurvePublicKey], size: int
) -> Words:
    """The sum of a client's masks with others, {client: public key}. Of a pair one adds what the other subtracts, so
    that over all of a cohort these sums are zero."""
    total = np.zeros(size, np.uint64)
    for other, public in others.items():
        mask = expand(shared(private, public), size)
        total += mask if client < other else -mask
    return total


def commitment(seed: bytes) -> bytes:
    """What a client says of its seed in advance, so that a share that is not of it is found out."""
    return hashlib.sha256(b"fedinit self mask" + seed).digest()
