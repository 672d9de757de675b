"""What is done to updates on their way from training to aggregation, one transform a file; contract.py says when."""

from __future__ import annotations

from fedinit.config.privacy import ClientPrivacyConfig, NoPrivacy, PrivacyConfig
from fedinit.transforms.chosen_slots import ChosenSlots
from fedinit.transforms.client_clip import ClientClip
from fedinit.transforms.contract import Asked, Malformed, Payload, Task, UpdateTransform, leave, receive, settle
from fedinit.transforms.half_precision import HalfPrecision
from fedinit.transforms.personal import Personal

__all__ = [
    "UPDATES",
    "Asked",
    "ChosenSlots",
    "ClientClip",
    "HalfPrecision",
    "Malformed",
    "Payload",
    "Personal",
    "Task",
    "UpdateTransform",
    "clips_of",
    "leave",
    "receive",
    "settle",
]

# The chain of every run's updates, in the order in which they leave a client.
UPDATES: tuple[UpdateTransform, ...] = (Personal(), ChosenSlots())


def clips_of(privacy: PrivacyConfig | NoPrivacy, clip: float | None = None) -> tuple[UpdateTransform, ...]:
    """The transforms that come last with privacy=clients; none without. clip: of this round, where it adapts."""
    if not isinstance(privacy, ClientPrivacyConfig):
        return ()
    return (ClientClip(privacy.clip if clip is None else clip, privacy.of_second_phase),)
