"""ε at a stated δ of rounds of the subsampled Gaussian mechanism, by Google's dp-accounting.

Mironov, 2017, arXiv 1702.07476, and Mironov, Talwar and Zhang, 2019, arXiv 1908.10530 (Rényi divergences of Poisson
samples); Wang, Balle and Kasiviswanathan, 2019, arXiv 1808.00087 (of samples of a fixed size); Koskela et al., 2020,
and Doroshenko et al., 2022, arXiv 2207.04380 (privacy loss distributions).
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

from fedinit.errors import InputError

LEAST, MOST = 1e-2, 1e6  # of a noise that is looked for


@dataclass(frozen=True)
class Rounds:
    """What a round costs, every round alike.

    share: q, the probability of one to be in a round's sample, in (0, 1].
    sampling: "poisson": each on its own with that probability, and neighbours are with and without one. "fixed": a
    share of that size, without replacement, and neighbours have one replaced, which moves a sum by twice the clip; of a
    share of 1 both are the plain Gaussian mechanism, with and without one.
    delta: δ. accountant: "rdp" or "pld".
    """

    share: float
    sampling: Literal["poisson", "fixed"]
    delta: float
    accountant: Literal["rdp", "pld"]

    def epsilon(self, noise: float, rounds: int) -> float:
        """ε of so many rounds at δ; 0 of none, infinity without noise. noise: standard deviation over the clip, z.

        Raises InputError where dp-accounting is not installed.
        """
        if not rounds:
            return 0.0
        if not noise:
            return math.inf
        return _epsilon(self, float(noise), rounds)

    def noise(self, epsilon: float, rounds: int) -> float:
        """The least z, to one part in a thousand, with which so many rounds stay within ε. Raises InputError where none
        up to a million does."""
        low, high = LEAST, LEAST
        while self.epsilon(high, rounds) > epsilon:
            low, high = high, 2 * high
            if high > MOST:
                raise InputError(f"privacy.epsilon={epsilon}: no noise keeps {rounds} rounds within it; allow more")
        while high > 1.001 * low:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self.epsilon(middle, rounds) <= epsilon else (middle, high)
        return high


@functools.lru_cache(maxsize=4096)
def _epsilon(about: Rounds, noise: float, rounds: int) -> float:
    dp = _package()
    relation = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    if about.share == 1:
        event: Any = dp.GaussianDpEvent(noise)
    elif about.sampling == "poisson":
        event = dp.PoissonSampledDpEvent(about.share, dp.GaussianDpEvent(noise))
    else:
        relation = dp.NeighboringRelation.REPLACE_ONE
        event = dp.SampledWithoutReplacementDpEvent(10**6, round(about.share * 10**6), dp.GaussianDpEvent(noise / 2))
    kind = dp.rdp.RdpAccountant if about.accountant == "rdp" else dp.pld.PLDAccountant
    accountant = kind(neighboring_relation=relation)
    accountant.compose(event, rounds)
    return float(accountant.get_epsilon(about.delta))


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
