"""What a node says of itself when it is asked who it is: written, and read with a check before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from fedinit import wire
from fedinit.errors import machine_failed
from fedinit.scores import MAX_EXAMPLES, SCORES


@dataclass(frozen=True, slots=True)  # of a hundred thousand there is one each
class Introduction:
    """Who a node is, and what it holds.

    client: its partition id, from 0. partitions: how many there are.
    examples, test_examples: numbers of training and test images.
    classes, domains: their names, in the order of the labels. score: the name of what models are judged by.
    backbone: digest of the frozen weights it holds.
    held: {tensor that it keeps from rounds before, by wire name: digest}.
    own_rounds: the rounds of which it remembers factors of its own.
    base_key: of the base offset that it holds.
    code: {package: digest} of what it computes by; empty of one that does not say.
    """

    client: int
    partitions: int
    examples: int
    test_examples: int
    classes: Sequence[str]
    domains: Sequence[str]
    score: str
    backbone: str
    held: Mapping[str, str]
    own_rounds: Sequence[int]
    base_key: str
    code: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def read(reply: Message) -> Introduction:
        """What a reply to query.describe says. Raises ValueError, one line, where it does not say all this; what the
        machine fails at as it is."""
        try:
            facts: dict[str, Any] = dict(wire.config(reply))
            introduction = Introduction(
                client=facts["partition-id"],
                partitions=facts["num-partitions"],
                examples=facts["num-examples"],
                test_examples=facts["num-test-examples"],
                classes=list(facts["classes"]),
                domains=list(facts["domains"]),
                score=facts["score"],
                backbone=facts["backbone"],
                held=dict(zip(facts["held"], facts["held-digests"], strict=True)),
                own_rounds=list(facts["own-rounds"]),
                base_key=facts["base-key"],
                code=dict(zip(facts.get("code-of", ()), facts.get("code", ()), strict=True)),
            )
            introduction._check()
        except Exception as error:  # bytes from outside: whatever reading them raises is the node's
            if machine_failed(error):
                raise
            raise ValueError(f"what it says of itself cannot be used ({type(error).__name__}: {error})") from error
        return introduction

    def of_another(self, client: int, examples: int, tests: int) -> Introduction:
        """What a client of the same process says, which differs in these alone. `replace` is ten times slower."""
        return Introduction(
            client,
            self.partitions,
            examples,
            tests,
            self.classes,
            self.domains,
            self.score,
            self.backbone,
            self.held,
            self.own_rounds,
            self.base_key,
            self.code,
        )

    def record(self) -> RecordDict:
        """The inverse of `read`: the content of the reply."""
        facts = {
            "partition-id": self.client,
            "num-partitions": self.partitions,
            "num-examples": self.examples,
            "num-test-examples": self.test_examples,
            "classes": list(self.classes),
            "domains": list(self.domains),
            "score": self.score,
            "backbone": self.backbone,
            "held": list(self.held),
            "held-digests": list(self.held.values()),
            "own-rounds": list(self.own_rounds),
            "base-key": self.base_key,
            "code-of": list(self.code),
            "code": list(self.code.values()),
        }
        return RecordDict({wire.CONFIG: ConfigRecord(facts)})

    def _check(self) -> None:
        """Raise ValueError or TypeError for a number, name or digest that cannot be one."""
        for what, value, low, high in (
            ("num-partitions", self.partitions, 1, MAX_EXAMPLES),
            ("partition-id", self.client, 0, self.partitions - 1),
            ("num-examples", self.examples, 0, MAX_EXAMPLES),
            ("num-test-examples", self.test_examples, 0, MAX_EXAMPLES),
        ):
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{what} is {value!r}, expected a whole number from {low} to {high}")
        words = (*self.classes, *self.domains, *self.held, *self.held.values(), self.backbone, self.base_key)
        words += (*self.code, *self.code.values())
        if not all(isinstance(word, str) for word in words) or not all(type(r) is int for r in self.own_rounds):
            raise TypeError("names, digests or keys that are no text, or rounds that are no whole numbers")
        if self.score not in SCORES:
            raise ValueError(f"score is {self.score!r}, expected one of {', '.join(SCORES)}")
