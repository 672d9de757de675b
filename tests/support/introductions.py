"""What a client says of itself, as a test wants it."""

from __future__ import annotations

from typing import Any

from fedinit.runs.code import code_of_clients
from fedinit.transport.introduction import Introduction


def introduction(client: int = 0, partitions: int = 2, **own: Any) -> Introduction:
    """Of one of `partitions` clients with 16 images of each kind, that holds nothing from rounds before."""
    facts: dict[str, Any] = {
        "classes": ["a"],
        "domains": ["p"],
        "score": "accuracy",
        "backbone": "",
        "held": {},
        "own_rounds": [],
        "base_key": "",
        "code": code_of_clients(),
    }
    return Introduction(client, partitions, 16, 16, **(facts | own))
