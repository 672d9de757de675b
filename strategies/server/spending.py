"""What a run has spent of its clients' examples' privacy (`privacy=examples`), as the server counts it.

A client trains where it is asked to, whether or not its update is let in, so what counts is the asking. How many images
a client has it said when it registered, and the rest is the run's: nobody's word makes ε less, and one that says more,
as one whose training was asked for again after a restart may, is believed up to twice the run's rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.config.schema import Config
from fedinit.privacy.steps import Steps
from fedinit.runs.observer import Roster, RoundReport
from fedinit.state.checkpoint import State

REDONE = 2  # times the run's rounds, that a client may have trained in it at the most


class Spending:
    """Kept with the run, over restarts.

    epsilon: {client: ε at `privacy.delta`} of all that were asked to train; empty of a run of another privacy.
    """

    def __init__(self, config: Config) -> None:
        self.epsilon: dict[int, float] = {}
        self._rounds: dict[int, int] = {}  # that a client was asked in
        self._config = config

    def of(self, report: RoundReport, roster: Roster) -> RoundReport:
        """The report of a round, counted, with what is spent after it."""
        privacy = self._config.privacy
        if not isinstance(privacy, ExamplePrivacyConfig):
            return report
        told = {client.client: client.epsilon or 0.0 for client in report.clients}
        for client in sorted(report.asked | told.keys()):
            self._rounds[client] = self._rounds.get(client, 0) + 1
            steps = Steps.of(roster.examples[client], self._config.client, self._config.rounds, privacy)
            most = steps.epsilon(REDONE * steps.rounds * steps.a_round)
            counted = steps.epsilon(self._rounds[client] * steps.a_round)
            self.epsilon[client] = max(counted, self.epsilon.get(client, 0.0), min(told.get(client, 0.0), most))
        clients = [replace(client, epsilon=self.epsilon[client.client]) for client in report.clients]
        return replace(report, clients=clients, spent=dict(self.epsilon))

    def snapshot(self) -> State:
        """As a checkpoint keeps it."""
        return State(facts={"rounds": _named(self._rounds), "epsilon": _named(self.epsilon)})

    def restore(self, state: State) -> None:
        """Go on from a checkpoint."""
        self._rounds = {int(client): rounds for client, rounds in state.facts["rounds"].items()}
        self.epsilon = {int(client): epsilon for client, epsilon in state.facts["epsilon"].items()}


def _named(values: Mapping[int, float]) -> dict[str, float]:
    return {str(client): value for client, value in values.items()}
