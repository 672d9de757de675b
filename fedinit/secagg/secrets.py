"""Keys as bytes, and secrets in shares, of which `threshold` give the secret back and fewer say nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.supercore.primitives.asymmetric import generate_key_pairs

CURVE = ec.SECP384R1()  # Flower's
KEY = 48  # bytes of a private key of it
PUBLIC = 49  # of a public one, compressed
TRIES = 64  # choices of shares: any two wrong ones of the first ten


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key, new every time."""
    return generate_key_pairs()[0]


def private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The number that the key is."""
    return key.private_numbers().private_value.to_bytes(KEY, "big")


def private_key(content: bytes) -> ec.EllipticCurvePrivateKey:
    """The inverse of `private_bytes`. Raises ValueError for what is no key."""
    return ec.derive_private_key(int.from_bytes(content, "big"), CURVE)


def public_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key that goes with it."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def public_key(content: bytes) -> ec.EllipticCurvePublicKey:
    """The inverse of `public_bytes`. Raises ValueError for what is no point of the curve."""
    return ec.EllipticCurvePublicKey.from_encoded_point(CURVE, content)


def split(secret: bytes, threshold: int, holders: list[int]) -> dict[int, bytes]:
    """{holder: its share}, in the order of the holders."""
    return dict(zip(holders, create_shares(secret, threshold, len(holders)), strict=True))


def share_length(secret: int) -> int:
    """Bytes of a share of a secret of so many bytes: an index, and blocks of 16 of the padded secret."""
    return 4 + (secret // 16 + 1) * 16


def joined(
    shares: Mapping[int, bytes], threshold: int, is_right: Callable[[bytes], bool], doubted: Collection[int] = ()
) -> tuple[bytes, list[int]]:
    """The secret, and whose shares had to be left out for it. No more shares are put together than it takes: that is
    most of what a secret sum costs the server.

    shares: {holder: share}, of the right length. is_right: whether bytes are the secret. doubted: holders who gave a
    wrong share of another secret, and are asked last. Raises ValueError where `TRIES` choices of `threshold` of them,
    without one or two of the first, do not give it.
    """
    holders = sorted(shares, key=lambda holder: (holder in doubted, holder))
    without = itertools.chain.from_iterable(itertools.combinations(holders[: threshold + 1], n) for n in range(3))
    for wrong in itertools.islice(without, TRIES):
        chosen = [h for h in holders if h not in wrong][:threshold]
        secret = _combined([shares[h] for h in chosen], is_right) if len(chosen) == threshold else None
        if secret is not None:
            return secret, list(wrong)
    raise ValueError(f"{len(shares)} shares do not give the secret, {threshold} right ones would")


def _combined(shares: list[bytes], is_right: Callable[[bytes], bool]) -> bytes | None:
    try:
        secret = combine_shares(shares)
        return secret if is_right(secret) else None
    except ValueError:  # two shares of one index, or padding that is none
        return None
