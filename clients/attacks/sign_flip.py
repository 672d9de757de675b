"""Sign flip: the own change the other way, as a client would send that wants the loss to rise."""

from __future__ import annotations

from clients.attacks.contract import Attack, Change, Seen, times
from fedinit.config.attack import FactorConfig


class SignFlip(Attack[FactorConfig]):
    """−factor times its own change; also of `attack=claims`, which claims examples besides."""

    def forge(self, seen: Seen) -> Change:
        return times(seen.own, -self.settings.factor)
