"""What goes between server and clients in a secret sum: records and stages, the same names on both sides.

A round is: `keys`, public keys up; `shares`, all public keys down, sealed shares for each other up; training, the
sealed shares down, a masked vector up; `unmask`, who is left down, a share of a seed or of a key of each client up.
"""

from __future__ import annotations

from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat, share_keys_plaintext_separate

from fedinit.errors import InputError
from fedinit.secagg import secrets

QUERY = "query.secagg"  # the type of the messages that are no training
RECORD = "secagg"  # the ConfigRecord of bytes by partition id, in both directions
MASKED = "masked"  # the one array of an update
LEAST = 3  # clients of a cohort: of two, each knows the other's update from the sum
EXTRA = 2  # words behind the values: the weight, and the weighted loss

PAIR = 2 * secrets.PUBLIC  # bytes of a client's two public keys, for masks and for seals
pack, unpack = share_keys_plaintext_concat, share_keys_plaintext_separate  # (from, to, share of seed, share of key)


def refuse_few(clients: int, they: str) -> None:
    """Raise InputError for a secret sum of so few clients that it is none. they: how many there are, in words."""
    if clients < LEAST:
        raise InputError(
            f"secure_aggregation=secagg: {they}; have {LEAST} or more in a round, for of two each knows the other's "
            "update from their sum"
        )


def fault_of_threshold(threshold: int, clients: int) -> str:
    """Why a threshold is none for so many clients; empty where it is one.

    With half of the shares or fewer, a server could have one half reveal a client's seed and the other its key.
    """
    if clients < LEAST:
        return f"{clients} clients, {LEAST} are the least for a secret sum"
    return "" if clients < 2 * threshold <= 2 * clients else f"a threshold of {threshold} of {clients} shares"


def fault_of_public(public: object) -> str:
    """Why bytes are no pair of public keys; empty where they are one."""
    if not isinstance(public, bytes) or len(public) != PAIR:
        return f"its public keys are not {PAIR} bytes"
    try:
        for half in (public[: secrets.PUBLIC], public[secrets.PUBLIC :]):
            secrets.public_key(half)
    except ValueError:
        return "its public keys are no points of the curve"
    return ""
