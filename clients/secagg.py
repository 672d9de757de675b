"""A client's part of a secret sum: keys and shares before training, a mask over its update, shares after it.

What it keeps between the stages is in its Context, for the round alone: keys, seed, whose sealed shares it holds, and
which stage it is at. Every stage is answered once, so that no key masks two vectors and nobody gets both secrets of a
client. Which sums there were is in the book of a site that has one (clients/sums.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from cryptography.fernet import InvalidToken
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from torch import Tensor

from clients.limits import Keeper
from clients.sums import Sum, question
from fedinit import wire
from fedinit.errors import InputError, Refused
from fedinit.secagg import SECRETS, masks, secrets
from fedinit.secagg.fixed_point import FixedPoint, flat
from fedinit.secagg.messages import LEAST, MASKED, QUERY, RECORD, fault_of_threshold, pack, unpack
from fedinit.seeding import numpy_generator

OWN = SECRETS  # in Context.state; never on a disk of the site's
KINDS = {"train": "secagg", "query.project": "secagg-images"}  # what a sum is of; each has a rounding of its own
STAGES = {QUERY, *KINDS}  # types of the messages that a sum is made by
REVEALED = "revealed-"  # what was unmasked in the round, by what it is of: {whose sum}


def answer(message: Message, context: Context, client: int, keeper: Keeper | None = None) -> RecordDict:
    """The reply to a stage that is no training. keeper: of the site's book, where it has one.

    Raises Refused for a stage out of turn, or what is none."""
    try:
        config = wire.config(message)
        stage, round = wire.value(config, "stage", str), wire.value(config, "round", int)
        if type(round) is not int or round < 1:
            raise Refused(f"the server asked for a secret sum of round {round!r}")
        if stage == "keys":
            return _keys(context, round)
        if stage == "shares":
            return _shares(message, context, client, round)
        if stage == "unmask":
            return _unmask(message, context, client, keeper)
        raise Refused(f"the server asked for stage {stage!r} of a secret sum")
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise Refused(f"the server sent a message of a secret sum that is none ({type(error).__name__})") from error


def begin(message: Message, context: Context, client: int, keeper: Keeper | None, start: str, sent: str = "") -> None:
    """Before the answer to this message is computed, which will be masked.

    start: a digest of what it is computed from. sent: of what the message brings besides. Raises Refused for an answer
    that with others would say more than a sum.
    """
    own, config = _own(context, message, "shared"), wire.config(message)
    kind, round = KINDS[message.metadata.message_type], wire.value(config, "round", int)
    holders = _holders(own, message, client)
    if keeper is not None:
        cohort, threshold = wire.value(own, "cohort", list), wire.value(own, "threshold", int)
        wanted = Sum(kind=kind, round=round, start=start, clients=holders, sharers=cohort, threshold=threshold)
        keeper.mask(wanted, question(config, start + sent))
    context.state[OWN] = ConfigRecord({**own, "start": start})


def masked(
    message: Message,
    context: Context,
    client: int,
    point: FixedPoint,
    examples: int,
    seed: int,
    tensors: Mapping[str, Tensor],
    loss: float,
) -> RecordDict:
    """An answer of which the server reads nothing by itself: `weight` times each value, the weight, and the weighted
    loss, in fixed point, plus this client's masks.

    seed: of the run, for the rounding. Raises Refused for a weight that is not this client's.
    """
    kind = KINDS[message.metadata.message_type]
    config, own = wire.config(message), _own(context, message, "shared")
    holders = _holders(own, message, client)
    round, weight = wire.value(config, "round", int), wire.value(config, "weight", int)
    peers = dict(zip(wire.value(own, "cohort", list), wire.value(own, "public", list), strict=True))
    if not 1 <= weight <= examples:
        why = ": its images changed since it registered with the run" if weight > examples else ""
        raise Refused(f"the server gave this client the weight {weight}, it has {examples} examples{why}")
    point.check(weight * len(holders))
    draw = numpy_generator(seed, kind, client, round)
    beside = np.array([weight], np.uint64), point.encode(torch.tensor([loss]), weight, draw)
    words = np.concatenate([point.encode(flat(tensors), weight, draw), *beside])
    others = {c: secrets.public_key(peers[c][: secrets.PUBLIC]) for c in holders if c != client}
    words += masks.pairwise(client, secrets.private_key(wire.value(own, "mask-key", bytes)), others, words.size)
    words += masks.expand(wire.value(own, "seed", bytes), words.size)
    sealed = {f"sealed-{c}": content for c, content in holders.items()}
    context.state[OWN] = ConfigRecord({**own, **sealed, "stage": "masked", "kind": kind, "holders": sorted(holders)})
    counts = MetricRecord({"num-examples": examples, "round": round})
    return RecordDict({wire.STATE: wire.encode({MASKED: torch.from_numpy(words.view(np.int64))}), wire.METRICS: counts})


def forget(context: Context) -> None:
    """A sum is over for this client, as it failed or is asked something else: its keys go, and whose sums it has
    unmasked in the round stays."""
    own = context.state.get(OWN)
    if isinstance(own, ConfigRecord) and own["stage"] != "revealed":
        round = wire.value(own, "round", int)
        context.state[OWN] = ConfigRecord({"round": round, "stage": "over", **_revealed(context, round)})


def _keys(context: Context, round: int) -> RecordDict:
    before = context.state.get(OWN)
    if isinstance(before, ConfigRecord) and wire.value(before, "round", int) > round:
        raise Refused(f"the server asked for a secret sum of round {round}, after round {before['round']}")
    mask, seal, seed = secrets.new_key(), secrets.new_key(), os.urandom(masks.SEED)
    keys = {"mask-key": secrets.private_bytes(mask), "seal-key": secrets.private_bytes(seal), "seed": seed}
    public = secrets.public_bytes(mask) + secrets.public_bytes(seal)
    known = {"round": round, "stage": "keyed", "own-public": public, **_revealed(context, round)}
    context.state[OWN] = ConfigRecord({**known, **keys})
    return RecordDict({RECORD: ConfigRecord({"public": public, "commitment": masks.commitment(seed)})})


def _shares(message: Message, context: Context, client: int, round: int) -> RecordDict:
    own, public = _own(context, message, "keyed"), _by_client(message)
    threshold = wire.value(wire.config(message), "threshold", int)
    if why := fault_of_threshold(threshold, len(public)):
        raise Refused(f"the server asked for a secret sum with {why}")
    if public.get(client) != own["own-public"] or len(set(public.values())) < len(public):
        raise Refused("the server sent other keys than this client's, or one key as two clients'")
    cohort = sorted(public)
    of_seed = secrets.split(wire.value(own, "seed", bytes), threshold, cohort)
    of_key = secrets.split(wire.value(own, "mask-key", bytes), threshold, cohort)
    seals = _seals(own, [public[c] for c in cohort])
    sealed = {
        str(c): encrypt(seal, pack(client, c, of_seed[c], of_key[c])) for c, seal in zip(cohort, seals, strict=True)
    }
    known = {"cohort": cohort, "public": [public[c] for c in cohort], "seals": seals, "threshold": threshold}
    context.state[OWN] = ConfigRecord({**own, **known, "stage": "shared"})
    return RecordDict({RECORD: ConfigRecord({**sealed})})


def _unmask(message: Message, context: Context, client: int, keeper: Keeper | None) -> RecordDict:
    """Of a client that is left a share of its seed, of one that dropped out a share of its key; never both."""
    own, config = _own(context, message, "masked"), wire.config(message)
    round, kind = wire.value(config, "round", int), wire.value(own, "kind", str)
    left = set(wire.value(config, "left", list))
    holders = set(wire.value(own, "holders", list))
    if not {client} <= left <= holders or len(left) < _least(own):
        raise Refused(f"the server asked to unmask clients {sorted(left)}, {_least(own)} are the least")
    # The difference of two sums of a round is the update of whoever is in one of them alone.
    revealed, name = _revealed(context, round), REVEALED + kind
    if revealed.setdefault(name, sorted(left)) != sorted(left):
        raise Refused(
            f"the server asked to unmask clients {sorted(left)}, after clients {revealed[name]} in round {round}"
        )
    if keeper is not None:
        keeper.unmask(Sum(kind=kind, round=round, start=wire.value(own, "start", str), clients=left))
    seals = dict(zip(wire.value(own, "cohort", list), wire.value(own, "seals", list), strict=True))
    shares: dict[str, bytes] = {}
    for other in sorted(holders):
        try:
            content = decrypt(seals[other], wire.value(own, f"sealed-{other}", bytes))
            source, target, of_seed, of_key = unpack(content)
        except (InvalidToken, ValueError, TypeError):
            continue  # what that client, or the server, sent is no share; others have theirs
        lengths = len(of_seed), len(of_key)
        if (source, target, *lengths) == (other, client, *map(secrets.share_length, (masks.SEED, secrets.KEY))):
            shares[str(other)] = of_seed if other in left else of_key
    context.state[OWN] = ConfigRecord({"round": round, "stage": "revealed", **revealed})
    return RecordDict({RECORD: ConfigRecord({**shares})})


def _revealed(context: Context, round: int) -> dict[str, list[int]]:
    """Of what in this round there was a sum, and of which clients."""
    own = context.state.get(OWN)
    if not isinstance(own, ConfigRecord) or own["round"] != round:
        return {}
    return {name: wire.value(own, name, list) for name in own if name.startswith(REVEALED)}


def _holders(own: ConfigRecord, message: Message, client: int) -> dict[int, bytes]:
    """{client: its sealed share for this one}, of those whose masks go into the answer. Raises Refused for clients of
    whom there is no sum."""
    holders, cohort = _by_client(message), set(wire.value(own, "cohort", list))
    if not {client} <= set(holders) <= cohort or len(holders) < _least(own):
        raise Refused(f"the server sent shares of clients {sorted(holders)}, {_least(own)} are the least")
    return holders


def _least(own: ConfigRecord) -> int:
    """Clients of a sum: as many as give a secret back, and never two, of whom each would know the other's update."""
    return max(wire.value(own, "threshold", int), LEAST)


