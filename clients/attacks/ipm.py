"""IPM, inner product manipulation: against the honest mean, so that the aggregate has a negative product with it.

Xie, Koyejo and Gupta, UAI 2019, arXiv 1903.03936: −ε times the honest mean, the same from all attackers. A plain mean
turns round where ε is more than honest clients an attacker; a small ε is what gets past rules of distances.
"""

from __future__ import annotations

from clients.attacks.contract import Attack, Change, Seen, times
from fedinit.config.attack import IpmConfig


class Ipm(Attack[IpmConfig]):
    """−ε times the mean of the honest changes."""

    def forge(self, seen: Seen) -> Change:
        return times(seen.moments()[0], -self.settings.epsilon)
