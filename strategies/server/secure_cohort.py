"""Clients that make a secret sum together: what they are asked, and the two stages before there is a sum."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import ConfigRecord, Message, RecordDict

from fedinit import wire
from fedinit.errors import RunFailed
from fedinit.message_limit import Limit
from fedinit.secagg.messages import LEAST, QUERY, RECORD, fault_of_public
from strategies.server import requests
from strategies.server.collecting import drop
from strategies.server.exchange import Exchange
from strategies.server.method import Method
from strategies.server.replies import Asked, Refusal, match_replies, of_error, unreadable
from strategies.server.state import ServerState

SHARE = 0.125  # of reply_timeout that each exchange beside training has
UNMASKING, NOT_UNMASKED = "stage unmask", "not_unmasked"
SEALED = 2048  # bytes of the two sealed shares for one client, at most

Answer = TypeVar("Answer")
Keys = Mapping[int, tuple[bytes, bytes]]
Sealed = Mapping[int, Mapping[int, bytes]]


class Spoilt(Exception):
    """What came cannot be a sum of plausible updates, or cannot be unmasked. The message says why."""


@dataclass
class Cohort:
    """One secret sum, as far as it is. Raises RunFailed, one line, as soon as fewer than `need` clients are there."""

    exchange: Exchange
    round: int
    threshold: int
    need: int
    end: float  # a time.monotonic() by which it must be through
    state: ServerState
    left: Sequence[int]  # clients that may be in it

    @staticmethod
    def of(
        method: Method,
        exchange: Exchange,
        state: ServerState,
        clients: Sequence[int],
        began: float,
        threshold: int | None = None,
    ) -> Cohort:
        """Before the first stage of a sum of round `state.round + 1`.

        began: the time.monotonic() it counts from. threshold: where it is the second of a round that of the first, so
        that of those who unmask it one at least has unmasked that. Raises RunFailed for clients of whom there never
        is a sum."""
        assert method.secure is not None
        round = state.round + 1
        if len(clients) < LEAST:
            few = f"{len(clients)} in a round, {LEAST} are the least of a secret sum"
            raise RunFailed(f"round {round}: too few clients, {few}")
        if threshold is None:
            threshold = math.ceil(method.secure.threshold * len(clients) - 1e-9)
        need = max(threshold, method.needed(len(clients)))
        end = began + exchange.reply_timeout * (1 - SHARE)
        return Cohort(exchange, round, threshold, need, end, state, clients)

    def agree(self, clients: Sequence[int]) -> tuple[Keys, Sealed]:
        """The first two stages: {client: public keys and its seed's digest} of those that gave some, and {client:
        {client: a sealed share for it}} of those that are left then. Raises Spoilt as `go_on` does."""
        keys = _of_one_each(self, self.ask("keys", {client: RecordDict() for client in clients}, _keys))
        self.go_on(keys, "stage keys")
        public = ConfigRecord({str(client): pair for client, (pair, _) in keys.items()})
        limits = {client: _records(public, threshold=self.threshold) for client in keys}
        sealed = self.ask("shares", limits, lambda reply, asked: _sealed(reply, asked, set(keys)))
        self.go_on(sealed, "stage shares")
        return keys, sealed

    def go_on(self, clients: Iterable[int], what: str) -> None:
        """With these clients, who are left after a stage. Raises Spoilt for so few that each would read another's
        update from the sum, however many the threshold is."""
        self.left = sorted(clients)
        if len(self.left) < LEAST:
            there = f"{len(self.left)} clients are left at {what}"
            raise Spoilt(f"{there} of the secret sum of round {self.round}, {LEAST} are the least of one")

    def refuse(self, why: Spoilt) -> None:
        """The ledger's line of a sum of those that are left, which is refused as a whole."""
        self.exchange.emit("sum_refused", {"round": self.round, "clients": [*self.left], "detail": str(why)})

    def ask(
        self, stage: str, contents: Mapping[int, RecordDict], judge: Callable[[Message, Asked], Answer | Refusal]
    ) -> dict[int, Answer]:
        """What clients answer to a stage, {client: its records}. judge: what a reply comes to."""
        clients = sorted(contents)
        about = {"backbone": self.exchange.backbone_digest, "round": self.round, "stage": stage}
        messages = []
        for client in clients:
            content = contents[client]
            known = wire.record(content, wire.CONFIG, ConfigRecord) if wire.CONFIG in content else {}
            content[wire.CONFIG] = ConfigRecord({**about, **known})
            messages.append(Message(content, self.exchange.by_client[client], QUERY))
        limit = Limit(rest=2**16 + SEALED * len(clients))
        asked = requests.asked(self.exchange, clients, messages, self.round, limit)
        seconds = SHARE * self.exchange.reply_timeout
        return self.send(messages, asked, seconds, f"stage {stage}", judge)

    def send(
        self,
        messages: Sequence[Message],
        asked: Mapping[int, Asked],
        seconds: float,
        what: str,
        judge: Callable[[Message, Asked], Answer | Refusal],
    ) -> dict[int, Answer]:
        """The answers to these messages that came within so many seconds and are good."""

        def read(reply: Message, wanted: Asked) -> Answer | Refusal:
            if reply.has_error():
                return of_error(reply, wanted.client)
            try:
                return judge(reply, wanted)
            except Exception as error:  # noqa: BLE001 (bytes from outside: whatever reading them raises)
                return unreadable(wanted.client, error)

        replies = self.exchange.send(list(messages), min(seconds, self.end - time.monotonic()), asked)
        answers, refusals = match_replies(replies, asked, self.exchange.client_of, read)
        # Who does not unmask is in the sum all the same.
        kind = NOT_UNMASKED if what == UNMASKING else "refused"
        self.state = drop(self.state, self.exchange, self.round, refusals, kind)
        if len(answers) < self.need:
            why = "".join(f" ({refusal.code}: {refusal.detail})" for refusal in refusals[:1])
            if any(refusal.code == "no_reply" for refusal in refusals):
                why += f"; they had {seconds:.3g} s of reply_timeout={self.exchange.reply_timeout:g}"
            there = f"{len(answers)} clients at {what} of the secret sum, {self.need} are needed"
            raise RunFailed(f"round {self.round}: too few clients, {there}{why}")
        return answers


