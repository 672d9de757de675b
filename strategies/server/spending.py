"""What a run has spent of its clients' examples' privacy (`privacy=examples`), as the server counts it.

A client trains whenever it is asked to, whether or not its update is let in, so what counts is the asking, with as many
images as it had then: how many it says when it registers, of its own figure alone; the rest is the run's. A client that
says that it has spent more, as one whose training was asked for again after a restart may, is believed up to twice the
run's rounds, at the dearest of the numbers of images that it ever had. One that has too few for the run's batches
cannot train, and spends nothing: the gate lets no update of it in.

In a simulation batches and noise are of the seed, so that a round that is asked again is the same release, and counts
once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.config.schema import Config
from fedinit.errors import InputError
from fedinit.privacy.steps import Spent, Steps
from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.runs.summary import SECRET, SEED
from fedinit.state.checkpoint import State

NOTHING: Mapping[int, float] = MappingProxyType({})
REDONE = 2  # times the run's rounds, that a client may have trained in it at the most


def untrainable(config: Config) -> Callable[[int], str]:
    """Why a client with so many images cannot train in a run; empty where it can, and of a run of another privacy."""
    privacy = config.privacy
    if not isinstance(privacy, ExamplePrivacyConfig):
        return lambda examples: ""

    @functools.lru_cache(maxsize=4096)
    def why(examples: int) -> str:
        try:
            Steps.of(examples, config.client, config.rounds, privacy)
        except InputError as error:
            return str(error)
        return ""

    return why


class Spending(Observer):
    """Kept with the run, over restarts.

    epsilon: {client: ε at `privacy.delta`} of all that were asked to train; empty of a run of another privacy.
    """

    def __init__(self, config: Config, drawn_anew: bool) -> None:
        """drawn_anew: clients draw their noise each time that they are asked, as in a deployment."""
        self.epsilon: dict[int, float] = {}
        self._spent: dict[int, Spent] = {}
        self._fewest: dict[int, int] = {}  # images that a client had, over restarts
        self._config, self.drawn_anew = config, drawn_anew

    @property
    def noise_drawn_by(self) -> str:
        """As the summary has it: by secrets of the clients', or by the run's seed."""
        return SECRET if self.drawn_anew else SEED

    def started(self, rounds: int, roster: Roster) -> None:
        if isinstance(self._config.privacy, ExamplePrivacyConfig):
            for client, examples in roster.examples.items():
                self._had(client, examples)

    def of(self, report: RoundReport, roster: Roster) -> RoundReport:
        """The report of a round, counted, with what is spent after it."""
        if not isinstance(self._config.privacy, ExamplePrivacyConfig):
            return report
        told = {client.client: client.epsilon or 0.0 for client in report.clients}
        asked = {client: [roster.examples[client]] for client in told}
        self._count({**dict.fromkeys(report.told, []), **asked, **report.asked}, {**told, **report.told})
        clients = [replace(client, epsilon=self.epsilon.get(client.client)) for client in report.clients]
        return replace(report, clients=clients, spent=dict(self.epsilon))

    def lost(self, asked: Mapping[int, Sequence[int]], told: Mapping[int, float] = NOTHING) -> bool:
        """Count a round that ended the run, in which clients were asked so often, each time with so many images;
        whether any of it counts: not in a simulation, whose next attempt is the same release."""
        if not self.drawn_anew or not isinstance(self._config.privacy, ExamplePrivacyConfig):
            return False
        self._count({**dict.fromkeys(told, []), **asked}, told)
        return bool(told) or any(asked.values())

    def _count(self, asked: Mapping[int, Sequence[int]], told: Mapping[int, float]) -> None:
        """told: {client: the ε that it says it has spent}."""
        privacy = self._config.privacy
        if not isinstance(privacy, ExamplePrivacyConfig):
            return
        for client in sorted(asked):
            for examples in asked[client] if self.drawn_anew else asked[client][:1]:
                self._had(client, examples)
                with contextlib.suppress(InputError):  # which the client's own code raises too
                    spent = self._steps(examples, privacy).spent
                    self._spent[client] = self._spent.get(client, Spent()) + spent
            before, said = self.epsilon.get(client, 0.0), told.get(client, 0.0)
            if client in self._spent or (said and client in self._fewest):
                counted = self._spent.get(client, Spent()).epsilon(privacy)
                most = self._most(client, asked[client], privacy)
                self.epsilon[client] = max(before, counted, min(said, most))
            elif said:  # with the gate off its word is all that there is
                self.epsilon[client] = max(before, said)

    def _had(self, client: int, examples: int) -> None:
        self._fewest[client] = min(examples, self._fewest.get(client, examples))

    def _steps(self, examples: int, privacy: ExamplePrivacyConfig) -> Steps:
        return Steps.of(examples, self._config.client, self._config.rounds, privacy)

    def _most(self, client: int, now: Sequence[int], privacy: ExamplePrivacyConfig) -> float:
        """ε of all that a client may have spent in the run. now: how many images it had in this round."""
        parts: list[Steps] = []
        for examples in {*now, self._fewest[client]}:
            with contextlib.suppress(InputError):  # so few that it cannot have trained
                parts.append(self._steps(examples, privacy))
        already = self._spent.get(client, Spent())
        dearest = sum((part.spent for part in parts), already)
        in_all = REDONE * self._config.rounds * max((part.a_round for part in parts), default=0)
        return replace(dearest, steps=max(in_all, already.steps)).epsilon(privacy)

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
