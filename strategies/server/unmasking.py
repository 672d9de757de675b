"""The last stage of a secret sum: shares of what takes the masks off, and the sum without them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedinit import wire
from fedinit.secagg import masks, secrets
from fedinit.secagg.fixed_point import Words
from fedinit.secagg.messages import RECORD
from strategies.server.replies import Asked, Refusal
from strategies.server.secure_cohort import NOT_UNMASKED, SHARE, Cohort, Keys, Sealed, Spoilt


def unmask(sums: Cohort, words: Mapping[int, Words], keys: Keys, sealed: Sealed) -> Words:
    """The fourth stage: the sum of the vectors with all masks off. Raises Spoilt, and RunFailed for too few answers."""
    sums.end = time.monotonic() + SHARE * sums.exchange.reply_timeout
    shares, cohort = _shares(sums, list(words), sealed), list(sealed)
    doubted: set[int] = set()
    total = np.zeros_like(next(iter(words.values())))
    for vector in words.values():
        total += vector
    for client in cohort:
        of_client = {holder: given[client] for holder, given in shares.items() if client in given}
        public, commitment = keys[client]
        if client in words:
            seed = _secret(sums, client, of_client, lambda s, c=commitment: masks.commitment(s) == c, doubted)
            total -= masks.expand(seed, total.size)
        else:
            mine = public[: secrets.PUBLIC]
            key = _secret(sums, client, of_client, lambda s, p=mine: _is_key(s, p), doubted)
            left = {other: secrets.public_key(keys[other][0][: secrets.PUBLIC]) for other in words}
            total += masks.pairwise(client, secrets.private_key(key), left, total.size)
    return total


def _shares(sums: Cohort, left: Sequence[int], sealed: Mapping[int, object]) -> dict[int, dict[int, bytes]]:
    """{client that answers: {client: a share of its seed where it is left, of its key where it is not}}."""
    lengths = {c: secrets.share_length(masks.SEED if c in left else secrets.KEY) for c in sealed}

    def judge(reply: Message, wanted: Asked) -> dict[int, bytes] | Refusal:
        record = wire.record(reply.content, RECORD, ConfigRecord)
        if not set(record) <= {str(client) for client in lengths}:
            return Refusal(wanted.client, "secagg", "it gave shares of clients that are not in the sum")
        shares = {client: wire.value(record, str(client), bytes) for client in lengths if str(client) in record}
        # A share of another length may be what it was given: it counts as none, and the others of this client do.
        return {client: share for client, share in shares.items() if len(share) == lengths[client]}

    asks = {client: RecordDict({wire.CONFIG: ConfigRecord({"left": sorted(left)})}) for client in left}
    return sums.ask("unmask", asks, judge)


def _is_key(secret: bytes, public: bytes) -> bool:
    return secrets.public_bytes(secrets.private_key(secret)) == public


def _secret(
    sums: Cohort, client: int, shares: Mapping[int, bytes], is_right: Callable[[bytes], bool], doubted: set[int]
) -> bytes:
    """A client's secret; the ledger names who gave a wrong share of it, and `doubted` has them from then on."""
    try:
        secret, liars = secrets.joined(shares, sums.threshold, is_right, doubted)
    except ValueError as error:
        raise Spoilt(f"the masks of client {client} cannot be taken off: {error}") from error
    doubted |= set(liars)
    for liar in liars:
        refusal = Refusal(liar, "secagg", f"its share of client {client} is wrong")
        sums.exchange.log_refusal(sums.round, refusal, NOT_UNMASKED)
    return secret
