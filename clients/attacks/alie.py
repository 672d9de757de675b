"""ALIE, a little is enough: as far from the honest mean as hides among the honest clients' own spread.

Baruch, Baruch and Goldberg, NeurIPS 2019, arXiv 1902.06156: μ − zσ by coordinate, the same from all attackers. With n
clients, m of them bad, s = ⌊n/2 + 1⌋ − m honest ones are needed for a majority, and z = Φ⁻¹((n − m − s)/(n − m)) is the
most for which as many are still farther out; of few clients that is nothing or less than nothing, so z may be set.
"""

from __future__ import annotations

from statistics import NormalDist

from clients.attacks.contract import Attack, Change, Seen
from fedinit.config.attack import AlieConfig


class Alie(Attack[AlieConfig]):
    """μ − zσ of the honest changes."""

    def forge(self, seen: Seen) -> Change:
        mean, deviation = seen.moments()
        z = hiding(len(seen.honest), seen.attackers) if self.settings.z is None else self.settings.z
        return {name: value - z * deviation[name] for name, value in mean.items()}


def hiding(honest: int, attackers: int) -> float:
    """The paper's z for so many clients; 0 where nothing hides."""
    supporters = (honest + attackers) // 2 + 1 - attackers
    share = (honest - supporters) / honest if honest else 0.0
    return max(NormalDist().inv_cdf(share), 0.0) if 0 < share < 1 else 0.0
