"""What a run has spent of its clients' examples' privacy (`privacy=examples`), as the server counts it.

A client trains whenever it is asked to, whether or not its update is let in, so what counts is the asking. How many
images a client has it said when it registered, of its own figure alone; the rest is the run's. A client that says that
it has spent more, as one whose training was asked for again after a restart may, is believed up to twice the run's
rounds, at the dearer of the numbers of images that it has and the fewest that it registered with. One that has too few
for the run's batches cannot train, and spends nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.config.schema import Config
from fedinit.errors import InputError
from fedinit.privacy.steps import Spent, Steps
from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.state.checkpoint import State

NOTHING: Mapping[int, float] = MappingProxyType({})
REDONE = 2  # times the run's rounds, that a client may have trained in it at the most


class Spending(Observer):
    """Kept with the run, over restarts.

    epsilon: {client: ε at `privacy.delta`} of all that were asked to train; empty of a run of another privacy.
    """

    def __init__(self, config: Config) -> None:
        self.epsilon: dict[int, float] = {}
        self._spent: dict[int, Spent] = {}
        self._fewest: dict[int, int] = {}  # images that a client registered with, over restarts
        self._config = config

    def started(self, rounds: int, roster: Roster) -> None:
        for client, examples in roster.examples.items():
            self._fewest[client] = min(examples, self._fewest.get(client, examples))

    def of(self, report: RoundReport, roster: Roster) -> RoundReport:
        """The report of a round, counted, with what is spent after it."""
        if not isinstance(self._config.privacy, ExamplePrivacyConfig):
            return report
        told = {client.client: client.epsilon or 0.0 for client in report.clients}
        self.count({**dict.fromkeys(told, 1), **report.asked}, roster, told)
        clients = [replace(client, epsilon=self.epsilon.get(client.client)) for client in report.clients]
        return replace(report, clients=clients, spent=dict(self.epsilon))

    def count(self, asked: Mapping[int, int], roster: Roster, told: Mapping[int, float] = NOTHING) -> bool:
        """Count a round in which clients were asked so often, also one that ended the run; whether any of it counts.
        told: {client: the ε that it says it has spent}."""
        privacy = self._config.privacy
        if not isinstance(privacy, ExamplePrivacyConfig):
            return False
        self.started(self._config.rounds, roster)  # who came back may have other images
        for client in sorted(asked):
            try:
                steps = self._steps(roster.examples[client], privacy)
                for _ in range(asked[client]):
                    self._spent[client] = self._spent.get(client, Spent()) + steps.spent
            except InputError:  # which the client's own code raises too
                continue
            most = self._most(client, steps, privacy)
            before, counted = self.epsilon.get(client, 0.0), self._spent[client].epsilon(privacy)
            self.epsilon[client] = max(before, counted, min(told.get(client, 0.0), most))
        return bool(asked)

    def _steps(self, examples: int, privacy: ExamplePrivacyConfig) -> Steps:
        return Steps.of(examples, self._config.client, self._config.rounds, privacy)

    def _most(self, client: int, steps: Steps, privacy: ExamplePrivacyConfig) -> float:
        """ε of all that a client may have spent in the run. steps: as of the images that it has now."""
        parts = [steps]
        with contextlib.suppress(InputError):  # so few that it cannot have trained
            parts.append(self._steps(self._fewest[client], privacy))
        dearest = sum((part.spent for part in parts), Spent())
        in_all = REDONE * steps.rounds * max(part.a_round for part in parts)
        return replace(dearest, steps=in_all).epsilon(privacy)

    def snapshot(self) -> State:
        """As a checkpoint keeps it."""
        spent = {client: vars(value) for client, value in self._spent.items()}
        kept = {"spent": spent, "epsilon": self.epsilon, "fewest": self._fewest}
        return State(facts={key: {str(client): value for client, value in of.items()} for key, of in kept.items()})

    def restore(self, state: State) -> None:
        """Go on from a checkpoint."""
        self._spent = {int(client): Spent(**value) for client, value in state.facts["spent"].items()}
        self.epsilon = {int(client): value for client, value in state.facts["epsilon"].items()}
        self._fewest = {int(client): value for client, value in state.facts.get("fewest", {}).items()}
