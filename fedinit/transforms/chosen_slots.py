"""Chosen slots: where a client chose which slots of a factor it trains, those and their places leave it alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from fedinit import slots
from fedinit.transforms.contract import Asked, Malformed, Payload, Task, UpdateTransform


class ChosenSlots(UpdateTransform):
    """The trained factor cut to its chosen slots, with their places beside it (fedinit/slots.py); whole again on the
    server, filled up with the start that both sides know."""

    def on_client(self, task: Task, result: Payload) -> Payload:
        if result.chosen is None:
            return result
        part = slots.part_of(task.trainable)
        return dataclasses.replace(result, tensors=slots.pack(result.tensors, part, result.chosen))

    def received(self, asked: Asked, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Raises Malformed("slots", …) for places and values that belong to no choice within the budget."""
        if asked.slots is None:
            return tensors
        part = slots.part_of(frozenset(name.rpartition("/")[2] for name in asked.trained))
        unpacked, fault = slots.unpack(tensors, asked.sent, part, asked.slots)
        if fault:
            raise Malformed("slots", fault)
        return unpacked
