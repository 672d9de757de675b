"""ε at a stated δ of rounds of the subsampled Gaussian mechanism, by Google's dp-accounting.

Mironov, 2017, arXiv 1702.07476, and Mironov, Talwar and Zhang, 2019, arXiv 1908.10530 (Rényi divergences of Poisson
samples); Wang, Balle and Kasiviswanathan, 2019, arXiv 1808.00087 (of samples of a fixed size); Koskela et al., 2020,
and Doroshenko et al., 2022, arXiv 2207.04380 (privacy loss distributions).
"""

from __future__ import annotations

import copy
import functools
import logging
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from fedinit.config.privacy import LEAST_NOISE, LEAST_OF_PLD, MOST_NOISE
from fedinit.errors import InputError

LEAST, MOST = 1e-2, MOST_NOISE  # of a noise that is looked for
MOST_OF_PLD = 10**5  # rounds; of more, privacy loss distributions take half a minute, and of very many do not end
Mechanism = tuple[float, str, float]  # share, sampling and noise of a round
FINE, COARSE = 1e-4, 1e-3  # between two privacy losses that are told apart; dp-accounting's own is the first
CLOSE = 1.0005  # to either side of where it is thought to be, a noise is tried


@dataclass(frozen=True)
class Rounds:
    """What a round costs, every round alike.

    share: q, the probability of one to be in a round's sample, in (0, 1].
    sampling: "poisson": each on its own with that probability, and neighbours are with and without one. "fixed": a
    share of that size, without replacement, and neighbours have one replaced, which moves a sum by twice the clip; of a
    share of 1 both are the plain Gaussian mechanism, with and without one.
    delta: δ. accountant: "rdp"; or "pld", whose ε is less in most cases, in more time: ε is the less of both, and rdp's
    of more than MOST_OF_PLD rounds.
    """

    share: float
    sampling: Literal["poisson", "fixed"]
    delta: float
    accountant: Literal["rdp", "pld"]

    @property
    def neighbours(self) -> str:
        """What ε compares: two sets of clients that differ so."""
        return (
            "with one client replaced" if self.sampling == "fixed" and self.share < 1 else "with and without one client"
        )

    def epsilon(self, noise: float, rounds: int) -> float:
        """ε of so many rounds at δ; 0 of none, infinity of less noise than LEAST_NOISE. noise: standard deviation over
        the clip, z.

        Raises InputError where dp-accounting is not installed.
        """
        if not rounds:
            return 0.0
        if not noise >= LEAST_NOISE:  # where squares of it underflow dp-accounting counts nothing at all
            return math.inf
        if self.accountant == "pld" and noise < LEAST_OF_PLD:
            return math.inf
        found = _epsilon(replace(self, accountant="rdp"), float(noise), rounds)
        if self.accountant == "pld" and rounds <= MOST_OF_PLD:
            found = min(found, _epsilon(self, float(noise), rounds))
        return found

    def noise(self, epsilon: float, rounds: int) -> float:
        """The least z, to one part in a thousand, with which so many rounds stay within ε. Raises InputError where none
        up to a million does."""
        if self._on_a_grid and rounds <= MOST_OF_PLD:
            coarse = _Coarse(self.share, self.sampling, self.delta, self.accountant)
            return self._refined(epsilon, rounds, coarse._found(epsilon, rounds))
        return self._found(epsilon, rounds)

    @property
    def _on_a_grid(self) -> bool:
        """Whether the losses of its one round are made here."""
        return self.accountant == "pld" and self.sampling == "poisson" and self.share < 1

    def _found(self, epsilon: float, rounds: int) -> float:
        """As `noise`, from no idea of it."""
        high = LEAST * 2**6  # near what most runs need; ε of little noise takes longest to find
        while high > LEAST and self.epsilon(high / 2, rounds) <= epsilon:
            high /= 2
        while self.epsilon(high, rounds) > epsilon:
            high *= 2
            if high > MOST:
                raise InputError(f"privacy.epsilon={epsilon}: no noise keeps {rounds} releases within it; allow more")
        return self._between(epsilon, rounds, max(high / 2, LEAST), high)

    def _refined(self, epsilon: float, rounds: int, near: float) -> float:
        """As `noise`, from one that is near it."""
        width, high = CLOSE**2, near
        while self.epsilon(high, rounds) > epsilon:
            high, width = high * width, width**2
        width, low = CLOSE**2, max(high / CLOSE**2, LEAST)
        while low > LEAST and self.epsilon(low, rounds) <= epsilon:
            high, width = low, width**2
            low = max(low / width, LEAST)
        return self._between(epsilon, rounds, low, high)

    def _between(self, epsilon: float, rounds: int, low: float, high: float) -> float:
        """The least noise, to one part in a thousand, between one that is too little and one that is enough."""
        aim = CLOSE
        while high > CLOSE**2 * low:
            width = high / low
            low, high = self._cut(epsilon, rounds, low, high, self._line_meets(epsilon, rounds, low, high) * aim)
            aim = 1 / aim  # from above and from below in turn, so that both ends come near
            if high / low > math.sqrt(width):  # the line was no help
                low, high = self._cut(epsilon, rounds, low, high, math.sqrt(low * high))
        return high

    def _cut(self, epsilon: float, rounds: int, low: float, high: float, at: float) -> tuple[float, float]:
        """The part below or above `at` in which ε is met; of an `at` that is not between them, of their middle."""
        at = at if low < at < high else math.sqrt(low * high)
        return (low, at) if self.epsilon(at, rounds) <= epsilon else (at, high)

    def _line_meets(self, epsilon: float, rounds: int, low: float, high: float) -> float:
        """Where the line through ε at both noises, all in logarithms, has this ε; 0 where there is no line."""
        above, below = self.epsilon(low, rounds), self.epsilon(high, rounds)
        if not 0 < below < above < math.inf:
            return 0.0
        return low * (high / low) ** (math.log(above / epsilon) / math.log(above / below))


