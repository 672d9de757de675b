"""What came of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedinit.errors import RunFailed
from fedinit.factors import Factors
from fedinit.runs.export import FinalModel
from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.runs.summary import SEED
from fedinit.scores import SCORES, Score
from fedinit.state.checkpoint import State
from strategies.aggregator import Aggregate

# Of the ledger: updates and evaluations that did not count, of a client.
LEFT_OUT = ("refused", "evaluation_failed")
NOT_OF_EXAMPLES = "not counted: how many examples a client has, and the names of its classes and domains"


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    aggregate: the final global factors and head.
    offset: {layer: (d, k)}, the final base offset.
    roster: who took part.
    score: of the model after the last round; None where there was no evaluation of it.
    rounds: how many were completed. seconds: of all rounds together, over restarts too.
    bytes_up, bytes_down: of all messages, as serialised.
    trainable: how many numbers a client that trains every slot sends in a round, head included.
    final_hash: of factors, head and base offset, SHA-256.
    start: the notes of round 0.
    personal: the parts of the factors that clients keep to themselves.
    privacy: what the run has spent of it; empty without.
    accepted: {client: the round of its last update that was let in}, from which it goes on; 0 for none.
    epsilon: {client: ε of its examples so far}; empty where they have no privacy.
    delta: of each ε. noise_drawn_by: what theirs was drawn by.
    left_out: {kind of event: {client: how often}} of updates and evaluations that did not count.
    skipped: the rounds in which nobody's did, since their secret sum was refused.
    absent: the clients without which the run, or a part of it, began.
    masked: what `secure_aggregation=secagg` was told; empty without.
    """

    aggregate: Aggregate
    offset: Mapping[str, Tensor]
    roster: Roster
    score: Score | None
    rounds: int
    seconds: float
    bytes_up: int
    bytes_down: int
    trainable: int
    final_hash: str
    start: Mapping[str, Any]
    personal: frozenset[str] = frozenset()
    privacy: Mapping[str, Any] = field(default_factory=dict)
    accepted: Mapping[int, int] = field(default_factory=dict)
    epsilon: Mapping[int, float] = field(default_factory=dict)
    delta: float | None = None
    noise_drawn_by: str = SEED
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    skipped: Sequence[int] = ()
    absent: Sequence[int] = ()
    masked: Mapping[str, Any] = field(default_factory=dict)

    def final_model(self, by_client: Mapping[int, Mapping[str, Factors]] | None = None) -> FinalModel:
        """What is exported. by_client: {client: {layer: its factors}} of those that have their own; None where they are
        not at hand, or no client has any."""
        return FinalModel(
            layers=self.aggregate.layers,
            head=self.aggregate.head,
            offset=self.offset,
            class_names=self.roster.class_names,
            personal=self.personal,
            by_client=by_client or {},
            untrained=0 if by_client is None else len(self.roster.examples.keys() - by_client.keys()),
        )

    def summary(self) -> dict[str, Any]:
        """The figures of summary.json."""
        return {
            "final_hash": self.final_hash,
            "score": self.roster.score,
            self.roster.score: None if self.score is None else self.score.mean,
            f"{self.roster.score}_by_domain": {} if self.score is None else self.score.by_domain,
            "rounds": self.rounds,
            "clients": len(self.roster.examples),
            "seconds": self.seconds,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "trainable_parameters": self.trainable,
            "diagnostics": dict(self.aggregate.diagnostics),
            "start": dict(self.start),
            **({"not_scored": missing} if (missing := self.not_scored) else {}),
            **({"left_out": {kind: dict(rounds) for kind, rounds in self.left_out.items()}} if self.left_out else {}),
            **({"skipped_rounds": list(self.skipped)} if self.skipped else {}),
            **({"began_without": list(self.absent)} if self.absent else {}),
            **({"secure_aggregation": dict(self.masked)} if self.masked else {}),
            **self._privacy(),
        }

    @property
    def not_scored(self) -> list[str]:
        """The domains that the score is without, since nobody's test images of them counted."""
        return [] if self.score is None else [d for d in self.roster.domain_names if d not in self.score.by_domain]

    def _privacy(self) -> dict[str, Any]:
        if not self.epsilon:
            return {"privacy": dict(self.privacy)} if self.privacy else {}
        return {
            "privacy": {
                "unit": "example",
                "epsilon": max(self.epsilon.values()),
                "delta": self.delta,
                "noise_drawn_by": self.noise_drawn_by,
                "neighbours": "with and without one image",
                "detail": NOT_OF_EXAMPLES,
                "epsilon_by_client": {str(client): value for client, value in sorted(self.epsilon.items())},
            }
        }


class Tally(Observer):
    """Remembers the score of the last round, the seconds of all rounds, and who was left out, over restarts too."""

    score: Score | None = None
    seconds: float = 0.0

    def __init__(self) -> None:
        self.left_out: dict[str, dict[str, int]] = {}
        self.skipped: list[int] = []
        self.absent: list[int] = []

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        if kind in LEFT_OUT and "client" in facts:
            counts, client = self.left_out.setdefault(kind, {}), str(facts["client"])
            counts[client] = counts.get(client, 0) + 1
        elif kind == "sum_refused":
            self.skipped.append(int(facts["round"]))
        elif kind == "began_without":
            self.absent = sorted({*self.absent, *facts["clients"]})

    def round_zero_done(self, report: RoundReport) -> None:
        self.seconds += report.seconds

    def round_done(self, report: RoundReport) -> None:
        self.seconds += report.seconds
        self.score = report.score  # not an earlier one's, which is of another model

    def refuse_nothing(self, rounds: int) -> None:
        """Raise RunFailed for a run of which no round came to anything: its model is the start's."""
        if 0 < rounds == len({*self.skipped}):
            raise RunFailed(
                f"nothing was learned: the secret sums of all rounds, {rounds}, were refused, as ledger.jsonl says; "
                "resume=never begins anew"
            )

    def snapshot(self) -> State:
        facts: dict[str, Any] = {"seconds": self.seconds, "score": None}
        if self.left_out:
            facts["left_out"] = {kind: dict(counts) for kind, counts in self.left_out.items()}
        facts |= {key: list(value) for key, value in (("skipped", self.skipped), ("absent", self.absent)) if value}
        if self.score is not None:
            facts["score"] = [self.score.name, dict(self.score.part), dict(self.score.whole)]
        return State(facts=facts)

    def restore(self, state: State) -> None:
        self.seconds = state.facts["seconds"]
        self.left_out = {kind: dict(counts) for kind, counts in state.facts.get("left_out", {}).items()}
        self.skipped, self.absent = (list(state.facts.get(key, [])) for key in ("skipped", "absent"))
        self.score = None
        if state.facts["score"] is not None:
            name, part, whole = state.facts["score"]
            self.score = SCORES[name](part=part, whole=whole)
