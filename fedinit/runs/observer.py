"""What a run tells those who watch it: the numbers of a round, of a client, and an observer's contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedinit.scores import Accuracy, Score


@dataclass(frozen=True)
class ClientReport:
    """One client's part of a round. drift_*: distance of its start from the global factors, and of the products.
    optimizer_state: how many numbers its optimiser kept."""

    client: int
    examples: int
    steps: int
    loss: float | None
    drift_factors: float = 0.0
    drift_product: float = 0.0
    optimizer_state: int = 0


@dataclass(frozen=True)
class RoundReport:
    """One round. train_loss: mean over clients by examples. bytes: of all messages, as serialised.

    Round 0 comes before training: clients say who they are and, where the initialiser asks, measure statistics; it has
    no loss, and `clients` are those whose statistics went into the start.
    """

    round: int
    seconds: float
    train_loss: float | None
    score: Score | None
    bytes_up: int
    bytes_down: int
    clients: Sequence[ClientReport]
    diagnostics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Roster:
    """Who takes part. examples: training images by client (partition id). class_names: of the outputs, where there are
    no classes. score: what models are judged by, a key of SCORES."""

    examples: Mapping[int, int]
    class_names: Sequence[str]
    domain_names: Sequence[str]
    score: str = Accuracy.name


class Observer:
    """Told what happens, in order; it does what it likes with it and never changes the run."""

    def started(self, rounds: int, roster: Roster) -> None: ...

    def round_zero_done(self, report: RoundReport) -> None:
        """What comes before training is done; round 0."""

    def resumed(self, round: int) -> None:
        """After `started`, in a run that goes on from the checkpoint of `round`."""

    def round_done(self, report: RoundReport) -> None: ...

    def model(self, round: int, tensors: Mapping[str, Tensor]) -> None:
        """The global model, by wire name: what round 1 starts from (0), after round 1 and every evaluated round."""

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        """A refusal, a missing reply, a warning: anything that belongs in the ledger."""

    def finished(self, summary: Mapping[str, Any]) -> None: ...
