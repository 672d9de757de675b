"""Scaled: the own change many times as long, which takes an average with it (model replacement).

Bagdasaryan et al., AISTATS 2020, arXiv 1807.00459, without their back door.
"""

from __future__ import annotations

from clients.attacks.contract import Attack, Change, Seen, times
from fedinit.config.attack import ScaledConfig


class Scaled(Attack[ScaledConfig]):
    """factor times its own change."""

    def forge(self, seen: Seen) -> Change:
        return times(seen.own, self.settings.factor)