def _seals(own: ConfigRecord, public: Sequence[bytes]) -> list[bytes]:
    """The keys under which this client and each of these seal what they send each other. They are kept for the round:
    an agreement is most of what a stage takes, and either of the two makes the same key."""
    private = secrets.private_key(wire.value(own, "seal-key", bytes))
    return [generate_shared_key(private, secrets.public_key(keys[secrets.PUBLIC :])) for keys in public]


def _own(context: Context, message: Message, stage: str) -> ConfigRecord:
    """What this client keeps of the round. Raises Refused where it is at another stage, or in another round."""
    round = wire.value(wire.config(message), "round", int)
    own = context.state.get(OWN)
    if not isinstance(own, ConfigRecord) or own["round"] != round or own["stage"] != stage:
        raise Refused(f"this client is at another stage of the secret sum of round {round} than {stage!r}")
    return own


def _by_client(message: Message) -> dict[int, bytes]:
    """{partition id: bytes} that the server passed on. Raises Refused for what is none."""
    try:
        entries = wire.record(message.content, RECORD, ConfigRecord)
        return {int(client): wire.value(entries, client, bytes) for client in entries}
    except (LookupError, TypeError, ValueError) as error:
        raise Refused(f"the server sent no bytes by client in {RECORD!r}") from error