class _Coarse(Rounds):
    """The same by privacy loss distributions alone, on a grid ten times as coarse, in an eighth of the time: ε is no
    less, and in most cases more by less than a thousandth."""

    def epsilon(self, noise: float, rounds: int) -> float:
        return _epsilon(self, float(noise), rounds) if noise >= LEAST_OF_PLD else math.inf


@functools.lru_cache(maxsize=4096)
def _epsilon(about: Rounds, noise: float, rounds: int) -> float:
    dp, mechanism = _package(), (about.share, about.sampling, noise)
    try:
        if about.accountant == "rdp":
            found = _in_rdp(mechanism, about.delta, rounds)
        elif about._on_a_grid:
            grid = COARSE if isinstance(about, _Coarse) else FINE
            found = dp.pld.privacy_loss_distribution.identity(grid)
            found = found.compose(_distribution(about.share, noise, grid).self_compose(rounds))
            found = found.get_epsilon_for_delta(about.delta)
        else:
            relation, event = _round(*mechanism)
            found = dp.pld.PLDAccountant(relation).compose(event, rounds).get_epsilon(about.delta)
    except (ArithmeticError, ValueError, MemoryError):  # of noise so small, or so large, that its sums have no end
        return math.inf
    return float(found) if found >= 0 else math.inf  # NaN is counted as the worst


def _in_rdp(mechanism: Mechanism, delta: float, rounds: int) -> float:
    """By the Rényi divergences of one round, which take a fifth of a second, and add up over rounds."""
    one = _composed(*mechanism)
    if not hasattr(one, "_rdp"):  # the accountant's own
        return _composed(*mechanism, rounds).get_epsilon(delta)
    all_rounds = copy.copy(one)
    all_rounds._rdp = rounds * one._rdp
    return all_rounds.get_epsilon(delta)


@functools.lru_cache(maxsize=4096)
def _composed(share: float, sampling: str, noise: float, rounds: int = 1) -> Any:
    """The RDP accountant of so many rounds."""
    relation, event = _round(share, sampling, noise)
    return _package().rdp.RdpAccountant(neighboring_relation=relation).compose(event, rounds)


def _round(share: float, sampling: str, noise: float) -> tuple[Any, Any]:
    """What ε compares, and one round, in dp-accounting's words."""
    dp = _package()
    relations = dp.NeighboringRelation
    if share == 1:
        return relations.ADD_OR_REMOVE_ONE, dp.GaussianDpEvent(noise)
    if sampling == "poisson":
        return relations.ADD_OR_REMOVE_ONE, dp.PoissonSampledDpEvent(share, dp.GaussianDpEvent(noise))
    return relations.REPLACE_ONE, dp.SampledWithoutReplacementDpEvent(
        10**6, max(1, math.ceil(share * 10**6 - 1e-6)), dp.GaussianDpEvent(noise / 2)
    )


@functools.lru_cache(maxsize=8)  # of up to eight megabytes each
def _distribution(share: float, noise: float, grid: float) -> Any:
    """The privacy loss of one round of Poisson samples, which takes most of a second; rounds compose in a hundredth."""
    made = _package().pld.privacy_loss_distribution.from_gaussian_mechanism
    return made(standard_deviation=noise, sampling_prob=share, value_discretization_interval=grid)


def _package() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise InputError(
            "privacy: ε is counted by dp-accounting, which is not installed; pip install 'fedinit[privacy]'"
        ) from error
    # Of the fractional orders some have no sum that converges: they are left out, which makes ε no smaller.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return dp_accounting
