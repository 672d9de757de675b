"""Who takes part, from what nodes say of themselves: what the configuration knows of them, and on what they agree."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flwr.app import Message

from fedinit.config.schema import Config
from fedinit.runs.code import apart, code_of_clients
from fedinit.said import first_ten, said
from fedinit.scores import Accuracy, RecoveryError
from fedinit.transport.introduction import Introduction
from strategies.server.delivery import AWAY
from strategies.server.method import needed
from strategies.server.replies import Asked, Refusal, of_error


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """What a run wants of its clients before it begins.

    quorum: how many are enough where some cannot be used: a number (int), or a share of all (float).
    clients, classes, domains: how many there are, and the names of both in order, as far as the configuration says so.
    score: what models are judged by; None: as the clients say.
    """

    quorum: int | float = 1.0
    clients: int | None = None
    classes: tuple[str, ...] | None = None
    domains: tuple[str, ...] | None = None
    score: str | None = None

    @staticmethod
    def of(config: Config) -> Meeting:
        """What this configuration wants."""
        domains, classes = config.data.known_domains, config.data.known_classes
        return Meeting(
            quorum=config.quorum,
            clients=config.partition.count(domains),
            classes=None if classes is None else tuple(classes),
            domains=None if domains is None else tuple(domains),
            score=(RecoveryError if config.data.is_regression else Accuracy).name,
        )

    def enough(self, there: int, wanted: int) -> bool:
        """Whether so many clients can begin the run of so many."""
        return there >= max(needed(self.quorum, wanted), 1)

    def misfit(self, introduction: Introduction, backbone: str) -> str:
        """Why what a node says is not what the configuration says, as `said`; empty where it is. backbone: the
        server's digest."""
        why = self._misfit(introduction, backbone)
        return said(why) if why else ""

    def _misfit(self, introduction: Introduction, backbone: str) -> str:
        who = f"client {introduction.client}"
        if introduction.backbone != backbone:
            return (
                f"{who} holds another backbone ({introduction.backbone[:12]}) than the server ({backbone[:12]}); give "
                "both the same model.checkpoint"
            )
        for key, known in (("classes", self.classes), ("domains", self.domains)):
            if known is not None and known != tuple(getattr(introduction, key)):
                return f"{who} has other {key} than the run: {list(getattr(introduction, key))}"
        if self.score is not None and introduction.score != self.score:
            return f"{who} has another score than the run: {introduction.score}"
        if self.clients is not None and introduction.partitions != self.clients:
            return f"{who} knows of {introduction.partitions} clients, the run of {self.clients}"
        return ""


def divided(introductions: Mapping[int, Introduction]) -> tuple[dict[int, Introduction], dict[int, str]]:
    """Those of the clients that agree on the classes, domains, score and number of partitions, in order, and {client:
    in what it differs from them, as `said`} of the others: the larger part, and of equals the one with the lowest
    partition id."""
    parts: dict[tuple[object, ...], list[int]] = {}
    for client, own in sorted(introductions.items()):
        parts.setdefault((tuple(own.classes), tuple(own.domains), own.partitions, own.score), []).append(client)
    agreed = max(parts.values(), key=lambda part: (len(part), -part[0]), default=[])
    odd: dict[int, str] = {}
    others = introductions.keys() - agreed if len(parts) > 1 else ()
    for client in sorted(others):
        own = introductions[client]
        for key in ("classes", "domains", "partitions", "score"):
            first = introductions[agreed[0]]
            if client not in odd and getattr(own, key) != getattr(first, key):
                odd[client] = said(f"client {client} has other {key} than client {first.client}: {getattr(own, key)}")
    return {client: introductions[client] for client in agreed}, odd


def other_code(introductions: Mapping[int, Introduction]) -> list[dict[str, object]]:
    """Of clients that compute by other code than is here, or do not say by which: who they are, and what of it is
    other, each kind of them once. Their updates are of the form that was asked for, whatever they were made by."""
    kinds: dict[str, list[int]] = {}
    ours = code_of_clients()
    for client, own in introductions.items():
        if own.code != ours and (others := apart(own.code, ours)):
            what = f"other code than the server ({', '.join(others)})" if own.code else "code that they do not name"
            kinds.setdefault(f"{what}; install the same fedinit at both", []).append(client)
    return [{"clients": clients, "detail": f"they compute by {what}"} for what, clients in kinds.items()]


def missing(heard: Collection[int], wanted: int, seconds: float) -> str:
    """What a run waits for that has heard of these clients of so many, and waits so many seconds more."""
    limit = f"the run fails in {seconds:.0f} s without"
    if not heard:
        return f"waits for clients; no node has said who it is yet, {limit}"
    there = f"{len(heard)} of {wanted} clients are there"
    return f"{there}; waits for nodes with partition-id {absent(heard, wanted)}, {limit}"


def absent(heard: Collection[int], wanted: int) -> str:
    """The partition ids that are missing of so many, the first ten."""
    return first_ten([client for client in range(wanted) if client not in heard])


def introduced(reply: Message, asked: Asked) -> Introduction | str | None:
    """What a node says of itself, or why it cannot be used; None where it is away."""
    if reply.has_error():
        return None if reply.error.code in AWAY else of_error(reply, asked.client).detail
    try:
        return Introduction.read(reply)
    except ValueError as error:
        return Refusal(asked.client, "introduction", str(error)).detail
