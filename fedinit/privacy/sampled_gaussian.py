"""The cost of DP-SGD: Gaussian noise on a sum of clipped gradients over a Poisson batch, step after step.

Neighbours are data sets of which one has an example more (add or remove one). In every step each example is in the
batch with probability q by itself, and the sum of gradients of norm ≤ C gets N(0, (σC)²) in every coordinate: Abadi et
al., CCS 2016, arXiv 1607.00133. The accounting is dp-accounting's: Rényi divergences (Mironov et al. 2019, arXiv
1908.10530) or privacy loss distributions (Koskela et al. 2020, arXiv 1906.03049; Doroshenko et al. 2022, arXiv
2207.04380).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from fedinit.config.privacy_examples import Accounting, ExamplePrivacy
from fedinit.errors import InputError

MOST_NOISE = 1e4  # the largest noise multiplier that is looked for
# Of the Rényi divergences, those that have a finite sum: ε is a percent or two above the least over fractional orders.
ORDERS = (*range(2, 65), *range(72, 257, 8), 512, 1024)


@dataclass(frozen=True)
class Sampling:
    """How one client's steps see its examples.

    rate: q, the probability of an example to be in a batch. steps: of a round.
    """

    rate: float
    steps: int

    @staticmethod
    def of(examples: int, batch_size: int, steps: int) -> Sampling:
        """batch_size: the expected one. Raises InputError where that is more than there are examples."""
        if batch_size > examples:
            raise InputError(
                f"client.batch_size={batch_size}: with privacy=examples it is how many of a client's examples are "
                f"expected in a batch, and a client has {examples}; use {examples} or less"
            )
        return Sampling(batch_size / examples, steps)

    def noise(self, privacy: ExamplePrivacy, rounds: int) -> float:
        """σ, the noise multiplier: as it is given, or the least that keeps this client within ε over so many rounds."""
        if privacy.noise is not None:
            return privacy.noise
        assert privacy.epsilon is not None  # one of both is given
        return noise_for(self.rate, rounds * self.steps, privacy.epsilon, privacy.delta, privacy.accounting)


@functools.lru_cache(maxsize=4096)
def spent(rate: float, noise: float, steps: int, delta: float, accounting: Accounting) -> float:
    """ε at δ of so many steps; 0 for none, infinity without noise.

    rate: q. noise: σ, in clips. Raises InputError where dp-accounting is not installed.
    """
    if not steps:
        return 0.0
    if not noise:
        return math.inf
    accountant = _accountant(accounting)
    accountant.compose(_step(rate, noise), steps)
    return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=4096)
def noise_for(rate: float, steps: int, epsilon: float, delta: float, accounting: Accounting) -> float:
    """The noise multiplier σ under which so many steps spend ε or little less, never more.

    Raises InputError where dp-accounting is not installed, and for an ε that no noise up to MOST_NOISE keeps.
    """
    if spent(rate, MOST_NOISE, steps, delta, accounting) > epsilon:
        raise InputError(f"privacy.epsilon={epsilon}: no noise keeps it over {steps} steps; allow more, or train less")
    high = 1.0
    while spent(rate, high, steps, delta, accounting) > epsilon:
        high *= 2
    low = high / 2
    while low > 1e-3 and spent(rate, low, steps, delta, accounting) <= epsilon:
        low, high = low / 2, low
    while high - low > 1e-3 * high:  # high is always enough, and low, but for the floor, not
        middle = (low + high) / 2
        if spent(rate, middle, steps, delta, accounting) <= epsilon:
            high = middle
        else:
            low = middle
    return high


def _step(rate: float, noise: float) -> Any:
    library = _library()
    return library.PoissonSampledDpEvent(rate, library.GaussianDpEvent(noise))


def _accountant(accounting: Accounting) -> Any:
    library = _library()
    return library.rdp.RdpAccountant(ORDERS) if accounting == "rdp" else library.pld.PLDAccountant()


def _library() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise InputError(
            f"privacy=examples: its ε is counted by dp-accounting ({error}); pip install 'fedinit[privacy]'"
        ) from error
    return dp_accounting