def _records(entries: ConfigRecord, **settings: int | list[int]) -> RecordDict:
    return RecordDict({RECORD: entries, wire.CONFIG: ConfigRecord(dict(settings))})


def _keys(reply: Message, asked: Asked) -> tuple[bytes, bytes] | Refusal:
    record = wire.record(reply.content, RECORD, ConfigRecord)
    public, commitment = wire.value(record, "public", bytes), wire.value(record, "commitment", bytes)
    why = fault_of_public(public) or ("" if len(commitment) == 32 else "its commitment is not 32 bytes")
    return Refusal(asked.client, "secagg", why) if why else (public, commitment)


def _of_one_each(sums: Cohort, keys: Keys) -> dict[int, tuple[bytes, bytes]]:
    """Without clients that gave the same keys, which no other client would take."""
    given = Counter(pair for pair, _ in keys.values())
    twice = [client for client, (pair, _) in keys.items() if given[pair] > 1]
    refusals = [Refusal(client, "secagg", f"clients {twice} gave the same public keys") for client in twice]
    sums.state = drop(sums.state, sums.exchange, sums.round, refusals)
    return {client: entry for client, entry in keys.items() if client not in twice}


def _sealed(reply: Message, asked: Asked, cohort: set[int]) -> dict[int, bytes] | Refusal:
    record = wire.record(reply.content, RECORD, ConfigRecord)
    if set(record) != {str(client) for client in cohort}:
        return Refusal(asked.client, "secagg", "its sealed shares are not one for each client that gave keys")
    sealed = {client: wire.value(record, str(client), bytes) for client in sorted(cohort)}
    if any(len(content) > SEALED for content in sealed.values()):
        return Refusal(asked.client, "secagg", f"a sealed share of more than {SEALED} bytes")
    return sealed
