"""What a run tells those who watch it: the numbers of a round, of a client, and an observer's contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedinit.scores import Accuracy, Score

if TYPE_CHECKING:
    from torch import Tensor  # which who only watches a run does not wait for


@dataclass(frozen=True)
class ClientReport:
    """One client's part of a round.

    client: its partition id.
    examples: its training images.
    steps: batches that it trained on.
    loss: mean over its steps; None where it did not train, or keeps it to itself.
    drift_factors: ‖·‖_F of its start less the global factors.
    drift_product: the same of the products B A.
    optimizer_state: how many numbers its optimiser kept.
    Each of these is None where a client's own figures do not come, as of a secret sum.
    weight: of its update in the aggregate; None where it did not train.
    epsilon: of its examples' privacy so far, at `privacy.delta`, as it says; None where they have none.
    """

    client: int
    examples: int
    steps: int | None
    loss: float | None
    drift_factors: float | None = 0.0
    drift_product: float | None = 0.0
    optimizer_state: int | None = 0
    weight: float | None = None
    epsilon: float | None = None


@dataclass(frozen=True)
class RoundReport:
    """One round.

    Round 0 comes before training: clients say who they are and, where the initialiser asks, measure statistics; it has
    no loss, and `clients` are those whose statistics went into the start.

    round: its number, from 1; 0 for what comes before training.
    seconds: wall-clock time.
    train_loss: mean over clients that told theirs, weighted by examples; None where nobody did.
    score: of the global model after the round; None in a round without evaluation.
    bytes_up, bytes_down: of all messages from and to the clients, as serialised.
    clients: those whose updates were aggregated.
    diagnostics: {name: figure} of the aggregation, such as "bias"; empty in round 0.
    by_layer: {layer: its own diagnostics}; empty where none were measured.
    phases: {what: wall-clock seconds} of the round, "clients" (asking them and waiting), "server" and "evaluation".
    drift_factors, drift_product: means of the clients'.
    asked: {client: how many images it had, each time that it was asked to train}, also of those whose updates were
    refused or never came.
    told: {client: the ε that it says it has spent}, also of those that have none for a round more.
    spent: {client: ε of its examples after the round} of all that ever were asked; empty where they have no privacy.
    """

    round: int
    seconds: float
    train_loss: float | None
    score: Score | None
    bytes_up: int
    bytes_down: int
    clients: Sequence[ClientReport]
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    by_layer: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    drift_factors: float | None = None
    drift_product: float | None = None
    asked: Mapping[int, Sequence[int]] = field(default_factory=dict)
    told: Mapping[int, float] = field(default_factory=dict)
    spent: Mapping[int, float] = field(default_factory=dict)

    @property
    def epsilon(self) -> float | None:
        """The largest of the clients' ε so far; None where they have no privacy."""
        return max(self.spent.values(), default=None)


@dataclass(frozen=True)
class Roster:
    """Who takes part.

    examples: {client: its training images}, by partition id.
    class_names: of the outputs in their order; where there are no classes, what each output is.
    domain_names: in the order of the domains' numbers.
    score: what models are judged by, a key of SCORES.
    """

    examples: Mapping[int, int]
    class_names: Sequence[str]
    domain_names: Sequence[str]
    score: str = Accuracy.name

    @cached_property
    def table(self) -> Tensor:
        """(2, n) int64: the partition ids, and the images of each. Made once, and kept by every checkpoint."""
        import torch  # here, since every command reads this module, and is to answer a wrong word at once

        return torch.tensor([list(self.examples), list(self.examples.values())], dtype=torch.int64)


class Observer:
    """Told what happens in a run, in order; nothing that it does changes the run. Every method does nothing here."""

    def started(self, rounds: int, roster: Roster) -> None:
        """The run begins, or goes on: how many rounds it has in all, and who takes part."""

    def round_zero_done(self, report: RoundReport) -> None:
        """Round 0 is done, which comes before training."""

    def resumed(self, round: int) -> None:
        """After `started`, in a run that goes on from the checkpoint of `round`."""

    def round_done(self, report: RoundReport) -> None:
        """A round of training is done."""

    def model(self, round: int, tensors: Mapping[str, Tensor]) -> None:
        """The global model as {wire name: tensor}: what round 1 starts from (round 0), and that after round 1 and after
        every evaluated round."""

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        """A refusal, a missing reply, a warning: one line of the ledger, of this kind and with these facts."""

    def doing(self, text: str) -> None:
        """What the run is at before a round, in words, where that takes long: a start that clients measure."""

    def waiting(self, text: str) -> None:
        """What the run waits for, in words: before `started` who is missing, at once and again every while; in a round
        that takes long, whose updates, or how many have answered."""

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run is done; `summary` is what summary.json holds."""

    def reported(self, path: Path) -> None:
        """The run's report is written, to this file."""

    def close(self) -> None:
        """Told last, also where the run failed or was stopped; gives up what this observer holds."""
