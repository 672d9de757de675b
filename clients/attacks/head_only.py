"""Head only: honest adapters, and the head's change the other way and many times as long."""

from __future__ import annotations

from clients.attacks.contract import Attack, Change, Seen
from fedinit.config.attack import HeadOnlyConfig
from fedinit.wire import HEAD


class HeadOnly(Attack[HeadOnlyConfig]):
    """Its own change of the adapters, −factor times that of the head."""

    def forge(self, seen: Seen) -> Change:
        return {n: -self.settings.factor * v if n.startswith(HEAD) else v for n, v in seen.own.items()}
