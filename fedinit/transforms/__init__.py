"""What is done to updates on their way from training to aggregation, one transform a file; contract.py says when."""

from __future__ import annotations

from fedinit.transforms.chosen_slots import ChosenSlots
from fedinit.transforms.contract import Asked, Malformed, Payload, Task, UpdateTransform, leave, receive, settle
from fedinit.transforms.half_precision import HalfPrecision
from fedinit.transforms.personal import Personal

__all__ = [
    "UPDATES",
    "Asked",
    "ChosenSlots",
    "HalfPrecision",
    "Malformed",
    "Payload",
    "Personal",
    "Task",
    "UpdateTransform",
    "leave",
    "receive",
    "settle",
]

# The chain of every run's updates, in the order in which they leave a client.
UPDATES: tuple[UpdateTransform, ...] = (Personal(), ChosenSlots())
