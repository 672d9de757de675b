"""One client's private steps in a run (`privacy=examples`): how many, how its batches are drawn, what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedinit.config.client import ClientConfig
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.errors import InputError
from fedinit.privacy.accounting import Rounds

SO_FAR = "ε so far: "  # before what a client has spent, at the end of why it trains no more


def so_far(words: str) -> float | None:
    """What a client says in these words that it has spent; None where it says nothing of it."""
    _, there, value = words.rpartition(SO_FAR)
    try:
        return float(value) if there and 0 <= float(value) < math.inf else None
    except ValueError:
        return None


@dataclass(frozen=True)
class Spent:
    """Private steps that one client has taken.

    steps: how many. share: the largest q of any of them. noise: the least z. A client's numbers of examples may change
    between two rounds, and q and z with them: all steps are counted as if they had been the dearest ones.
    """

    steps: int = 0
    share: float = 0.0
    noise: float = math.inf

    def __add__(self, other: Spent) -> Spent:
        """Both."""
        return Spent(self.steps + other.steps, max(self.share, other.share), min(self.noise, other.noise))

    def epsilon(self, privacy: ExamplePrivacyConfig) -> float:
        """ε at `privacy.delta`, or more. Raises InputError where dp-accounting is not installed."""
        return Rounds(self.share, "poisson", privacy.delta, privacy.accountant).epsilon(self.noise, self.steps)


@dataclass(frozen=True)
class Steps:
    """The steps of one client. Every one is a round of the subsampled Gaussian mechanism over its examples.

    rate: q, the probability of an example to be in a batch. a_round: how many steps a round has. rounds: of the run.
    """

    rate: float
    a_round: int
    rounds: int
    privacy: ExamplePrivacyConfig

    @staticmethod
    def of(examples: int, client: ClientConfig, rounds: int, privacy: ExamplePrivacyConfig) -> Steps:
        """Of a client with so many examples, as many in a round as passes over them would take. Raises InputError for a
        δ of one over the examples or more, where more of them are expected in a batch than there are, and for noise
        that the given ε does not allow."""
        if privacy.delta * examples >= 1:
            raise InputError(
                f"privacy.delta={privacy.delta:g}: expected less than one over a client's {examples} images"
            )
        size, a_round = client.batch_size, client.steps(examples)
        if size > examples:
            raise InputError(
                f"client.batch_size={size}: with privacy=examples so many of a client's examples are expected in "
                f"a batch, and a client has {examples}; use {examples} or less"
            )
        steps = Steps(size / examples, a_round, rounds, privacy)
        if privacy.noise is not None and privacy.epsilon is not None:
            in_all = rounds * a_round
            if (spends := steps.epsilon(in_all)) > privacy.epsilon:
                raise InputError(
                    f"privacy.noise={privacy.noise}: {in_all} steps of a client with {examples} examples spend an ε of "
                    f"{spends:.3g}, above privacy.epsilon={privacy.epsilon}; use more noise, or privacy.epsilon=null"
                )
        return steps

    @property
    def noise(self) -> float:
        """z, the standard deviation of a step's noise over the clip: as given, or the least with which all rounds stay
        within ε. Raises InputError where there is none, and where dp-accounting is not installed."""
        if self.privacy.noise is not None:
            return self.privacy.noise
        assert self.privacy.epsilon is not None  # one of both is given
        return self._cost.noise(self.privacy.epsilon, self.rounds * self.a_round)

    def epsilon(self, steps: int) -> float:
        """ε at `privacy.delta` of so many steps."""
        return self._cost.epsilon(self.noise, steps)

    @property
    def spent(self) -> Spent:
        """What one round of them spends."""
        return Spent(self.a_round, self.rate, self.noise)

    @property
    def _cost(self) -> Rounds:
        return Rounds(self.rate, "poisson", self.privacy.delta, self.privacy.accountant)
